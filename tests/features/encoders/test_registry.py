from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from features.encoders import registry
from features.encoders.registry import (
    COMMON_ENCODERS,
    EncoderInfo,
    encoder_info,
    list_encoders,
    measure_encoder,
)
from features.encoders.weights import DEFAULT_BACKBONE, build_untrained
from features.errors import EncoderError


def test_the_default_backbone_is_described_with_its_weights() -> None:
    assert encoder_info(DEFAULT_BACKBONE) == EncoderInfo(
        name=DEFAULT_BACKBONE, input_px=224, dim=1280, n_parameters=3_371_008,
        licence="apache-2.0", weights_here="package",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_description_without_memory_equals_the_real_network(name: str) -> None:
    model = build_untrained(name).eval()
    info = encoder_info(name)
    assert info.n_parameters == sum(p.numel() for p in model.parameters())
    with torch.inference_mode():
        shape = model(torch.zeros(1, 3, info.input_px, info.input_px)).shape
    assert shape == (1, info.dim)


@pytest.mark.parametrize("name", COMMON_ENCODERS)
def test_all_common_encoders_give_one_vector(name: str) -> None:
    info = encoder_info(name)
    assert not info.unusable
    assert info.dim > 0


def test_a_model_without_pooling_is_unusable_and_does_not_stop_the_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "build_untrained", lambda name: torch.nn.Identity())
    monkeypatch.setattr(
        registry, "resolve_preprocessing", lambda model, **_: SimpleNamespace(input_px=8)
    )
    info = encoder_info("resnet18")
    assert info.unusable == "an output of shape (1, 3, 8, 8) for one tile"
    assert (info.dim, info.licence) == (0, "apache-2.0")


def test_names_are_found_by_pattern() -> None:
    assert {"test_vit", "test_vit2"} <= set(list_encoders("test_vit*"))
    assert "resnet50.a1_in1k" in list_encoders("resnet50.*")
    with pytest.raises(EncoderError, match=r"Did you mean .*resnet50"):
        list_encoders("resnet_50")
    with pytest.raises(EncoderError, match="timm knows no such tag of it"):
        list_encoders("resnet50.no_such_tag")


def test_the_short_list_holds_what_the_hubs_cache_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("timm/vit_tiny_patch16_224.augreg_in21k", "other/model", "timm/not_a_model")
    repos = [SimpleNamespace(repo_id=name) for name in names]
    monkeypatch.setattr(registry, "scan_cache_dir", lambda: SimpleNamespace(repos=repos))
    assert list_encoders() == [*COMMON_ENCODERS, "vit_tiny_patch16_224.augreg_in21k"]


def test_a_backbone_is_measured_with_random_weights() -> None:
    rate, ran = measure_encoder("test_efficientnet", device=torch.device("cpu"), batch_tiles=2)
    assert rate > 0
    assert ran == "eager float32 batch 2"
