"""What became of each slide, and the table that keeps it: ``embed.csv``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from features.bags.bag import BagMeta
from features.errors import TableError
from features.parallel.locks import FolderLocks
from features.utils.tables import read_table, write_table

__all__ = ["SlideResult", "Status", "counts_text", "read_failures", "write_results"]

_TABLE_PATIENCE_S = 60.0

Status = Literal["done", "empty", "skipped", "failed"]
"""``done`` and ``empty`` wrote a bag, ``skipped`` found a finished one, ``failed`` wrote none."""


@dataclass(frozen=True, kw_only=True)
class SlideResult:
    """What became of one slide; one row of ``embed.csv``."""

    slide_id: str
    """Its name without folder and suffix."""
    status: Status
    """What happened."""
    n_tiles: int = 0
    """Embeddings in its bag."""
    n_failed: int = 0
    """Tiles that could not be decoded."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Tiles that were left out, by rule."""
    mpp: float = float("nan")
    """µm per level-0 px that was used."""
    mpp_source: str = ""
    """``file``, ``given`` or ``assumed``."""
    seconds: float = 0.0
    """Time from opening it to its bag; slides overlap."""
    message: str = ""
    """Why it failed or is empty, or which of its tiles could not be decoded first."""
    path: str = ""
    """Where the slide lies."""

    @classmethod
    def of_bag(
        cls,
        path: Path,
        meta: BagMeta,
        *,
        status: Status,
        seconds: float = 0.0,
        message: str = "",
    ) -> SlideResult:
        """Outcome of a slide that has a bag; ``message`` where its being empty is not all."""
        left_out: dict[str, int] = json.loads(meta.left_out)
        return cls(
            slide_id=meta.slide_id,
            status=status,
            n_tiles=meta.n_tried - meta.n_failed - sum(left_out.values()),
            n_failed=meta.n_failed,
            left_out=left_out,
            mpp=(meta.mpp_x * meta.mpp_y) ** 0.5,
            mpp_source=meta.mpp_source,
            seconds=seconds,
            message=meta.empty_reason or " ".join(message.split()),
            path=str(path),
        )

    @classmethod
    def of_failure(cls, path: Path, message: str, *, slide_id: str, seconds: float) -> SlideResult:
        """Outcome of a slide that has no bag, and why."""
        return cls(
            slide_id=slide_id,
            status="failed",
            seconds=seconds,
            message=" ".join(message.split()),
            path=str(path),
        )


def write_results(bags_dir: Path, outcomes: Sequence[SlideResult], locks: FolderLocks) -> None:
    """Bring ``embed.csv`` up to date: rows of other slides stay as they are.

    A skipped slide keeps its earlier row, which says how it was made. Processes that share the
    folder write one after the other.

    Raises
    ------
    OutputError
        If the table cannot be written.
    """
    path = bags_dir / "embed.csv"
    waited_until = time.monotonic() + _TABLE_PATIENCE_S
    while not locks.acquire("embed.csv"):
        if time.monotonic() > waited_until:
            return  # the next round writes these rows too
        time.sleep(0.05)
    try:
        rows: dict[str, dict[str, object]] = {}
        if path.is_file():
            for row in read_table(path).to_dict("records"):
                rows[str(row.get("slide_id", ""))] = {str(k): v for k, v in row.items()}
        for outcome in outcomes:
            if outcome.status != "skipped" or outcome.slide_id not in rows:
                rows[outcome.slide_id] = {
                    **asdict(outcome), "left_out": counts_text(outcome.left_out)
                }  # fmt: skip
        if rows:
            import pandas as pd  # noqa: PLC0415 - takes 0.3 s; slides are in work by now

            names = [part.name for part in fields(SlideResult)]
            table = pd.DataFrame(list(rows.values()), columns=names)
            write_table(path, table, float_format="%.6g")
    finally:
        locks.release("embed.csv")


def read_failures(bags_dir: Path) -> dict[str, str]:
    """Why slides could not be embedded, by slide id, where ``embed.csv`` is there and says it."""
    with suppress(TableError):
        rows = read_table(bags_dir / "embed.csv").to_dict("records")
        return {
            str(row.get("slide_id")): str(row.get("message"))
            for row in rows
            if row.get("status") == "failed"
        }
    return {}


def counts_text(counts: Mapping[str, int]) -> str:
    """Counts as text.

    Examples
    --------
    >>> counts_text({"ink": 1, "blur": 3})
    'blur 3, ink 1'
    """
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
