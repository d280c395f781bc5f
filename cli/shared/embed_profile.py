"""Where the time of embedding went: seconds by stage, as a table and in the JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.table import Table

from features.utils.stage_times import STAGES, StageTimes

__all__ = ["profile_seconds", "profile_table"]


def profile_seconds(times: StageTimes, *, command_s: float) -> dict[str, float]:
    """Return the seconds of the whole command, of its start, and of each stage.

    ``command_s`` is the moment on the monotonic clock at which the command began; loading the
    encoder and choosing its runtime are part of the start.
    """
    seconds = {"whole": time.monotonic() - command_s, "start": times.began_s - command_s}
    return {name: round(value, 3) for name, value in (seconds | times.as_dict()).items()}


def profile_table(seconds: Mapping[str, float]) -> Table:
    """Return the table of seconds; stages run side by side, so that they do not add up."""
    table = Table(title=f"{seconds['whole']:.1f} s in all", title_justify="left")
    for name in ("stage", "seconds", "what"):
        table.add_column(name, justify="right" if name == "seconds" else "left")
    table.add_row("start", f"{seconds['start']:.2f}", "program, encoder and runtime loaded")
    for stage, what in STAGES.items():
        table.add_row(stage, f"{seconds[stage]:.2f}", what)
    return table
