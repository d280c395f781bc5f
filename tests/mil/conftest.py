from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def trained_quickly(quick_runs: pytest.MonkeyPatch) -> None:
    """Apply to all tests of this folder."""
