"""How series become bags: what is chosen beforehand, and the fingerprint that tells it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from features.bags.bag import Fingerprint, as_json
from features.encoders.encoder import Encoder
from features.errors import BagError
from features.series.windowing import DEFAULT_WINDOWS, Window, parse_windows

__all__ = [
    "SeriesConfig",
    "fingerprint_of_series",
    "is_series_fingerprint",
    "series_config_from_fingerprint",
]


@dataclass(frozen=True, kw_only=True)
class SeriesConfig:
    """How series become bags."""

    side_px: int = 224
    """Side of the square that an image is scaled to, as a whole and with its shape kept."""
    windows: tuple[Window, Window, Window] = parse_windows(DEFAULT_WINDOWS)
    """What slices of a CT are looked at through, one a channel."""
    batch_images: int = 64
    """Images through the backbone at once."""
    n_workers: int = 4
    """Threads that decode."""
    max_failed: float = 0.2
    """Share of a series' images that may fail to decode before the series fails, 0 to 1."""


def fingerprint_of_series(encoder: Encoder, settings: SeriesConfig) -> Fingerprint:
    """How bags of this encoder and these settings are told from others.

    A resolution is not part of it: images are scaled whole, whatever they show.
    """
    return Fingerprint(
        encoder=encoder.name,
        weights_sha256=encoder.weights_sha256,
        transform=encoder.preprocessing.as_json(),
        dim=encoder.dim,
        tile_px=settings.side_px,
        target_mpp=0.0,
        overlap_px=0,
        tissue=as_json(images="whole", windows=[asdict(window) for window in settings.windows]),
    )


def series_config_from_fingerprint(fingerprint: Fingerprint, **others: int) -> SeriesConfig:
    """Settings that make bags of this fingerprint, given the same encoder.

    Parameters
    ----------
    fingerprint
        Of bags of images.
    others
        Fields of :class:`SeriesConfig` that bags do not tell.

    Raises
    ------
    BagError
        If it is not of series of images.
    """
    try:
        first, second, third = (Window(**w) for w in json.loads(fingerprint.tissue)["windows"])
    except (KeyError, TypeError, ValueError) as error:
        raise BagError(
            "the run's bags", actual="bags that were not made of series of images",
            expected="bags made by 'mil embed --series'",
        ) from error  # fmt: skip
    return SeriesConfig(side_px=fingerprint.tile_px, windows=(first, second, third), **others)


def is_series_fingerprint(fingerprint: Fingerprint) -> bool:
    """Whether bags of this fingerprint were made of series of images."""
    try:
        series_config_from_fingerprint(fingerprint)
    except BagError:
        return False
    return True
