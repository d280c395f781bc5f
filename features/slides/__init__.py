"""Slides of any format behind one protocol, :class:`Slide`; only the backends use reader libraries.

The names below are imported on first use, because the readers take a second to load.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from features.slides.base import Slide
    from features.slides.reader import open_slide
    from features.slides.search import find_slides

__all__ = ["Slide", "find_slides", "open_slide"]

_MODULES = {
    "Slide": "features.slides.base",
    "find_slides": "features.slides.search",
    "open_slide": "features.slides.reader",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """List the public names too, for completion in an interactive session."""
    return sorted({*globals(), *__all__})
