"""Heads side by side; :mod:`tests.mil.training.test_trainer` teaches them."""

from __future__ import annotations

import pytest
import torch

from mil.heads import Head, StackedHeads, build_head, can_stack, head_names
from mil.heads.random_streams import RandomStreams
from tests.batches import pad

STACKED = ("additive", "attention", "clam", "dsmil", "gated", "lse", "max", "mean", "ordered")


def make(name: str, n_heads: int) -> list[Head]:
    torch.manual_seed(0)
    heads = [build_head(name, dim=5, n_components=5, n_classes=3) for _ in range(n_heads)]
    for head in heads:
        for weight in head.parameters():  # the mean's start at zero
            torch.nn.init.normal_(weight, std=0.3)
    return heads


def test_all_heads_can_be_stacked_but_those_with_weights_outside_linear_maps() -> None:
    assert tuple(name for name in head_names() if can_stack(make(name, 1)[0])) == STACKED


@pytest.mark.parametrize("name", STACKED)
def test_a_stack_says_and_learns_of_each_patient_what_its_head_does(name: str) -> None:
    heads = make(name, 3)
    bags = [torch.randn(length, 5) for length in (4, 9, 1, 6, 3, 8)]
    truth = torch.tensor([0, 1, 2, 1, 0, 2])
    batch = pad(bags)
    stack = StackedHeads([head.eval() for head in heads], RandomStreams())
    output = stack.module.forward_components(*batch)
    own = stack.module.auxiliary_loss(output, batch.mask, truth)
    (output.logits.logsumexp(1) + (0 if own is None else own)).sum().backward()
    for place, head in enumerate(heads):
        part = slice(2 * place, 2 * place + 2)
        alone = head.forward_components(batch.features[part], batch.mask[part])
        torch.testing.assert_close(alone.logits, output.logits[part])
        torch.testing.assert_close(alone.attention, output.attention[part])
        auxiliary = head.auxiliary_loss(alone, batch.mask[part], truth[part])
        (alone.logits.logsumexp(1) + (0 if auxiliary is None else auxiliary)).sum().backward()
        for weight, stacked in zip(head.parameters(), stack.parameters(), strict=True):
            torch.testing.assert_close(stacked.grad[place], weight.grad, rtol=1e-4, atol=1e-5)


def test_weights_are_copied_in_and_out() -> None:
    heads, others = make("gated", 3), make("gated", 4)[1:]
    stack = StackedHeads(heads, RandomStreams())
    stack.export(1, others[0])
    for weight, copied in zip(heads[1].parameters(), others[0].parameters(), strict=True):
        assert torch.equal(weight, copied)
        assert weight.data_ptr() != copied.data_ptr()


def test_a_head_alone_is_its_own_module() -> None:
    (head,) = make("transmil", 1)
    stack = StackedHeads([head], RandomStreams())
    assert type(stack.module) is type(head)
    assert stack.per_head(stack.parameters()[0]).shape[0] == 1


def test_heads_that_stay_go_on_as_if_the_others_had_never_been_there() -> None:
    found = []
    for indices in ([0, 1, 2], [0, 2]):
        heads = make("gated", 3)
        stack = StackedHeads([heads[index] for index in indices], RandomStreams())
        optimiser = torch.optim.AdamW(stack.parameters(), lr=0.1, fused=True)
        for step in range(4):
            if step == 2 and len(indices) == 3:
                stack.select([0, 2], optimiser)
            bags = torch.linspace(-1, 1, 60).view(1, 12, 5).expand(stack.n_heads, -1, -1)
            optimiser.zero_grad()
            output = stack.module.eval().forward_components(
                bags, torch.ones(stack.n_heads, 12).bool()
            )
            output.logits[:, 1].square().sum().backward()
            optimiser.step()
        found.append([weight.detach().clone() for weight in stack.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
