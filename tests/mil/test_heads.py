from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.data import pad
from mil.errors import RunError
from mil.heads import build_head, head_names


def make(name: str, dim: int = 6) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_head(name, dim=dim, n_components=5, n_classes=3).eval()


@pytest.mark.parametrize("name", head_names())
@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_attention_sums_to_one_and_ignores_order_and_padding(
    name: str, lengths: list[int], seed: int
) -> None:
    head = make(name)
    generator = torch.Generator().manual_seed(seed)
    bags = [torch.randn(length, 6, generator=generator) for length in lengths]
    with torch.inference_mode():
        together = head(*pad(bags))
        for index, bag in enumerate(bags):
            order = torch.randperm(len(bag), generator=generator)
            alone = head(*pad([bag[order]]))
            torch.testing.assert_close(
                alone.logits[0], together.logits[index], rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(
                alone.attention[0],
                together.attention[index, : len(bag)][order],
                rtol=1e-4,
                atol=1e-5,
            )
            assert together.attention[index, len(bag) :].sum() == 0
    torch.testing.assert_close(together.attention.sum(dim=1), torch.ones(len(bags)))
    assert (together.attention >= 0).all()


@pytest.mark.parametrize("name", head_names())
def test_a_patient_without_tiles_gives_finite_numbers(name: str) -> None:
    output = make(name)(torch.zeros(1, 4, 6), torch.zeros(1, 4, dtype=torch.bool))
    assert torch.isfinite(output.logits).all()
    assert output.attention.sum() == 0


def test_gated_attention_equals_its_formula() -> None:
    head = make("gated")
    tiles = torch.randn(1, 7, 6)
    with torch.inference_mode():
        output = head(tiles, torch.ones(1, 7, dtype=torch.bool))
        h = head.embed((tiles[0] - head.whitening.mean) @ head.whitening.matrix)
        v = torch.tanh(h @ head.look.weight.T + head.look.bias)
        u = torch.sigmoid(h @ head.gate.weight.T + head.gate.bias)
        a = torch.softmax((v * u) @ head.weigh.weight[0], dim=0)
        logits = head.classify(a @ h)
    torch.testing.assert_close(output.attention[0], a)
    torch.testing.assert_close(output.logits[0], logits)


def test_an_unknown_head_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RunError, match="attention or gated or mean"):
        build_head("clam", dim=2, n_components=2, n_classes=2)
