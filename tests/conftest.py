from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Several processes share the cores, so none takes them all; libraries read this when imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests neither read nor fill the user's cache; what they store ends with the process.
os.environ["MIL_CACHE"] = tempfile.mkdtemp(prefix="mil-cache-")
# The consoles of the commands read these when they are first imported.
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "200"

import pytest
from hypothesis import settings

# The same examples on every machine and in every run; make fuzz searches for others.
settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.register_profile("search", deadline=None, max_examples=400, print_blob=True)
settings.load_profile("steady")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["MIL_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def mil_data() -> Path:
    """Folder of real data that MIL_DATA names; the test skips where it is not set."""
    if not os.environ.get("MIL_DATA"):
        pytest.skip("MIL_DATA is not set: it names the folder of real data this test reads")
    return Path(os.environ["MIL_DATA"])


@pytest.fixture
def sigint_reaches_children() -> Iterator[None]:
    """Start processes that Ctrl-C ends also where it is ignored: under nohup, in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Collect the processes that a test starts; those that still run are killed at its end."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def quick_runs() -> Iterator[pytest.MonkeyPatch]:
    """Train runs with few resamples, and paint figures of pages without laying them out.

    Intervals are tested where they are computed, and figures where ``drawn_figures`` is used.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    from mil.multilabel.train import train_labels
    from mil.reporting import figures
    from mil.training_run import train_run

    class Sketch(Figure):
        def savefig(self, buffer: io.BytesIO, *, format: str, metadata: object) -> None:  # noqa: A002
            if format == "svg":
                buffer.write(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
            else:
                Image.new("L", (1, 1)).save(buffer, format)

    with pytest.MonkeyPatch.context() as patch:
        for train in (train_run, train_labels):
            assert train.__kwdefaults__ is not None
            patch.setitem(train.__kwdefaults__, "n_resamples", 50)
        patch.setattr(figures, "Figure", Sketch)
        yield patch


@pytest.fixture(scope="module")
def drawn_figures(quick_runs: pytest.MonkeyPatch) -> Iterator[None]:
    """Lay out and draw the figures of pages, for modules that look at them."""
    from matplotlib.figure import Figure

    from mil.reporting import figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "Figure", Figure)
        yield
