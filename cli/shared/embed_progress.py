"""What ``mil embed`` shows while it works, and what it says in the end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer
from rich.progress import Progress
from rich.table import Table

from cli.console import (
    EXIT_INTERRUPTED,
    EXIT_KNOWN_ERROR,
    EXIT_PARTLY_FAILED,
    print_json,
    stderr,
    stdout,
)
from features.utils.text import pluralize, printable

if TYPE_CHECKING:
    from features.embedding.results import SlideResult

__all__ = ["EmbedProgressBars", "SlideStatus", "print_failures", "report_outcomes"]


def report_outcomes(
    outcomes: list[SlideResult],
    bags_dir: Path,
    *,
    n_asked_for: int,
    stopped: bool,
    as_json: bool,
    words: tuple[str, str] = ("slides", "tiles"),
) -> None:
    """Print the summary, and leave with the exit code that tells what happened.

    Parameters
    ----------
    outcomes
        What was dealt with.
    bags_dir
        Folder of the bags.
    n_asked_for
        Slides or series asked for.
    stopped
        Whether the user stopped the work.
    as_json
        Whether the summary is for a program.
    words
        What becomes a bag, and what an instance is.
    """
    if as_json:
        print_json(_summary(outcomes, bags_dir))
    else:
        _print_summary(outcomes, bags_dir, words)
    print_failures(outcomes, bags_dir, what=words[0])
    if stopped:
        stderr.print(
            f"stopped after {len(outcomes)} of {pluralize(n_asked_for, words[0])}; "
            "the same command goes on"
        )
        raise typer.Exit(EXIT_INTERRUPTED)
    if n_failed := sum(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(EXIT_KNOWN_ERROR if n_failed == len(outcomes) else EXIT_PARTLY_FAILED)


class SlideStatus(Protocol):
    """What became of a slide, as far as the bars care."""

    @property
    def status(self) -> str:
        """``failed``, or anything else."""
        ...

    @property
    def message(self) -> str:
        """Why it failed."""
        ...


class EmbedProgressBars:
    """Two bars: slides or series done, and tiles done of all tiles found so far."""

    def __init__(self, bars: Progress, *, n_slides: int, what: str = "slides") -> None:
        self._bars = bars
        self._slides = bars.add_task(what, total=n_slides)
        self._tiles = bars.add_task("tiles", total=0, visible=False)
        self._n_found = 0

    def slide_started(self, slide_id: str, n_tiles: int) -> None:
        """Make the bar of tiles longer."""
        self._n_found += n_tiles
        self._bars.update(
            self._tiles, total=self._n_found, visible=True, description=printable(slide_id)
        )

    def tiles_done(self, n_tiles: int) -> None:
        """Move it."""
        self._bars.advance(self._tiles, n_tiles)

    def slide_ended(self, outcome: SlideStatus) -> None:
        """Move the bar of slides, and say at once when one failed."""
        self._bars.advance(self._slides)
        if outcome.status == "failed":
            self._bars.console.print(f"failed: {outcome.message}", style="yellow")

    def noted(self, text: str) -> None:
        """Say it at once."""
        self._bars.console.print(f"note: {text}", style="yellow")


def print_failures(outcomes: list[SlideResult], bags_dir: Path, *, what: str = "slides") -> None:
    """Say on standard error how many failed, and where to read more."""
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failed:
        stderr.print(
            f"{len(failed)} of {pluralize(len(outcomes), what)} failed; see "
            f"{bags_dir / 'embed.csv'}",
            style="bold yellow",
        )


def _summary(outcomes: list[SlideResult], bags_dir: Path) -> dict[str, object]:
    counts = Counter(outcome.status for outcome in outcomes)
    left_out: Counter[str] = Counter()
    for outcome in outcomes:
        left_out.update(outcome.left_out)
    return {
        "bags": str(bags_dir),
        "n_slides": len(outcomes),
        **{f"n_{status}": counts[status] for status in ("done", "empty", "skipped", "failed")},
        "n_tiles": sum(outcome.n_tiles for outcome in outcomes),
        "n_tiles_failed": sum(outcome.n_failed for outcome in outcomes),
        "n_tiles_left_out": dict(left_out),
        "mpp_sources": dict(Counter(o.mpp_source for o in outcomes if o.mpp_source)),
        "mpp": dict(_mpp_counts(outcomes)),
        "mpp_outliers": _mpp_outliers(outcomes),
        "failed": {o.slide_id: o.message for o in outcomes if o.status == "failed"},
    }


def _mpp_counts(outcomes: list[SlideResult]) -> list[tuple[str, int]]:
    """How many slides have which resolution, commonest first."""
    return Counter(f"{o.mpp:.3g}" for o in outcomes if o.mpp_source).most_common()


def _mpp_outliers(outcomes: list[SlideResult]) -> dict[str, float]:
    """Slides whose resolution is far from the others'."""
    from features.slides.resolution import mpp_outliers

    known = {o.slide_id: o.mpp for o in outcomes if o.mpp_source}
    return {slide_id: known[slide_id] for slide_id in mpp_outliers(known)}


def _print_summary(outcomes: list[SlideResult], bags_dir: Path, words: tuple[str, str]) -> None:
    summary = _summary(outcomes, bags_dir)
    title = f"{pluralize(len(outcomes), words[0])} into {bags_dir}"
    table = Table(title=title, title_justify="left")
    for name in ("embedded", "empty", "skipped", "failed", words[1], f"{words[1]} failed"):
        table.add_column(name, justify="right")
    keys = ("n_done", "n_empty", "n_skipped", "n_failed", "n_tiles", "n_tiles_failed")
    table.add_row(*(f"{summary[key]:,}" for key in keys))
    stdout.print(table)
    left_out = summary["n_tiles_left_out"]
    if isinstance(left_out, dict) and left_out:
        told = ", ".join(f"{name} {count:,}" for name, count in sorted(left_out.items()))
        advice = " (--rules none turns the rules off)" if words[1] == "tiles" else ""
        stdout.print(f"{words[1].capitalize()} left out: {told}{advice}.")
    told = ", ".join(f"{mpp} ({count})" for mpp, count in _mpp_counts(outcomes)[:6])
    if told:
        stdout.print(f"µm/px of the {words[0]}: {told}")
    if outliers := _mpp_outliers(outcomes):
        told = ", ".join(f"{name} {mpp:.3g}" for name, mpp in list(outliers.items())[:5])
        stderr.print(
            f"warning: the resolution of {pluralize(len(outliers), words[0])} is far from the "
            f"others': {told}",
            style="yellow",
        )
    n_assumed = sum(outcome.mpp_source == "assumed" for outcome in outcomes)
    if n_assumed:
        stdout.print(
            f"{pluralize(n_assumed, 'slides')} without a plausible resolution: 0.25 µm/px was "
            "assumed. If you know it, give --slide-mpp or --mpp-table."
        )
