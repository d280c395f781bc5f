"""Choice of the fastest runtime that an earlier run made, kept in the cache; without torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from features.encoders import runtime_cache
from features.encoders.execution import EAGER, Runtime, parse_execution
from features.encoders.exports import are_few, choice_name
from features.errors import CONTENT_ERRORS, EncoderError

__all__ = ["CACHED_START_S", "SLOW_START", "RuntimeForecast", "StoredChoice"]

CACHED_START_S = 2.0
"""Assumed time to load an export from the cache and to compare its embeddings, seconds."""

SLOW_START = 1.5
"""Times longer than assumed that a start may take on a busy machine, for the run to keep to it."""


@dataclass(frozen=True, kw_only=True)
class RuntimeForecast:
    """Runtime expected of a selection, its tiles per second, and the seconds to choose it."""

    runtime: Runtime
    tiles_per_s: float
    start_s: float


@dataclass(frozen=True, kw_only=True)
class StoredChoice:
    """Choice of an earlier run on this machine, with the rates of all trials, tiles per second."""

    runtime: str
    rates: dict[str, float]
    batch_tiles: int

    @classmethod
    def read(
        cls, cache_key: str, shape: tuple[int, ...], *, device_type: str, n_threads: int
    ) -> StoredChoice | None:
        """Return what is stored for batches of a shape, (batch, 3, side, side) in px, or None."""
        name = choice_name(cache_key, shape, device_type, n_threads)
        content = runtime_cache.load(name) if cache_key else None
        try:
            stored = cls(**json.loads(content or b""), batch_tiles=shape[0])
            parse_execution(stored.runtime)
            rates = {name: float(rate) for name, rate in stored.rates.items()}
        except (*CONTENT_ERRORS, EncoderError):
            return None
        return stored if {str(EAGER), stored.runtime} <= rates.keys() else None

    def write(
        self, cache_key: str, shape: tuple[int, ...], *, device_type: str, n_threads: int
    ) -> None:
        """Store the choice; a runtime that was compared with nothing is none."""
        if cache_key and len(self.rates) > 1:
            name = choice_name(cache_key, shape, device_type, n_threads)
            content = json.dumps({"runtime": self.runtime, "rates": self.rates}).encode()
            runtime_cache.store(name, content)

    def pays_off(self, n_tiles: float) -> bool:
        """Return whether so many tiles pay for the start of the runtime from the cache."""
        saved_s = n_tiles * (1 / self.rates[str(EAGER)] - 1 / self.rates[self.runtime])
        return saved_s > SLOW_START * CACHED_START_S

    def forecast(self, eager_tiles_per_s: float, n_tiles: float) -> RuntimeForecast:
        """Return what the next selection will begin with, and the seconds that takes."""
        few = math.isnan(eager_tiles_per_s) or are_few(n_tiles, self.batch_tiles)
        if few or self.runtime == str(EAGER) or not self.pays_off(n_tiles):
            return RuntimeForecast(runtime=EAGER, tiles_per_s=eager_tiles_per_s, start_s=0.0)
        gain = self.rates[self.runtime] / self.rates[str(EAGER)]
        return RuntimeForecast(
            runtime=parse_execution(self.runtime)[0], tiles_per_s=eager_tiles_per_s * gain,
            start_s=CACHED_START_S,
        )  # fmt: skip
