from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.errors import RunError
from mil.heads import HeadOutput, attention, build_head, head_names, transmil
from mil.heads.base import fast_tanh
from mil.heads.dropout import ByteDropout
from tests.batches import pad


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
            if head.depends_on_order:
                order = torch.arange(len(bag))
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
@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_the_auxiliary_loss_ignores_order_and_padding(
    name: str, lengths: list[int], seed: int
) -> None:
    head = make(name)
    generator = torch.Generator().manual_seed(seed)
    bags = [torch.randn(length, 6, generator=generator) for length in lengths]
    truth = torch.randint(0, 3, (len(bags),), generator=generator)
    batch = pad(bags)
    together = head.auxiliary_loss(head(*batch), batch.mask, truth)
    for index, bag in enumerate(bags):
        batch = pad([bag[torch.randperm(len(bag), generator=generator)]])
        alone = head.auxiliary_loss(head(*batch), batch.mask, truth[index : index + 1])
        if together is None:
            assert alone is None
        else:
            torch.testing.assert_close(alone[0], together[index], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", head_names())
def test_every_weight_of_a_head_is_learned(name: str) -> None:
    head = make(name).train()
    batch = pad([torch.randn(length, 6) for length in (5, 9, 20)])
    truth = torch.tensor([0, 1, 2])
    output = head(*batch)
    loss = torch.nn.functional.cross_entropy(output.logits, truth)
    auxiliary = head.auxiliary_loss(output, batch.mask, truth)
    (loss if auxiliary is None else loss + auxiliary.mean()).backward()
    idle = [key for key, weight in head.named_parameters() if weight.grad is None]
    assert idle == []
    assert all(torch.isfinite(weight.grad).all() for weight in head.parameters())


@pytest.mark.parametrize("name", head_names())
def test_contributions_and_tile_logits_have_one_row_a_tile_or_are_none(name: str) -> None:
    batch = pad([torch.randn(length, 6) for length in (5, 9)])
    output = make(name)(*batch)
    linear = {"additive", "attention", "clam", "gated", "mean", "ordered"}
    assert (output.contributions is not None) == (name in linear)
    for part in (output.contributions, output.tile_logits):
        assert part is None or part.shape == (2, 9, 3)
    if output.contributions is not None:
        torch.testing.assert_close(output.contributions.sum(dim=1), output.logits)
        assert not output.contributions[0, 5:].any()


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
        v = torch.tanh(h @ head.fc_v.weight.T + head.fc_v.bias)
        u = torch.sigmoid(h @ head.fc_u.weight.T + head.fc_u.bias)
        a = torch.softmax((v * u) @ head.fc_w.weight[0], dim=0)
        logits = head.classify(a @ h)
    torch.testing.assert_close(output.attention[0], a)
    torch.testing.assert_close(output.logits[0], logits)


def evaluate(name: str, tiles: torch.Tensor) -> tuple[torch.nn.Module, HeadOutput, torch.Tensor]:
    """The head, what it says of one patient, and the patient's embedded tiles."""
    head = make(name).requires_grad_(False)
    output = head(tiles[None], torch.ones(1, len(tiles), dtype=torch.bool))
    return head, output, head.embed(head.whitening(tiles))


def test_additive_contributions_are_attention_times_a_perceptron_and_sum_to_the_logits() -> None:
    head, output, h = evaluate("additive", torch.randn(7, 6))
    expected = output.attention[0, :, None] * head.classify(h)
    torch.testing.assert_close(output.contributions[0], expected)
    assert torch.equal(output.contributions.sum(dim=1), output.logits)


def test_max_takes_the_largest_tile_logit_and_splits_attention_between_equal_tiles() -> None:
    tiles = torch.randn(5, 6)
    head, output, h = evaluate("max", tiles)
    z = head.classify(h)
    torch.testing.assert_close(output.logits[0], z.amax(dim=0))
    expected = torch.zeros(5).index_add(0, z.argmax(dim=0), torch.full((3,), 1 / 3))
    torch.testing.assert_close(output.attention[0], expected)
    _, doubled, _ = evaluate("max", torch.cat([tiles, tiles]))
    torch.testing.assert_close(doubled.attention[0].view(2, 5).sum(dim=0), expected)
    _, alike, _ = evaluate("max", torch.zeros(4, 6))
    torch.testing.assert_close(alike.attention[0], torch.full((4,), 0.25))


def test_log_sum_exp_equals_its_formula_and_lies_between_mean_and_max() -> None:
    head, output, h = evaluate("lse", torch.randn(6, 6))
    z = head.classify(h)
    torch.testing.assert_close(output.logits[0], (4 * z).exp().mean(dim=0).log() / 4)
    torch.testing.assert_close(output.attention[0], (4 * z).softmax(dim=0).mean(dim=1))
    assert (output.logits[0] >= z.mean(dim=0)).all()
    assert (output.logits[0] <= z.amax(dim=0)).all()


def test_dual_stream_equals_its_formula() -> None:
    head, output, h = evaluate("dsmil", torch.randn(6, 6))
    z, q = head.classify_tiles(h), torch.tanh(head.query(h))
    attention = torch.stack([(q @ q[z[:, c].argmax()] / 8).softmax(dim=0) for c in range(3)])
    second = head.classify((attention @ h).flatten())
    torch.testing.assert_close(output.logits[0], (z.amax(dim=0) + second) / 2)
    torch.testing.assert_close(output.attention[0], attention.mean(dim=0))


@pytest.mark.parametrize("n_tiles", [2, 7, 40])
def test_the_instance_loss_of_clam_equals_its_formula(n_tiles: int) -> None:
    head, output, _ = evaluate("clam", torch.randn(n_tiles, 6))
    mask = torch.ones(1, n_tiles, dtype=torch.bool)
    k = min(8, n_tiles // 2)
    order = output.attention[0].argsort(descending=True)
    proba = output.tile_logits[0].sigmoid()
    most, least = proba[order[:k]], proba[order[-k:]]
    own = -torch.cat([most[:, 1].log(), (1 - least[:, 1]).log()]).mean()
    others = -sum((1 - most[:, c]).log().mean() for c in (0, 2))
    found = head.auxiliary_loss(output, mask, torch.tensor([1]))
    torch.testing.assert_close(found[0], 0.3 / 0.7 * (own + others) / 3)


def test_clam_has_nothing_to_learn_from_a_single_tile() -> None:
    head, output, _ = evaluate("clam", torch.randn(1, 6))
    found = head.auxiliary_loss(output, torch.ones(1, 1, dtype=torch.bool), torch.tensor([1]))
    assert found.item() == 0


def test_transmil_looks_at_evenly_spread_tiles_of_a_large_bag_in_any_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transmil, "MAX_TILES", 8)
    tiles = torch.randn(24, 6)
    order = torch.randperm(24)
    head, output, _ = evaluate("transmil", tiles)
    _, shuffled, _ = evaluate("transmil", tiles[order])
    torch.testing.assert_close(shuffled.logits, output.logits)
    torch.testing.assert_close(shuffled.attention[0], output.attention[0][order])
    along = head.whitening(tiles)[:, 0].argsort()
    assert output.attention[0].nonzero()[:, 0].tolist() == sorted(along[::3].tolist())
    torch.testing.assert_close(output.attention.sum(), torch.tensor(1.0))


def test_transmil_treats_a_small_bag_beside_a_large_one_as_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transmil, "MAX_TILES", 8)
    small, large = torch.randn(5, 6), torch.randn(24, 6)
    with torch.inference_mode():
        together = make("transmil")(*pad([small, large]))
    _, alone, _ = evaluate("transmil", small)
    torch.testing.assert_close(together.logits[0], alone.logits[0])
    torch.testing.assert_close(together.attention[0, :5], alone.attention[0])


def test_an_unknown_head_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RunError, match="attention or clam or dsmil or gated or lse or max or mean"):
        build_head("clan", dim=2, n_components=2, n_classes=2)


def test_the_reference_page_lists_every_head_with_its_number_of_weights() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "heads.md").read_text("utf-8")
    for name in head_names():
        head = build_head(name, dim=1280, n_components=64, n_classes=2)
        n_weights = sum(weight.numel() for weight in head.parameters())
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` "))
        assert f"| {n_weights:,} |" in row


def test_dropout_drops_its_share_and_keeps_the_mean_while_it_is_trained() -> None:
    torch.manual_seed(0)
    dropout = ByteDropout(64)
    ones = torch.ones(1001, 99)  # not a multiple of eight
    dropped = dropout(ones)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    # Neighbours share a random number, but not their fate.
    both = (dropped[:, 1:] == 0) & (dropped[:, :-1] == 0)
    assert both.float().mean().item() == pytest.approx(1 / 16, abs=0.004)
    assert not torch.equal(dropped, dropout(ones))
    assert torch.equal(dropout.eval()(ones), ones)


def test_quick_tanh_is_tanh() -> None:
    x = torch.linspace(-20, 20, 4001, requires_grad=True)
    torch.testing.assert_close(fast_tanh(x), torch.tanh(x), atol=3e-7, rtol=0)
    (slope,) = torch.autograd.grad(fast_tanh(x).sum(), x)
    torch.testing.assert_close(slope, 1 - torch.tanh(x.detach()) ** 2, atol=1e-6, rtol=0)


def test_the_gradient_of_the_gate_is_that_of_its_formula() -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(7, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = torch.randn(7, 5, dtype=torch.float64)
    slopes = [
        torch.autograd.grad((found * weights).sum(), (x, y))
        for found in (attention._GatedTanh.apply(x, y), torch.tanh(x) * torch.sigmoid(y))
    ]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


def test_only_the_ordered_head_minds_the_order_of_tiles() -> None:
    bag = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    for name in head_names():
        head = make(name)
        with torch.inference_mode():
            one, other = head(*pad([bag])).logits, head(*pad([bag.flip(0)])).logits
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5) != head.depends_on_order
    assert [name for name in head_names() if make(name).depends_on_order] == ["ordered"]


def test_an_ordered_head_learns_what_only_the_order_tells() -> None:
    torch.manual_seed(0)
    head = build_head("ordered", dim=2, n_components=2, n_classes=2)
    bags, truth = torch.randn(200, 8, 2) * 0.1, torch.arange(200) % 2
    bags[torch.arange(200), torch.where(truth == 1, 6, 1), 0] += 3  # late, or early
    mask = torch.ones(200, 8, dtype=torch.bool)
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(head(bags, mask).logits, truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (head.eval()(bags, mask).logits.argmax(dim=1) == truth).float().mean() > 0.95
