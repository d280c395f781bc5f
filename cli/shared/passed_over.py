"""Files of a folder that were passed over, on the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cli.console import warn

if TYPE_CHECKING:
    from features.slides.search import PassedOver

__all__ = ["passed_over_as_dict", "print_passed_over"]


def print_passed_over(passed_over: Mapping[Path, PassedOver]) -> None:
    """Print a line per reason on stderr: the number of files, and the names of the first five."""
    from features.slides.search import describe_passed_over

    for line in describe_passed_over(passed_over):
        warn(f"passed over: {line}")


def passed_over_as_dict(passed_over: Mapping[Path, PassedOver]) -> dict[str, str]:
    """Return all files that were passed over, with the reason, for JSON."""
    return {str(path): why.reason for path, why in passed_over.items()}
