"""What ``mil embed --dry-run`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from cli.console import notes, print_json, progress_bar, results
from mil.wording import counted

if TYPE_CHECKING:
    from features.encoders import Encoder
    from features.recipe import EmbedSettings

__all__ = ["print_estimate"]


def print_estimate(
    slides: list[Path],
    encoder: Encoder,
    *,
    settings: EmbedSettings,
    given_mpp: Mapping[str, float],
    as_json: bool,
) -> None:
    """Survey the slides and print tiles, gigabytes and hours; writes nothing."""
    from features.estimate import estimate_embedding

    with progress_bar("slides") as bars:
        task = bars.add_task("finding tissue", total=len(slides))
        found = estimate_embedding(
            slides, encoder, settings=settings, given_mpp=given_mpp,
            on_slide=lambda: bars.advance(task),
        )  # fmt: skip
    if as_json:
        print_json(asdict(found))
        return
    title = f"{counted(found.n_slides, 'slides')}, nothing written"
    table = Table(title=title, title_justify="left")
    for name in ("tiles", "bags", "decoding", "backbone", "finding tissue", "in all"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{found.n_tiles:,}", f"{found.bag_gb:,.3g} GB", f"{found.decode_tiles_per_s:,.0f} tiles/s",
        f"{found.backbone_tiles_per_s:,.0f} tiles/s", f"{found.survey_s:,.0f} s",
        _duration(found.hours),
    )  # fmt: skip
    results.print(table)
    results.print("Hours are for this machine and these options; rules may leave tiles out.")
    for message in found.failures.values():
        notes.print(f"failed: {message}", style="yellow")


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"
