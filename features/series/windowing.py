"""Windows: which Hounsfield units become black, white and what lies between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.errors import MilError

__all__ = ["DEFAULT_WINDOWS", "WINDOWS", "Window", "parse_windows"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A range of Hounsfield units that is spread over 0 to 255."""

    centre_hu: float
    """Middle of the range, HU."""
    width_hu: float
    """Its width, HU."""

    def __call__(self, values_hu: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Grey levels, uint8, of values in HU, of the same shape; beyond the range 0 or 255."""
        low = self.centre_hu - self.width_hu / 2
        shares = np.clip((values_hu - low) / self.width_hu, 0, 1)
        return np.asarray(np.rint(255 * shares), np.uint8)


WINDOWS = {
    "brain": Window(centre_hu=40, width_hu=80),
    "subdural": Window(centre_hu=80, width_hu=200),
    "bone": Window(centre_hu=600, width_hu=2800),
    "soft": Window(centre_hu=40, width_hu=380),
}
"""Windows that radiologists look at heads through, by name; ``soft`` is for soft tissue."""

DEFAULT_WINDOWS = "brain,subdural,soft"
"""One for each channel that a backbone sees."""


def parse_windows(text: str) -> tuple[Window, Window, Window]:
    """Three windows from what a user wrote.

    Parameters
    ----------
    text
        Three of :data:`WINDOWS` or ``centre/width`` in HU, joined by commas.

    Raises
    ------
    MilError
        If it is anything else.

    Examples
    --------
    >>> parse_windows("brain,subdural,600/2800")[2]
    Window(centre_hu=600.0, width_hu=2800.0)
    """
    windows = tuple(WINDOWS.get(part.strip()) or _numbers(part, text) for part in text.split(","))
    if len(windows) != 3:
        raise _refusal(text, found=f"{len(windows)} windows")
    return windows


def _numbers(part: str, text: str) -> Window:
    try:
        centre, width = map(float, part.split("/"))
    except ValueError as error:
        raise _refusal(text, found=f"{part!r}") from error
    if not (abs(centre) < 1e5 and 0 < width < 1e5):
        raise _refusal(text, found=f"{part!r}")
    return Window(centre_hu=centre, width_hu=width)


def _refusal(text: str, *, found: str) -> MilError:
    return MilError(
        f"windows {text!r}",
        actual=found,
        expected=f"three of {', '.join(WINDOWS)} or centre/width, such as {DEFAULT_WINDOWS}",
    )
