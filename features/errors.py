"""Exception classes of the package.

::

    MilError            any failure that one line explains; exit code 1
    ├── TableError        a CSV table that cannot be used
    ├── OutputError       a file or folder that cannot be written
    ├── SlideError        a slide that cannot be opened or read
    │   ├── MultiImageError    several images of one size in a file
    │   └── TileError     a region of it that cannot be decoded
    ├── ResolutionError   an implausible resolution, or one that the slide lacks
    ├── EncoderError      an encoder or its weights
    ├── FilterError       a tile filter that cannot be fitted, read or applied
    └── BagError          a bag file that cannot be read or trusted

The package ``mil`` adds its own branches in :mod:`mil.errors`. Every message has one form: where,
the present state, what was expected, what to do.
"""

import re
from functools import partial

__all__ = [
    "BagError",
    "EncoderError",
    "FilterError",
    "MilError",
    "MultiImageError",
    "OutputError",
    "ResolutionError",
    "SlideError",
    "TableError",
    "TileError",
]

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class MilError(Exception):
    """A failure that the user can fix, explained in one line.

    Parameters
    ----------
    where
        The file, row, slide or patient concerned.
    actual
        The present state.
    expected
        What was expected; empty where ``actual`` is enough.
    hint
        What to do next, as a full sentence; empty where it is obvious.

    Examples
    --------
    >>> print(MilError("train.csv", actual="no column 'label'", expected="one label per slide"))
    train.csv: no column 'label'; expected one label per slide
    """

    def __init__(self, where: object, *, actual: str, expected: str = "", hint: str = "") -> None:
        self.where = str(where)
        self.actual = actual
        self.expected = expected
        self.hint = hint
        super().__init__(where, actual, expected, hint)

    def __str__(self) -> str:
        """Return one line: where, the present state, what was expected, what to do.

        Line breaks and control characters, which texts of libraries may quote from a file, become
        spaces.
        """
        text = f"{self.where}: {self.actual}"
        if self.expected:
            text += f"; expected {self.expected}"
        if self.hint:
            text += f". {self.hint}"
        return _UNPRINTABLE.sub(" ", text)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the keyword-only arguments too, for errors of worker processes."""
        rebuild = partial(type(self), actual=self.actual, expected=self.expected, hint=self.hint)
        return rebuild, (self.where,)


class TableError(MilError):
    """A CSV table that cannot be read or lacks what is needed."""


class OutputError(MilError):
    """A file or folder that cannot be written."""


class SlideError(MilError):
    """A slide that no reader can open, or whose pixels cannot be read."""


class MultiImageError(SlideError):
    """A file of several images of one size in px, none of them marked as the slide."""


class TileError(SlideError):
    """One region of a slide whose pixels cannot be decoded, even on a fresh handle."""


class ResolutionError(MilError):
    """A resolution (mpp) that is implausible or that the slide does not have."""


class EncoderError(MilError):
    """An encoder that does not exist, or weights that are missing or do not fit."""


class FilterError(MilError):
    """A tile filter that cannot be fitted, read, or applied to these embeddings."""


class BagError(MilError):
    """A bag file that is missing, damaged, incomplete or of another kind."""
