"""Settings of an embedding run on image series."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from features.bags.bag import Fingerprint, as_json
from features.embedding.config import BaseEmbedConfig
from features.errors import CONTENT_ERRORS, BagError
from features.series.windowing import DEFAULT_WINDOWS, Window, parse_windows

if TYPE_CHECKING:
    from features.encoders.base import Encoder
    from features.encoders.runtime_cache import EncoderRecord

__all__ = ["SeriesConfig", "is_series_fingerprint", "series_config_from_fingerprint"]


@dataclass(frozen=True, kw_only=True)
class SeriesConfig(BaseEmbedConfig):
    """All settings of an embedding run on image series.

    A whole image is scaled to a square of ``side_px`` px, shape (side_px, side_px, 3), with its
    aspect ratio kept; each window makes one channel of a CT slice.
    """

    side_px: int = 224
    windows: tuple[Window, Window, Window] = parse_windows(DEFAULT_WINDOWS)
    max_failed: float = 0.2

    def make_fingerprint(self, encoder: Encoder | EncoderRecord) -> Fingerprint:
        """Return the fingerprint of bags made with this encoder and these settings.

        It holds no resolution, as images are scaled whole.
        """
        return Fingerprint(
            encoder=encoder.name,
            weights_sha256=encoder.weights_sha256,
            transform=encoder.preprocessing.as_json(),
            dim=encoder.dim,
            tile_px=self.side_px,
            target_mpp=0.0,
            overlap_px=0,
            tissue=as_json(images="whole", windows=[asdict(window) for window in self.windows]),
        )


def series_config_from_fingerprint(fingerprint: Fingerprint, **others: Any) -> SeriesConfig:
    """Return the settings that make bags of a fingerprint.

    ``others`` are fields that a fingerprint does not hold, e.g. ``device``.

    Raises
    ------
    BagError
        If the bags do not hold image series.
    """
    try:
        first, second, third = (Window(**w) for w in json.loads(fingerprint.tissue)["windows"])
    except CONTENT_ERRORS as error:
        raise BagError(
            "the run's bags", actual="bags that were not made from image series",
            expected="bags made by 'mil embed --series'",
            hint="Name them with --slides instead of --series.",
        ) from error  # fmt: skip
    return SeriesConfig(
        encoder=fingerprint.encoder, side_px=fingerprint.tile_px,
        windows=(first, second, third), **others,
    )  # fmt: skip


def is_series_fingerprint(fingerprint: Fingerprint) -> bool:
    """Return True if bags of this fingerprint hold image series."""
    try:
        series_config_from_fingerprint(fingerprint)
    except BagError:
        return False
    return True
