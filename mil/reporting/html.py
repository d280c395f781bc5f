"""Pages that people look at: one HTML file each, with nothing fetched from anywhere."""

from __future__ import annotations

import hashlib
import os
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["folder_name", "render"]

_LONGEST_NAME = 150
_DEVICES = {"aux", "con", "nul", "prn"} | {
    f"{kind}{n}" for kind in ("com", "lpt") for n in range(10)
}
"""Names that Windows keeps for devices, whatever their suffix."""


def folder_name(patient_id: str) -> str:
    """Name of a patient's folder: the id, with what no folder may be called escaped.

    Of ids too long for a file system the beginning stays, and a hash of the whole.

    Examples
    --------
    >>> folder_name("006388"), folder_name("../a"), folder_name("con")
    ('006388', '%2E.%2Fa', '%63on')
    """
    id_bytes = os.fsencode(patient_id)
    name = quote(id_bytes, safe=" ")
    if name.startswith(".") or name.partition(".")[0].lower() in _DEVICES:
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if name.endswith((".", " ")):  # which Windows takes away
        name = f"{name[:-1]}%{ord(name[-1]):02X}"
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}~{hashlib.sha256(id_bytes).hexdigest()[:16]}"
    return name


def render(template: str, **values: object) -> str:
    """HTML of a template in ``mil/templates``; everything is escaped but the template itself.

    Templates extend ``page.html``, which brings the style and a policy against any network, and
    import the macros ``figure`` and ``table`` from ``macros.html``.

    Parameters
    ----------
    template
        Its file name.
    values
        What it names; a name that is missing is an error, never an empty place.
    """
    environment = Environment(
        loader=PackageLoader("mil"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values)
