"""The fuzzing itself, and a bounded part of it; all of it is ``make fuzz``."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.cases import Case, Finding, fuzz, spoilt
from tests.fuzz.mutators import mutate
from tests.fuzz.targets import TARGETS
from tests.fuzz.toys import TOYS

QUICK = [name for name in TARGETS if name != "run"]
"""Without the one whose healthy files need a training."""


def findings(n_cases: dict[str, int], *, seed: int) -> list[Finding]:
    real = Path(os.environ["MIL_DATA"]) if os.environ.get("MIL_DATA") else None
    outcomes = fuzz(n_cases, seed=seed, real=real)
    assert {name: result.counts.total() for name, result in outcomes.items()} == n_cases
    return [result for outcome in outcomes.values() for result in outcome.findings]


@pytest.mark.ci
def test_few_spoilt_files_of_every_kind_are_read_or_refused() -> None:
    assert findings(dict.fromkeys(QUICK, 12), seed=1) == []


@pytest.mark.slow
def test_many_spoilt_files_of_every_kind_are_read_or_refused() -> None:
    assert findings({name: 60 * target.share for name, target in TARGETS.items()}, seed=2) == []


@pytest.mark.slow
def test_every_kind_of_misbehaviour_is_found() -> None:
    outcomes = fuzz(dict.fromkeys(TOYS.keys() - {"toy hang"}, 2), seed=0)
    outcomes |= fuzz({"toy hang": 2}, seed=0, most_seconds=1)
    for name, outcome in outcomes.items():
        kind = name.removeprefix("toy ")
        assert set(outcome.counts) == {kind}
        assert len(outcome.findings) == (0 if kind == "refused" else 2)
    (data, _) = outcomes["toy traceback"].findings
    assert "ZeroDivisionError" in data.told
    assert "SIGABRT" in outcomes["toy crash"].findings[0].told
    assert "_hang" in outcomes["toy hang"].findings[0].told


def test_a_case_comes_again_from_its_number_and_another_is_another() -> None:
    samples = [
        {"a.csv": b"a,b\n1,2\n" * 9, "b.json": b'{"a": [1, 2]}'},
        {"c.tif": bytes(range(99))},
    ]
    first = [spoilt(samples, Case("t", 0, number)) for number in range(50)]
    assert first == [spoilt(samples, Case("t", 0, number)) for number in range(50)]
    assert first != [spoilt(samples, Case("t", 1, number)) for number in range(50)]
    assert all(sample not in samples for sample in first[:1])


@given(
    data=st.binary(max_size=300),
    suffix=st.sampled_from([".tif", ".csv", ".json", ".safetensors", ".png", ".zip", ".h5"]),
    seed=st.integers(0, 1000),
)
def test_anything_can_be_spoilt(data: bytes, suffix: str, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a case must come again
    assert isinstance(mutate(f"a{suffix}", data, rng, [data]), bytes)
