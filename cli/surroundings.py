"""What a terminal gives a process, made fit for work: the limit of open files, the streams."""

from __future__ import annotations

import io
import sys
from contextlib import suppress

__all__ = ["allow_more_files", "print_anything"]


def allow_more_files() -> None:
    """Raise the limit of open files as far as this process may; macOS begins at 256."""
    try:
        import resource
    except ImportError:  # Windows, where there is no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # macOS calls its hard limit unlimited, and refuses it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def print_anything() -> None:
    """Let characters that the terminal's encoding lacks, such as µ, be printed as ``?``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
