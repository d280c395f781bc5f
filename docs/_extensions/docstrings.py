"""Adjustments of docstrings for the site."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

__all__ = ["setup"]

_AFTER_NAPOLEON = 600
_TYPE = ":type: "


def _keep_shapes(_app: Sphinx, what: str, *rest: Any) -> None:
    """Restore the text before a colon, which napoleon takes for a type, as in "Shape (n,): ids"."""
    lines: list[str] = rest[-1]
    types = [line for line in lines if line.startswith(_TYPE)]
    if what in {"attribute", "data", "property"} and types and lines[0] != types[0]:
        lines.remove(types[0])
        lines[0] = f"{types[0].removeprefix(_TYPE)}: {lines[0]}"


def _skip_routing(_app: Sphinx, _what: str, name: str, *_rest: Any) -> bool | None:
    """Skip the methods that scikit-learn adds to every estimator and documents itself."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the events of autodoc."""
    app.connect("autodoc-process-docstring", _keep_shapes, priority=_AFTER_NAPOLEON)
    app.connect("autodoc-skip-member", _skip_routing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
