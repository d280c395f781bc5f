from __future__ import annotations

import pytest

from features.parallel import queue as module
from features.parallel.queue import CrashAwareQueue


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LOOKS", 0.0)


def jobs_dealt(deck: CrashAwareQueue, place: str, n_jobs: int) -> list[object]:
    deals = [deck.deal(place) for _ in range(n_jobs)]
    return [deal and deal.job for deal in deals]


def test_jobs_are_dealt_in_order_to_whoever_asks() -> None:
    deck = CrashAwareQueue("abc")
    assert jobs_dealt(deck, "one", 2) == ["a", "b"]
    assert jobs_dealt(deck, "two", 2) == ["c", None]
    assert (deck.n_waiting, deck.n_in_hand) == (0, 3)
    assert deck.finish("one", 1) == "b"
    assert (deck.n_waiting, deck.n_in_hand) == (0, 2)


def test_what_is_put_back_comes_again() -> None:
    deck = CrashAwareQueue("ab")
    deck.deal("one")
    deck.requeue("one", 0)
    assert deck.n_waiting == 2
    assert jobs_dealt(deck, "two", 3) == ["b", "a", None]


def test_what_the_dead_had_in_hand_is_dealt_alone() -> None:
    deck = CrashAwareQueue("abcd")
    jobs_dealt(deck, "one", 2)
    assert deck.drop("one") == (2, [])
    assert jobs_dealt(deck, "one", 2) == ["a", None]
    assert jobs_dealt(deck, "two", 2) == ["b", None]
    deck.finish("two", 1)
    assert jobs_dealt(deck, "two", 3) == ["c", "d", None]


def test_a_busy_worker_gets_no_job_that_was_with_the_dead() -> None:
    deck = CrashAwareQueue("abc")
    deck.deal("one")
    deck.deal("two")
    deck.drop("one")
    assert jobs_dealt(deck, "two", 2) == ["c", None]
    assert jobs_dealt(deck, "three", 1) == ["a"]


def test_a_job_is_given_up_after_three_deaths_and_the_one_beside_it_is_not() -> None:
    deck = CrashAwareQueue("ab")
    jobs_dealt(deck, "one", 2)
    deck.drop("one")
    assert jobs_dealt(deck, "two", 1) == ["a"]
    assert jobs_dealt(deck, "three", 1) == ["b"]
    assert deck.drop("two") == (1, [])
    assert jobs_dealt(deck, "two", 1) == ["a"]
    assert deck.drop("two") == (0, ["a"])
    assert deck.finish("three", 1) == "b"
    assert (deck.n_waiting, deck.n_in_hand) == (0, 0)
