"""Docstrings of the house as the site shows them."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

__all__ = ["setup"]

_AFTER_NAPOLEON = 600
_TYPE = ":type: "


def _keep_shapes(_app: Sphinx, what: str, *rest: Any) -> None:
    """Napoleon takes the shape in "Shape (n,): what it is" for a type; put it back."""
    lines: list[str] = rest[-1]
    found = [line for line in lines if line.startswith(_TYPE)]
    if what in {"attribute", "property"} and found and lines[0] != found[0]:
        lines.remove(found[0])
        lines[0] = f"{found[0].removeprefix(_TYPE)}: {lines[0]}"


def _skip_routing(_app: Sphinx, _what: str, name: str, *_rest: Any) -> bool | None:
    """What scikit-learn adds to every estimator is scikit-learn's to explain."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen to autodoc."""
    app.connect("autodoc-process-docstring", _keep_shapes, priority=_AFTER_NAPOLEON)
    app.connect("autodoc-skip-member", _skip_routing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
