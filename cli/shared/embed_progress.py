"""Progress bars and summary of embedding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer
from rich.progress import Progress

from cli.console import (
    EXIT_INTERRUPTED,
    EXIT_PARTLY_FAILED,
    exit_if_failed,
    options_elsewhere,
    print_json,
    print_next,
    print_numbers,
    stderr,
    stdout,
    warn,
)
from cli.shared.embed_profile import profile_table
from cli.shared.passed_over import passed_over_as_dict, print_passed_over
from features.errors import one_line
from features.utils.text import list_names, pluralize, printable

if TYPE_CHECKING:
    from features.embedding.results import SlideResult
    from features.slides.search import PassedOver

__all__ = [
    "EmbedProgressBars",
    "SlideStatus",
    "assumed_mpp_text",
    "print_failures",
    "report_results",
    "tissue_warnings",
    "unusual_tissue",
]

_N_NAMED = 5


def report_results(
    results: list[SlideResult],
    bags_dir: Path,
    *,
    n_requested: int,
    stopped: bool,
    as_json: bool,
    passed_over: Mapping[Path, PassedOver],
    n_unread: int,
    units: tuple[str, str] = ("slides", "tiles"),
    profile: Mapping[str, float] | None = None,
) -> None:
    """Print the summary of a run, and exit with its code unless all slides are done.

    ``stopped`` is True if the user stopped it; ``passed_over`` are files of its folders that were
    not taken, ``n_unread`` the number of slides among them; ``units`` are the names of a bag's
    source and of its instances; ``profile`` holds the seconds by stage, None if not asked for.
    """
    timed = {} if profile is None else {"profile_s": dict(profile)}
    if as_json:
        passed = {"passed_over": passed_over_as_dict(passed_over)}
        print_json(_summary(results, bags_dir) | passed | timed)
    else:
        _print_summary(results, bags_dir, units)
        if profile is not None:
            stdout.print(profile_table(profile))
    print_passed_over(passed_over)
    n_failed = print_failures(results, bags_dir, unit=units[0])
    if stopped:
        stderr.print(
            f"stopped after {len(results)} of {pluralize(n_requested, units[0])}; "
            "the same command continues"
        )
        raise typer.Exit(EXIT_INTERRUPTED)
    if not as_json and n_failed < len(results):
        print_next(
            "mil train --cohort train.csv --bags {bags}",
            "mil infer --patients test.csv --bags {bags}",
            bags=bags_dir,
        )
    exit_if_failed(n_failed, len(results))
    if n_unread:
        raise typer.Exit(EXIT_PARTLY_FAILED)


class SlideStatus(Protocol):
    """Result of a slide, as far as the progress bars show it."""

    @property
    def status(self) -> str:
        """``failed``, or anything else."""

    @property
    def message(self) -> str:
        """Reason of the failure."""


class EmbedProgressBars:
    """Two bars: finished slides or series, and finished tiles of all slides opened so far."""

    def __init__(self, bars: Progress, *, n_slides: int, unit: str = "slides") -> None:
        self._bars = bars
        self._slides = bars.add_task(unit, total=n_slides)
        self._tiles = bars.add_task("tiles", total=0, visible=False)
        self._n_tiles = self._n_failed = 0

    def slide_started(self, slide_id: str, n_tiles: int) -> None:
        """Extend the bar of tiles."""
        self._n_tiles += n_tiles
        self._bars.update(
            self._tiles, total=self._n_tiles, visible=True, description=printable(slide_id)
        )

    def tiles_done(self, n_tiles: int) -> None:
        """Advance the bar of tiles."""
        self._bars.advance(self._tiles, n_tiles)

    def slide_ended(self, result: SlideStatus) -> None:
        """Advance the bar of slides, and print a failure if it is among the first five."""
        self._bars.advance(self._slides)
        if result.status == "failed":
            self._n_failed += 1
            if self._n_failed <= _N_NAMED:
                text = f"failed: {result.message} {options_elsewhere(result.message)}"
                self._bars.console.print(text.rstrip(), style="yellow")

    def warn(self, text: str) -> None:
        """Print a note above the bars."""
        self._bars.console.print(f"note: {one_line(text)}", style="yellow")


def print_failures(results: list[SlideResult], bags_dir: Path, *, unit: str = "slides") -> int:
    """Print how many slides failed, and the file of their errors, on stderr; return the number."""
    n_failed = sum(result.status == "failed" for result in results)
    if n_failed:
        stderr.print(
            f"{n_failed:,} of {pluralize(len(results), unit)} failed"
            f"{', the first five of them above' if n_failed > _N_NAMED else ''}; "
            f"see {bags_dir / 'embed.csv'}",
            style="bold yellow",
        )
    return n_failed


def assumed_mpp_text(slide_ids: Sequence[str]) -> str:
    """Return the sentence that names the slides whose resolution was assumed."""
    return (
        f"{pluralize(len(slide_ids), 'slides')} without a plausible resolution: 0.25 µm/px was "
        f"assumed for {list_names(slide_ids)}. If you know it, give --slide-mpp, "
        "or --mpp-table to 'mil embed'."
    )


def unusual_tissue(shares: Mapping[str, float]) -> dict[str, list[str]]:
    """Return the slides that are tissue nearly everywhere, and nearly nowhere.

    ``shares`` is the share of tissue by slide id, 0 to 1; NaN where it is not known.
    """
    from features.tiling.tissue import NEARLY_ALL, NEARLY_NONE

    return {
        "tissue_nearly_all": [name for name, share in shares.items() if share >= NEARLY_ALL],
        "tissue_nearly_none": [name for name, share in shares.items() if share <= NEARLY_NONE],
    }


def tissue_warnings(
    shares: Mapping[str, float], *, advice: str = "Look at them with 'mil preview'"
) -> list[str]:
    """Return a sentence for the slides of each kind of :func:`unusual_tissue`."""
    texts = []
    found = unusual_tissue(shares)
    if names := found["tissue_nearly_all"]:
        texts.append(
            f"warning: tissue nearly everywhere on {pluralize(len(names), 'slides')}: "
            f"{list_names(names)}. {advice}: either they hold no glass, or it was not recognised."
        )
    if names := found["tissue_nearly_none"]:
        texts.append(
            f"warning: hardly any tissue on {pluralize(len(names), 'slides')}: "
            f"{list_names(names)}. {advice}; if tissue was missed, `--tissue all` takes everything."
        )
    return texts


def _summary(results: list[SlideResult], bags_dir: Path) -> dict[str, object]:
    counts = Counter(result.status for result in results)
    left_out: Counter[str] = Counter()
    for result in results:
        left_out.update(result.left_out)
    return {
        "bags": str(bags_dir),
        "n_slides": len(results),
        **{f"n_{status}": counts[status] for status in ("done", "empty", "skipped", "failed")},
        "n_tiles": sum(result.n_tiles for result in results),
        "n_tiles_failed": sum(result.n_failed for result in results),
        "n_tiles_left_out": dict(left_out),
        **unusual_tissue(_tissue_shares(results)),
        "mpp_sources": dict(Counter(o.mpp_source for o in results if o.mpp_source)),
        "mpp_assumed": [o.slide_id for o in results if o.mpp_source == "assumed"],
        "mpp_derived": [o.slide_id for o in results if o.mpp_source == "derived"],
        "warnings": {o.slide_id: o.warnings.split(" | ") for o in results if o.warnings},
        "other_scenes": {o.slide_id: o.other_scenes for o in results if o.other_scenes},
        "mpp": dict(_mpp_counts(results)),
        "mpp_outliers": _mpp_outliers(results),
        "failed": {o.slide_id: o.message for o in results if o.status == "failed"},
    }


def _mpp_counts(results: list[SlideResult]) -> list[tuple[str, int]]:
    """Return the number of slides by resolution, most frequent first."""
    return Counter(f"{o.mpp:.3g}" for o in results if o.mpp_source).most_common()


def _tissue_shares(results: list[SlideResult]) -> dict[str, float]:
    return {result.slide_id: result.tissue_share for result in results}


def _mpp_outliers(results: list[SlideResult]) -> dict[str, float]:
    """Return the resolution of slides far from the others, µm/px, by slide id."""
    from features.slides.resolution import mpp_outliers

    known = {o.slide_id: o.mpp for o in results if o.mpp_source}
    return {slide_id: known[slide_id] for slide_id in mpp_outliers(known)}


def _print_summary(results: list[SlideResult], bags_dir: Path, units: tuple[str, str]) -> None:
    summary = _summary(results, bags_dir)
    title = f"{pluralize(len(results), units[0])} into {bags_dir}"
    columns = ("embedded", "empty", "skipped", "failed", units[1], f"{units[1]} failed")
    keys = ("n_done", "n_empty", "n_skipped", "n_failed", "n_tiles", "n_tiles_failed")
    print_numbers(title, columns, [[f"{summary[key]:,}" for key in keys]], n_names=0)
    left_out = summary["n_tiles_left_out"]
    if isinstance(left_out, dict) and left_out:
        text = ", ".join(f"{name} {count:,}" for name, count in sorted(left_out.items()))
        by_rules = units[1] == "tiles" and left_out.keys() != {"filter"}
        hint = " (--rules none turns the rules off)" if by_rules else ""
        stdout.print(f"{units[1].capitalize()} left out: {text}{hint}.")
    text = ", ".join(f"{mpp} ({count})" for mpp, count in _mpp_counts(results)[:6])
    if text:
        stdout.print(f"µm/px of the {units[0]}: {text}")
    if outliers := _mpp_outliers(results):
        text = ", ".join(f"{name} {mpp:.3g}" for name, mpp in list(outliers.items())[:5])
        warn(
            f"warning: the resolution of {pluralize(len(outliers), units[0])} is far from the "
            f"others': {text}"
        )
    for text in tissue_warnings(_tissue_shares(results)):
        warn(text)
    _print_file_warnings({o.slide_id: o.warnings for o in results if o.warnings}, bags_dir)
    if several := [result for result in results if result.other_scenes]:
        named = [f"{o.slide_id} (scene {o.scene}; others {o.other_scenes})" for o in several]
        stdout.print(
            f"{pluralize(len(several), 'slides')} with several scenes, of which one was embedded: "
            f"{list_names(named)}. --scene N embeds another."
        )
    if assumed := [result.slide_id for result in results if result.mpp_source == "assumed"]:
        stdout.print(assumed_mpp_text(assumed))
    if derived := [result.slide_id for result in results if result.mpp_source == "derived"]:
        stdout.print(
            f"{pluralize(len(derived), 'slides')} with a resolution derived from the "
            f"magnification, right within some 10 %: {list_names(derived)}"
        )


def _print_file_warnings(warnings: Mapping[str, str], bags_dir: Path) -> None:
    """Print what is wrong with the first slides' files, and how many slides have warnings."""
    if not warnings:
        return
    warn(
        f"warning: something is wrong with the files of {pluralize(len(warnings), 'slides')}, "
        "which were read nevertheless:"
    )
    for slide_id, text in list(warnings.items())[:_N_NAMED]:
        warn(f"  {printable(slide_id)}: {text}")
    if len(warnings) > _N_NAMED:
        warn(f"  and {len(warnings) - _N_NAMED:,} more; see {bags_dir / 'embed.csv'}")
