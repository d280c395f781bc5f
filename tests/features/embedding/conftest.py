from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from features.encoders.base import Encoder
from features.encoders.encoder import load_encoder
from features.slides.synthetic import make_cohort, render_slide, write_slide


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """A small network with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), path)
    return load_encoder("test_vit", weights_path=path, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def painted_slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two painted slides, a blank one, and a file that is no slide."""
    folder = tmp_path_factory.mktemp("slides")
    for number, plan in enumerate(make_cohort(n_patients=2, seed=1, signal=1.0)[:2]):
        write_slide(folder / f"s{number}.tif", render_slide(plan)[600:2600, 600:2600])
    write_slide(folder / "blank.tif", np.full((900, 900, 3), (196, 211, 192), np.uint8))
    (folder / "broken.tif").write_bytes(b"II*\x00 no more")
    return folder


@pytest.fixture
def slides(painted_slides: Path, tmp_path: Path) -> Path:
    """A copy of the painted slides, which a test may change."""
    return shutil.copytree(painted_slides, tmp_path / "slides")
