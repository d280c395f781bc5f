"""Result of each slide, and the table of results ``embed.csv``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from features.bags.bag import BagMeta
from features.errors import one_line
from features.parallel.locks import FolderLocks
from features.utils.tables import read_table, write_records

__all__ = ["SlideResult", "Status", "counts_text", "write_results"]

_LOCK_TIMEOUT_S = 60.0

Status = Literal["done", "empty", "skipped", "failed"]
"""``done`` and ``empty`` wrote a bag, ``skipped`` kept a finished one, ``failed`` wrote none."""


@dataclass(frozen=True, kw_only=True)
class SlideResult:
    """Result of one slide; one row of ``embed.csv``.

    Attributes
    ----------
    n_tiles
        Embeddings in its bag.
    n_failed, left_out
        Tiles that could not be decoded, and number of rejected tiles by rule.
    mpp, mpp_source
        Resolution that was used, µm per level-0 px; ``file``, ``derived``, ``given`` or
        ``assumed``.
    tissue_share
        Share of the slide that is tissue, 0 to 1; NaN where it is not known.
    seconds
        Time from opening the slide to its bag, seconds; slides overlap.
    message
        Reason why it failed or is empty, or its first decoding error.
    scene, other_scenes
        Of a file with several scenes, the number of the one that was embedded, and the others; 0
        and empty where there is only one.
    warnings
        What is wrong with the file although it could be read, sentences separated by ``" | "``.
    """

    slide_id: str
    status: Status
    n_tiles: int = 0
    n_failed: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    mpp: float = float("nan")
    mpp_source: str = ""
    seconds: float = 0.0
    message: str = ""
    path: str = ""
    tissue_share: float = float("nan")
    scene: int = 0
    other_scenes: str = ""
    warnings: str = ""

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
        """Return the result of a slide with a bag; an empty bag's reason replaces ``message``.

        ``seconds`` is the wall time that it took.
        """
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
            message=meta.empty_reason or one_line(message),
            path=str(path),
            tissue_share=float("nan") if meta.tissue_share < 0 else meta.tissue_share,
            scene=meta.scene,
            other_scenes=meta.other_scenes,
            warnings=meta.warnings,
        )

    @classmethod
    def of_failure(
        cls, path: Path, message: str, *, slide_id: str, seconds: float = 0.0
    ) -> SlideResult:
        """Return the result of a slide without a bag, after ``seconds`` of wall time."""
        return cls(
            slide_id=slide_id,
            status="failed",
            seconds=seconds,
            message=one_line(message, max_chars=2000),
            path=str(path),
        )


def write_results(bags_dir: Path, results: Sequence[SlideResult], locks: FolderLocks) -> None:
    """Update ``embed.csv``; rows of other slides stay as they are.

    A skipped slide keeps its earlier row, which records how its bag was made, unless that says that
    it failed: a run that made its bag since then ended before it wrote the table. Processes that
    share the folder write one after the other.

    Raises
    ------
    OutputError
        If the table cannot be written.
    """
    path = bags_dir / "embed.csv"
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while not locks.acquire("embed.csv"):
        if time.monotonic() > deadline:
            return  # The next update writes these rows too.
        time.sleep(0.05)
    try:
        rows: dict[str, dict[str, object]] = {}
        if path.is_file():
            for row in read_table(path).to_dict("records"):
                rows[str(row.get("slide_id", ""))] = {str(k): v for k, v in row.items()}
        for result in results:
            earlier = rows.get(result.slide_id, {}).get("status", "failed")
            if result.status != "skipped" or earlier == "failed":
                rows[result.slide_id] = {**asdict(result), "left_out": counts_text(result.left_out)}
        if rows:
            names = [part.name for part in fields(SlideResult)]
            write_records(path, rows.values(), columns=names, float_format="%.6g")
    finally:
        locks.release("embed.csv")


def counts_text(counts: Mapping[str, int]) -> str:
    """Return counts as text, sorted by name.

    Examples
    --------
    >>> counts_text({"ink": 1, "blur": 3})
    'blur 3, ink 1'
    """
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
