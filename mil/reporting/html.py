"""HTML pages from templates: one self-contained file each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from features.utils.files import atomic_write
from features.utils.html import page_environment

__all__ = ["Table", "folder_name", "relative_address", "render", "write_html"]

_MAX_NAME_LENGTH = 150
_DEVICES = {"aux", "con", "nul", "prn"} | {
    f"{kind}{n}" for kind in ("com", "lpt") for n in range(10)
}
"""Names that Windows reserves for devices, whatever their suffix."""


@dataclass(frozen=True)
class Table:
    """A table of text, shape (rows, columns), for the macro ``table`` of ``macros.html``.

    ``text_columns`` are the indices of the columns set as text; the others are set as numbers.
    ``links`` are addresses behind the first cell of a row, by the cell's text.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = (0,)
    links: Mapping[str, str] = field(default_factory=dict)


def folder_name(patient_id: str) -> str:
    """Return the name of a patient's folder: the id with unsuitable characters escaped.

    Ids too long for a file system are cut and completed by a hash of the whole id.

    Examples
    --------
    >>> folder_name("006388"), folder_name("../a"), folder_name("con")
    ('006388', '%2E.%2Fa', '%63on')
    """
    id_bytes = os.fsencode(patient_id)
    name = quote(id_bytes, safe=" ")
    if name.startswith(".") or name.partition(".")[0].lower() in _DEVICES:
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if name.endswith((".", " ")):  # which Windows removes
        name = f"{name[:-1]}%{ord(name[-1]):02X}"
    if len(name) > _MAX_NAME_LENGTH:
        name = f"{name[:_MAX_NAME_LENGTH]}~{hashlib.sha256(id_bytes).hexdigest()[:16]}"
    return name


def relative_address(page: Path, folder: Path) -> str:
    """Return the address of a page from the pages in a folder."""
    relative = os.path.relpath(os.path.realpath(page), os.path.realpath(folder))
    return quote(Path(relative).as_posix(), safe="/")


def render(template: str, **values: object) -> str:
    """Return the text of a template in ``mil/templates``; in HTML all values are escaped.

    Pages extend ``page.html``, see :func:`features.utils.html.page_environment`. A value missing in
    ``values`` is an error, never empty text.
    """
    return page_environment("mil").get_template(template).render(**values)


def write_html(path: Path, html: str) -> None:
    """Write a page as UTF-8, with question marks for characters that cannot be encoded.

    Raises ``OutputError`` if the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="replace")
