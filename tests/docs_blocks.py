"""Code blocks of the documentation: position, content, and the reason for not running some."""

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
    line: int
    """Line of the fence, from 1."""
    language: str
    """Word after the fence: `sh`, `python`, `csv` for a table, or other."""
    text: str
    """Content."""
    reason: str
    """Reason for not running it; empty if it runs."""

    @property
    def commands(self) -> list[list[str]]:
        """Words of each command of a shell block, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks_of(page: Path) -> list[Block]:
    """Return the code blocks of a page in order, without Sphinx's directives."""
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
    """Return a page's path inside the repository."""
    return path.relative_to(ROOT).as_posix()
