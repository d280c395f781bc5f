from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The consoles of the commands look at these when they are first imported.
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "200"

# A property is checked on as many examples as on any machine, however slow that machine is.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def mil_data() -> Path:
    """Folder of real data that MIL_DATA names; the test skips where it is not set."""
    if not os.environ.get("MIL_DATA"):
        pytest.skip("MIL_DATA is not set: it names the folder of real data this test reads")
    return Path(os.environ["MIL_DATA"])
