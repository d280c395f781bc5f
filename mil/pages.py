"""Pages that people look at: one HTML file each, with nothing fetched from anywhere."""

from __future__ import annotations

import os
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["folder_name", "render"]


def folder_name(patient_id: str) -> str:
    """Name of a patient's folder: the id, with what no folder may be called escaped.

    Examples
    --------
    >>> folder_name("006388"), folder_name("../a")
    ('006388', '%2E.%2Fa')
    """
    name = quote(os.fsencode(patient_id), safe=" ")
    return f"%2E{name[1:]}" if name.startswith(".") else name


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
