"""Standard output and standard error on disks that are full, or of terminals that are gone."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, TypeVar

from features.errors import OutputError

__all__ = ["EXIT_UNREAD", "guard_standard_streams", "known_errors"]

EXIT_UNREAD = 141
"""Exit code where nobody reads the results any more: that of the signal SIGPIPE in a shell."""

_Kind = TypeVar("_Kind", bound=io.TextIOWrapper)


class _Results(io.TextIOWrapper):
    """Standard output: results that cannot be written are a known error."""

    def write(self, text: str, /) -> int:
        if text == "":  # Typer tries streams out by that, and takes no notice of errors
            return 0
        with known_errors(self):
            return super().write(text)

    def flush(self) -> None:
        with known_errors(self):
            super().flush()


class _Messages(io.TextIOWrapper):
    """Standard error: a message that cannot be written stops no work."""

    def write(self, text: str, /) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def guard_standard_streams() -> None:
    """Let standard output and error take any text, and fail in a known way or not at all.

    Characters that their encoding lacks, such as µ, are written as ``?``. A stream that is closed
    leads to nothing: else the next file that is opened, such as a bag, would get its number, and
    whatever libraries print there.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)  # noqa: FBT003 - positional only
    os.close(number)
    sys.stdout = _guard(sys.stdout, 1, _Results)
    sys.stderr = _guard(sys.stderr, 2, _Messages)


def _guard(stream: object, number: int, kind: type[_Kind]) -> _Kind:
    if not isinstance(stream, io.TextIOWrapper):  # closed when Python started
        return kind(open(number, "wb", closefd=False), "utf-8")
    encoding, is_unbuffered = stream.encoding, stream.write_through
    is_by_line = stream.line_buffering
    return kind(
        stream.detach(), encoding, "replace", line_buffering=is_by_line, write_through=is_unbuffered
    )


@contextmanager
def known_errors(stream: TextIO) -> Iterator[None]:
    """Raise OutputError where the stream cannot be written, or leave if nobody reads it.

    What it still holds is thrown away.
    """
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            os.dup2(nothing := os.open(os.devnull, os.O_WRONLY), stream.fileno())
            os.close(nothing)
        if error.errno == errno.EPIPE:  # as head does once it has its lines
            raise SystemExit(EXIT_UNREAD) from error
        raise OutputError(
            "standard output",
            actual=f"cannot be written ({error.strerror or error})",
            hint="Free some space, or send it elsewhere.",
        ) from error
