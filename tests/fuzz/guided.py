"""Fuzz the parsers that are Python, led by coverage: ``python -m tests.fuzz.guided --cases 10000``.

Atheris watches which lines a case reaches and changes further what reached new ones. It sees Python
only, so what libraries in C parse is left to ``python -m tests.fuzz``. Exits with 1 if anything was
found, and keeps its bytes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

__all__ = ["main"]

TARGETS = ("predictions", "cohort", "tables", "filter")
"""Parsers of single files in Python, the slowest first."""

_LONGEST_BYTES = 4096
_MOST_SECONDS = 30
_MOST_MIB = 4096


def main() -> int:
    """Run each target in a process of its own, as many at a time as there are cores."""
    arguments = _arguments()
    if find_spec("atheris") is None:
        sys.stderr.write("atheris is not installed here: nothing was led by coverage\n")
        return 0
    if arguments.inside:
        return _guide(arguments.target[0], arguments)
    names = arguments.target or TARGETS
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = [
            _report(name, arguments.cases, result)
            for name, result in zip(names, pool.map(partial(_run, arguments), names), strict=True)
        ]
    return 1 if any(failed) else 0


def _run(
    arguments: argparse.Namespace, name: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Return a target's process when it has ended, and its seconds."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", "--inside", "--target", name,
         "--cases", str(arguments.cases), "--seed", str(arguments.seed),
         "--out", str(arguments.out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done, time.monotonic() - started


def _report(
    name: str, n_cases: int, result: tuple[subprocess.CompletedProcess[str], float]
) -> bool:
    """Print a row, and return whether anything was found."""
    done, seconds = result
    data = done.stderr[-4000:] if done.returncode else "nothing found"
    sys.stdout.write(f"{name:12}{n_cases:>8} cases{seconds:>6.0f} s  {data}\n")
    sys.stdout.flush()
    return done.returncode != 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="of each target")
    parser.add_argument("--target", action="append", choices=TARGETS, help="all if not given")
    parser.add_argument("--seed", type=int, default=1, help="decides all cases")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _guide(target: str, arguments: argparse.Namespace) -> int:
    """Fuzz in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["features", "mil"]):
        from features.errors import MilError
        from tests.fuzz.targets import TARGETS as ALL

    with tempfile.TemporaryDirectory() as work:
        folder, corpus = Path(work) / "case", Path(work) / "corpus"
        folder.mkdir()
        corpus.mkdir()
        (Path(work) / "made").mkdir()
        samples = ALL[target].samples(Path(work) / "made", None)
        for number, sample in enumerate(samples):
            (corpus / f"{number}").write_bytes(next(iter(sample.values())))
        (name,) = samples[0]

        def one(data: bytes) -> None:
            (folder / name).write_bytes(data)
            try:
                ALL[target].read(folder)
            except MilError:
                return

        arguments.out.mkdir(exist_ok=True)
        atheris.Setup(
            [sys.argv[0], f"-runs={arguments.cases}", f"-seed={arguments.seed}",
             f"-max_len={_LONGEST_BYTES}", f"-timeout={_MOST_SECONDS}",
             f"-rss_limit_mb={_MOST_MIB}", f"-artifact_prefix={arguments.out}/{target}-",
             str(corpus)],
            one,
        )  # fmt: skip
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
