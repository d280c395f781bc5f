"""Cases in a process of their own: what crashes, hangs, eats memory or shows a traceback is found.

The process that reads says before each case which one it is, so the one that waits for it knows
what to blame when it hears nothing more.
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path, PurePath
from typing import NamedTuple

from features.errors import MilError
from tests.fuzz.mutators import mutate
from tests.fuzz.samples import Sample
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.toys import TOYS

__all__ = ["Case", "Finding", "Outcome", "fuzz", "healthy_samples", "spoilt"]

_MOST_SECONDS = 30.0
"""Processor time of one case, and half of what it may be waited for; most take milliseconds."""
_SECONDS_TO_START = 300.0
_LOOK_EVERY_S = 0.5
_MOST_ADDRESSES = 8 << 30
"""Bytes of memory that a case may ask for, whether or not it uses them."""

_ALL: Mapping[str, Target] = {**TARGETS, **TOYS}

Samples = Mapping[str, Sequence[Sample]]
"""Healthy files by target."""


class Case(NamedTuple):
    """What tells the bytes of a case."""

    target: str
    """Whose."""
    seed: int
    """Of the run."""
    number: int
    """Among the cases of the target."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A case that ended otherwise than in a reading or a refusal."""

    case: Case
    """Which."""
    kind: str
    """``crash``, ``hang``, ``memory`` or ``traceback``."""
    told: str
    """What is known of it."""


@dataclass(kw_only=True)
class Outcome:
    """What became of the cases of one target."""

    counts: Counter[str] = field(default_factory=Counter)
    """Cases by what became of them: ``read``, ``refused``, or the kind of a finding."""
    findings: list[Finding] = field(default_factory=list)
    """What was found."""
    seconds: float = 0.0
    """Time that it took."""

    def add(self, case: Case, kind: str, told: str) -> None:
        """Count a case."""
        self.counts[kind] += 1
        if kind not in {"read", "refused"}:
            self.findings.append(Finding(case=case, kind=kind, told=told))


def healthy_samples(target: str, real: Path | None) -> list[Sample]:
    """Healthy files of a target, in memory; real ones among them if there is a folder of them."""
    with tempfile.TemporaryDirectory() as folder:
        return _ALL[target].samples(Path(folder), real)


def spoilt(samples: Sequence[Sample], case: Case) -> Sample:
    """The files of a case, one or two of them spoilt."""
    rng = random.Random(" ".join(map(str, case)))  # noqa: S311 - a case must come again
    sample = dict(rng.choice(samples))
    for _ in range(rng.choice([1, 1, 1, 2])):
        names = list(sample)
        # JSON says how all beside it is to be read, and is one file among many in a run.
        name = rng.choices(names, [4 if name.endswith(".json") else 1 for name in names])[0]
        suffix = PurePath(name).suffix
        others = [data for each in samples for key, data in each.items() if key.endswith(suffix)]
        sample[name] = mutate(name, sample[name], rng, others)
    return sample


def fuzz(
    n_cases: Mapping[str, int],
    *,
    seed: int,
    real: Path | None = None,
    most_seconds: float = _MOST_SECONDS,
) -> dict[str, Outcome]:
    """Read spoilt files, and tell what became of them, by target.

    Parameters
    ----------
    n_cases
        How many of each target, by names of :data:`tests.fuzz.targets.TARGETS`.
    seed
        Decides them all.
    real
        Folder of real data to spoil as well.
    most_seconds
        Processor time that a case may take.

    Raises
    ------
    RuntimeError
        If healthy files are not read.
    """
    samples = {target: healthy_samples(target, real) for target in n_cases}
    waiting = [Case(target, seed, number) for target, n in n_cases.items() for number in range(n)]
    outcomes = {target: Outcome() for target in n_cases}
    while waiting:
        with _Reader(samples, waiting, most_seconds) as reader:
            waiting = waiting[reader.follow(outcomes) :]
    return outcomes


class _Reader:
    """A process that reads cases one after the other."""

    def __init__(self, samples: Samples, cases: Sequence[Case], most_seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._folder = Path(tempfile.mkdtemp())
        self._cases, self._most_seconds = cases, most_seconds
        # Not among its arguments: who hands over much waits for ever for one that dies at once.
        (self._folder / "work").write_bytes(pickle.dumps((samples, cases)))
        self._process = context.Process(target=_serve, args=(theirs, self._folder), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def follow(self, outcomes: Mapping[str, Outcome]) -> int:
        """Listen until it is done or gone; returns how many cases are then behind us."""
        kind, data = self._answer(cpu_s=_SECONDS_TO_START, clock_s=_SECONDS_TO_START)
        if (kind, data) != ("ready", ""):
            raise RuntimeError(f"healthy files are not read: {kind} {data}")
        for n_done in count(1):
            begun = time.monotonic()
            kind, data = self._answer(cpu_s=self._most_seconds, clock_s=2 * self._most_seconds)
            case = self._cases[n_done - 1]
            outcomes[case.target].add(case, kind, data)
            outcomes[case.target].seconds += time.monotonic() - begun
            if kind in {"crash", "hang"} or n_done == len(self._cases):
                return n_done
        raise AssertionError

    def _answer(self, *, cpu_s: float, clock_s: float) -> tuple[str, str]:
        """What it says next, or what its silence means."""
        waited, used = 0.0, self._cpu_s()
        while not self._pipe.poll(_LOOK_EVERY_S):
            waited += _LOOK_EVERY_S  # by no clock: whoever is stopped with it has not waited
            if self._cpu_s() - used > cpu_s or waited > clock_s:
                return "hang", f"no answer within {waited:.0f} s\n{self._where_it_is()}"
        try:
            answer: tuple[str, str] = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(30)
            code = self._process.exitcode or 0
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return "crash", f"{name}\n{self._log()}"
        return answer

    def _cpu_s(self) -> float:
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _where_it_is(self) -> str:
        """The stacks of its threads, which it writes when it is asked to."""
        with suppress(OSError):
            os.kill(self._process.pid or 0, signal.SIGUSR1)
        time.sleep(1)
        return self._log()

    def _log(self) -> str:
        with suppress(OSError):
            lines = (self._folder / "log").read_text(errors="replace").splitlines()
            return "\n".join(line for line in lines[-60:] if not line.startswith("Extension"))
        return ""


def _serve(pipe: Connection, folder: Path) -> None:
    """Read healthy files, then spoilt ones under limits, and tell of each."""
    _log_into(folder / "log")
    samples: Samples
    cases: Sequence[Case]
    samples, cases = pickle.loads((folder / "work").read_bytes())  # noqa: S301 - our own
    for target in {case.target for case in cases}:
        for sample in samples[target]:
            kind, data = _one(sample, folder / "case", target)
            if kind not in {"read", "refused"}:
                pipe.send((kind, data))
                return
    limit = _memory("VmSize") + _MOST_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pipe.send(("ready", ""))
    for case in cases:
        # Each in a folder of its own: what is remembered by path and time is not met again.
        pipe.send(_one(spoilt(samples[case.target], case), folder / f"{case.number}", case.target))


def _one(sample: Sample, folder: Path, target: str) -> tuple[str, str]:
    """What becomes of one case."""
    _write(sample, folder)
    before = _memory("VmRSS")
    _forget_peak()
    try:
        _ALL[target].read(folder)
        kind, data = "read", ""
    except MilError as error:
        kind, data = "refused", str(error)
        if _ran_out(error):
            kind, data = "memory", traceback.format_exc()
    except MemoryError:
        kind, data = "memory", traceback.format_exc()
    except BaseException:  # noqa: BLE001 - a panic of a library in Rust is no Exception
        kind, data = "traceback", traceback.format_exc()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if (
        kind in {"read", "refused"}
        and (used := _memory("VmHWM") - before) > _ALL[target].most_memory
    ):
        return "memory", f"{used:,} bytes were used; {data}"
    return kind, data


def _write(sample: Sample, folder: Path) -> None:
    for name, data in sample.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _ran_out(error: BaseException | None) -> bool:
    """Whether memory was refused somewhere on the way to an error."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if isinstance(error, MemoryError):
            return True
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            waiting += [error.__cause__, error.__context__]
    return False


def _memory(name: str) -> int:
    """Bytes, by a name in ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _forget_peak() -> None:
    """Begin anew with the most memory that was used."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _log_into(path: Path) -> None:
    """Take down what libraries say, and where they were when they crashed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.enable(file=sys.stderr.fileno(), all_threads=False)
    faulthandler.register(signal.SIGUSR1, file=sys.stderr.fileno(), all_threads=True)
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(-8, 1)  # one arena: threads reserve no addresses of their own
