from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def trained_quickly(quick_runs: pytest.MonkeyPatch) -> None:
    """Apply to all tests of this folder."""


@pytest.fixture
def two_inner_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop heads early on halves of the patients, so that a small cohort suffices."""
    from mil.training import ensemble

    monkeypatch.setattr(ensemble, "N_INNER_FOLDS", 2)
