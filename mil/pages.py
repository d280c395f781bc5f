"""Pages that people look at: one HTML file each, with nothing fetched from anywhere."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["render"]


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
