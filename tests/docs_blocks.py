"""Code blocks of the documents: where they stand, what they hold, and why some are not run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks_of", "name_of"]

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if "_build" not in page.parts
)

_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+?) -->\n\n?)?^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    page: Path
    """The page."""
    line: int
    """Line of its fence, from 1."""
    language: str
    """What stands behind the fence: `sh`, `python`, `csv` for a table, or other."""
    text: str
    """What it holds."""
    reason: str
    """Why it is not run; empty where it is."""

    @property
    def commands(self) -> list[list[str]]:
        """Words of each command of a shell block; comments are left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks_of(page: Path) -> list[Block]:
    """The code blocks of a page in order; Sphinx's own directives are none."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=page,
            line=text.count("\n", 0, result.start("language")) + 1,
            language=result["language"].strip(),
            text=result["text"],
            reason=result["reason"] or "",
        )
        for result in _FENCE.finditer(text)
        if not result["language"].startswith("{")
    ]


def name_of(path: Path) -> str:
    """A page's path inside the repository."""
    return path.relative_to(ROOT).as_posix()
