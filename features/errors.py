"""Exception classes of the package.

::

    MilError            any failure that one line explains; exit code 1
    ├── TableError        a CSV table that cannot be used
    ├── OutputError       a file or folder that cannot be written
    ├── SlideError        a slide that cannot be opened or read
    │   ├── MultiImageError    several images of one size in a file
    │   ├── SceneError    a scene that the file does not have
    │   ├── TileError     a region of it that cannot be decoded
    │   └── UnsupportedFormatError  pixels stored in a way that is not read
    ├── ResolutionError   an implausible resolution, or one that the slide lacks
    ├── EncoderError      an encoder or its weights
    ├── FilterError       a tile filter that cannot be fitted, read or applied
    └── BagError          a bag file that cannot be read or trusted

The package ``mil`` adds its own branches in :mod:`mil.errors`. Every message has one form: where,
the present state, what was expected, what to do.
"""

import re
import unicodedata
from functools import partial

__all__ = [
    "CONTENT_ERRORS",
    "BagError",
    "EncoderError",
    "FilterError",
    "MilError",
    "MultiImageError",
    "OutputError",
    "ResolutionError",
    "SceneError",
    "SlideError",
    "TableError",
    "TileError",
    "UnsupportedFormatError",
    "one_line",
]

CONTENT_ERRORS = (
    ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError
)  # fmt: skip
"""Errors of Python on turning a file into values: it is damaged, or of another kind.

Numbers beyond floating point are among them, as JSON holds integers of any size.
"""

_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    r"|\x1b[\]PX^_][^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"  # titles, hyperlinks
    r"|\x1b[ -/]*[0-~]"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BLANKS_AT_BREAK = re.compile(r" *\n[\n ]*")


def one_line(text: str, *, max_chars: int = 1000) -> str:
    r"""Return a text of any origin as one printable line of limited length.

    Escape sequences of terminals vanish, line breaks and other control characters become blanks,
    and invisible characters, such as marks that reverse the direction of writing, are written as
    escapes. Of a text longer than ``max_chars``, the middle is left out.

    Examples
    --------
    >>> one_line("two\n   lines\x1b[31m, one \u202edirection")
    'two lines, one \\u202edirection'
    >>> one_line("a long story", max_chars=9)
    'a lo … ry'
    """
    # The rest cannot be shown anyway, and may be megabytes.
    text = text if len(text) <= 8 * max_chars else text[: 4 * max_chars] + text[-4 * max_chars :]
    text = _CONTROL.sub("\n", _ESCAPE_SEQUENCE.sub("", text))
    text = _BLANKS_AT_BREAK.sub(" ", text).strip()
    text = "".join(c if c.isprintable() else _visible(c) for c in text)
    if len(text) <= max_chars:
        return text
    n_kept = max_chars - 3
    n_first = -(-n_kept * 2 // 3)
    return f"{text[:n_first].rstrip()} … {text[len(text) - (n_kept - n_first) :].lstrip()}"


def _visible(character: str) -> str:
    if unicodedata.category(character) == "Zs":  # no-break and other blanks
        return " "
    return character.encode("unicode_escape").decode("ascii")


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
        # Texts of libraries may quote anything from a file, and parts are shown by themselves too.
        self.actual = one_line(actual, max_chars=800)
        self.expected = one_line(expected, max_chars=400)
        self.hint = one_line(hint, max_chars=600)
        super().__init__(where, actual, expected, hint)

    def __str__(self) -> str:
        """Return one line: where, the present state, what was expected, what to do.

        Each part went through :func:`one_line`; none of them can displace the advice at the end.
        """
        text = f"{one_line(self.where, max_chars=400)}: {self.actual}"
        if self.expected:
            text = f"{_without_full_stop(text)}; expected {self.expected}"
        if self.hint:
            text = f"{_without_full_stop(text)}. {self.hint}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the keyword-only arguments too, for errors of worker processes."""
        rebuild = partial(type(self), actual=self.actual, expected=self.expected, hint=self.hint)
        return rebuild, (self.where,)


def _without_full_stop(text: str) -> str:
    return text if text.endswith("..") else text.removesuffix(".")


class TableError(MilError):
    """A CSV table that cannot be read or lacks what is needed."""


class OutputError(MilError):
    """A file or folder that cannot be written."""


class SlideError(MilError):
    """A slide that no reader can open, or whose pixels cannot be read."""


class MultiImageError(SlideError):
    """A file of several images of one size in px, none of them marked as the slide."""


class SceneError(SlideError):
    """A scene that a file does not have."""


class TileError(SlideError):
    """One region of a slide whose pixels cannot be decoded, even on a fresh handle."""


class UnsupportedFormatError(SlideError):
    """A file whose pixels are stored in a way that no reader supports, such as float32 or CMYK."""


class ResolutionError(MilError):
    """A resolution (mpp) that is implausible or that the slide does not have."""


class EncoderError(MilError):
    """An encoder that does not exist, or weights that are missing or do not fit."""


class FilterError(MilError):
    """A tile filter that cannot be fitted, read, or applied to these embeddings."""


class BagError(MilError):
    """A bag file that is missing, damaged, incomplete or of another kind."""
