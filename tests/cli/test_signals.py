"""Commands stopped by Ctrl-C, or by the SIGTERM of a scheduler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from cli.console import finish_on_interrupt, treat_sigterm_as_interrupt
from tests.fakes import write_cohort
from tests.test_stored_run import STORED

PROGRAM = [sys.executable, "-m", "cli"]
IN_BACKGROUND = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *PROGRAM]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("program", "number"),
    [(PROGRAM, signal.SIGINT), (PROGRAM, signal.SIGTERM), (IN_BACKGROUND, signal.SIGTERM)],
)
def test_a_training_stopped_by_a_signal_leaves_a_state_that_resumes(
    tmp_path: Path,
    program: list[str],
    number: int,
    processes: list[subprocess.Popen[str]],
    sigint_reaches_children: None,
) -> None:
    table = write_cohort(tmp_path, n_patients=24, shift=0.8)
    run = tmp_path / "runs" / "run"
    command = [
        *program, "train", "--cohort", str(table), "--bags", str(tmp_path / "bags"), "--run",
        str(run), "--folds", "3", "--nested",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    processes.append(process)
    finished = run.with_name(".run.part")
    while not list(finished.glob("[!.]*.safetensors")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "stopped; what was finished is kept" in stderr
    assert [path.name for path in run.parent.iterdir()] == [".run.part"]
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_finishes_and_the_second_stops_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with finish_on_interrupt() as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_sigterm_interrupts_unless_it_is_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        treat_sigterm_as_interrupt()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        treat_sigterm_as_interrupt()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_inference_stopped_by_a_signal_writes_nothing(
    tmp_path: Path,
    number: int,
    processes: list[subprocess.Popen[str]],
    sigint_reaches_children: None,
) -> None:
    table, out = tmp_path / "patients.csv", tmp_path / "submission.csv"
    os.mkfifo(table)  # whoever reads it waits
    command = [
        *PROGRAM, "infer", "--patients", str(table), "--bags", str(STORED / "bags"), "--run",
        str(STORED / "run"), "--out", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    processes.append(process)
    descriptor = wait_for_reader(table, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    os.close(descriptor)
    assert process.returncode == 130, stderr
    assert "stopped; what was finished is kept" in stderr
    assert not out.exists()


HANGING = """
import time
from concurrent.futures import ThreadPoolExecutor
from cli import app, console
from features.embedding import sources
from features.slides import reader
from features.visualization import preview
def hang(*_, **__):
    with ThreadPoolExecutor(2) as pool:  # as those that decode
        waiting = [pool.submit(time.sleep, 600) for _ in range(2)]
        print("hangs", flush=True)
        raise waiting[0].result()
sources.SILENT_S = 0.5
sources.SlideSource.open = reader.open_slide = preview.open_slide_tiles = hang
class Slow:  # as an encoder that takes long to be freed
    def __del__(self):
        time.sleep(600)
slow = Slow()
console._EXIT_S, console._RELEASE_S = {exit_s}, 60
app.main()
"""


def start_hanging(
    processes: list[subprocess.Popen[str]], folder: Path, *words: str, impatient: bool
) -> subprocess.Popen[str]:
    """Start a command on a slide that hangs, and wait until it does."""
    slide = folder / "s.png"
    Image.new("RGB", (160, 160), "purple").save(slide)
    program = HANGING.format(exit_s=600 if impatient else 5)
    command = [sys.executable, "-c", program, words[0], str(slide), *words[1:]]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "hangs\n", process.communicate()
    return process


EMBED = (
    "embed", "--bags", "bags", "--device", "cpu", "--slide-mpp", "0.5", "--backbone", "test_vit"
)  # fmt: skip


@pytest.mark.ci
@pytest.mark.parametrize("impatient", [False, True])
def test_a_second_ctrl_c_ends_a_run_whose_slide_hangs(
    tmp_path: Path,
    impatient: bool,
    processes: list[subprocess.Popen[str]],
    sigint_reaches_children: None,
) -> None:
    weights = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), weights)
    process = start_hanging(
        processes, tmp_path, *EMBED, "--weights", str(weights), "--execution", "eager",
        impatient=impatient,
    )  # fmt: skip
    assert process.stderr is not None
    assert (tmp_path / "bags" / ".claims" / "s.claim").exists()
    process.send_signal(signal.SIGINT)
    assert any("finishing the slides in progress" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    stderr = insist(process) if impatient else process.communicate(timeout=60)[1]
    assert process.returncode == 130, stderr
    assert stderr.count("stopped; what was finished is kept") == 1
    assert "Traceback" not in stderr
    assert not (tmp_path / "bags" / ".claims").exists()


@pytest.mark.ci
@pytest.mark.parametrize("words", [(*EMBED, "--dry-run"), EMBED, ("inspect",), ("preview",)])
def test_a_slide_that_hangs_is_named_and_ctrl_c_ends_the_command(
    tmp_path: Path,
    words: tuple[str, ...],
    processes: list[subprocess.Popen[str]],
    sigint_reaches_children: None,
) -> None:
    process = start_hanging(processes, tmp_path, *words, impatient=True)
    assert process.stderr is not None
    assert any(f"in work: {tmp_path / 's.png'}. Storage" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert stderr.count("stopped; what was finished is kept") == 1
    assert "Traceback" not in stderr
    assert process.returncode == 130


def insist(process: subprocess.Popen[str]) -> str:
    """Send Ctrl-C until the process ends; return what it printed on standard error."""
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    return process.communicate()[1]


INTERRUPTED = """
import signal, sys
from importlib.metadata import EntryPoint
class Interrupt:
    def find_spec(self, name, *_):
        if name == "cli.synonyms":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""
SCRIPT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
    "scripts"
]["mil"]


@pytest.mark.parametrize(
    "start",
    [
        "import runpy; runpy.run_module('cli', run_name='__main__')",
        f"EntryPoint('mil', {SCRIPT!r}, 'console_scripts').load()()",
    ],
)
def test_ctrl_c_while_the_program_is_loaded_ends_it_without_a_traceback(
    start: str, sigint_reaches_children: None
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED + start], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def wait_for_reader(fifo: Path, process: subprocess.Popen[str]) -> int:
    """Descriptor of the writing end of a pipe, once the process reads it."""
    while process.poll() is None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.02)
    raise AssertionError(process.communicate())


@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_stopped_by_a_signal_ends_its_command_too(
    tmp_path: Path,
    number: int,
    processes: list[subprocess.Popen[str]],
    sigint_reaches_children: None,
) -> None:
    command = [*PROGRAM, "demo", "--out", str(tmp_path / "demo"), "--train-patients", "24",
               "--test-patients", "8"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    processes.append(process)
    locks = tmp_path / "demo" / "bags" / ".claims"
    while not locks.is_dir() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert not (tmp_path / "demo" / "submission.csv").exists()
    assert not [path for path in locks.glob("*") if path.is_file()]
