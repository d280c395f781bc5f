"""Windows of Hounsfield units, which map a CT slice to grey levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.errors import MilError

__all__ = ["DEFAULT_WINDOWS", "WINDOWS", "Window", "parse_windows"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """Linear map of a range of Hounsfield units to grey levels 0 to 255, for arrays of any shape.

    Units are clipped to the range, whose centre and width are in HU.
    """

    centre_hu: float
    width_hu: float

    def __call__(self, values_hu: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Return the grey levels, uint8, of values in HU; the shape stays."""
        low = self.centre_hu - self.width_hu / 2
        shares = np.clip((values_hu - low) / self.width_hu, 0, 1)
        return np.asarray(np.rint(255 * shares), np.uint8)


WINDOWS = {
    "brain": Window(centre_hu=40, width_hu=80),
    "subdural": Window(centre_hu=80, width_hu=200),
    "bone": Window(centre_hu=600, width_hu=2800),
    "soft": Window(centre_hu=40, width_hu=380),
}
"""Usual windows of head CT by name; ``soft`` is for soft tissue."""

DEFAULT_WINDOWS = "brain,subdural,soft"
"""One window per input channel of an encoder."""


def parse_windows(text: str) -> tuple[Window, Window, Window]:
    """Parse three of :data:`WINDOWS` or ``centre/width`` in HU, joined by commas.

    Raises
    ------
    MilError
        If the text is anything else.

    Examples
    --------
    >>> parse_windows("brain,subdural,600/2800")[2]
    Window(centre_hu=600.0, width_hu=2800.0)
    """
    parts = text.split(",")
    windows = tuple(WINDOWS.get(part.strip()) or _parse_window(part, text) for part in parts)
    if len(windows) != 3:
        raise _error(text, actual=f"{len(windows)} windows")
    return windows


def _parse_window(part: str, text: str) -> Window:
    try:
        centre, width = map(float, part.split("/"))
    except ValueError as error:
        raise _error(text, actual=f"{part!r}") from error
    if not (abs(centre) < 1e5 and 0 < width < 1e5):
        raise _error(text, actual=f"{part!r}")
    return Window(centre_hu=centre, width_hu=width)


def _error(text: str, *, actual: str) -> MilError:
    return MilError(
        f"windows {text!r}",
        actual=actual,
        expected=f"three of {', '.join(WINDOWS)} or centre/width, such as {DEFAULT_WINDOWS}",
    )
