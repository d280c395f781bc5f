"""What can go wrong with an input, as a small tree.

::

    KnownError            anything we can explain in one line; exit code 1
    ├── TableError        a CSV table that cannot be used
    ├── OutputError       a file or folder that cannot be written
    ├── SlideError        a slide that cannot be opened or read
    │   ├── StackError    several pictures where one is the slide
    │   └── TileError     one region of it that cannot be decoded
    ├── ResolutionError   a resolution that cannot be had from this slide
    ├── EncoderError      a backbone or its weights
    ├── FilterError       a tile filter that cannot be fitted, read or applied
    └── BagError          a bag file that cannot be read or trusted

The learning half adds its own branches in :mod:`mil.errors`. Every message follows one mould:
where, what was found, what was expected, what to do.
"""

__all__ = [
    "BagError",
    "EncoderError",
    "FilterError",
    "KnownError",
    "OutputError",
    "ResolutionError",
    "SlideError",
    "StackError",
    "TableError",
    "TileError",
]


class KnownError(Exception):
    """A failure that a person can mend, said in one line.

    Parameters
    ----------
    where
        The file, row, slide or patient concerned.
    found
        What is there.
    expected
        What should have been there; empty where ``found`` says it all.
    advice
        What to do next, as a full sentence; empty where it is obvious.

    Examples
    --------
    >>> print(KnownError("train.csv", found="no column 'label'", expected="one label a slide"))
    train.csv: no column 'label'; expected one label a slide
    """

    def __init__(self, where: object, *, found: str, expected: str = "", advice: str = "") -> None:
        self.where = str(where)
        self.found = found
        self.expected = expected
        self.advice = advice
        super().__init__(where, found, expected, advice)

    def __str__(self) -> str:
        """The message in one line: where, what was found, what was expected, what to do."""
        text = f"{self.where}: {self.found}"
        if self.expected:
            text += f"; expected {self.expected}"
        return f"{text}. {self.advice}" if self.advice else text

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way back from a worker process (keyword-only arguments do not by default)."""
        return _rebuild, (type(self), self.where, self.found, self.expected, self.advice)


def _rebuild(
    kind: type[KnownError], where: str, found: str, expected: str, advice: str
) -> KnownError:
    return kind(where, found=found, expected=expected, advice=advice)


class TableError(KnownError):
    """A CSV table that cannot be read or lacks what is needed."""


class OutputError(KnownError):
    """A file or folder that cannot be written."""


class SlideError(KnownError):
    """A slide that no reader can open, or whose pixels cannot be read."""


class StackError(SlideError):
    """A file of several pictures of one size, of which nobody says which is the slide."""


class TileError(SlideError):
    """One region of a slide that cannot be decoded, even on a fresh handle."""


class ResolutionError(KnownError):
    """A resolution that is implausible or cannot be had from the slide."""


class EncoderError(KnownError):
    """A backbone that does not exist, or weights that are missing or do not fit."""


class FilterError(KnownError):
    """A tile filter that cannot be fitted, read, or applied to these embeddings."""


class BagError(KnownError):
    """A bag file that is missing, damaged, incomplete or of another make."""
