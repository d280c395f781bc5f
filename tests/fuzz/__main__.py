"""Fuzz every parser: ``python -m tests.fuzz --cases 10000``.

Exits with 1 if anything was found; each finding is kept with its bytes and what is known of it.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.fuzz.cases import Finding, Outcome, fuzz, healthy_samples, spoilt
from tests.fuzz.samples import Sample
from tests.fuzz.targets import TARGETS

__all__ = ["main"]

_KINDS = ("read", "refused", "crash", "hang", "memory", "traceback")


def main() -> int:
    """Run the cases, keep what is found, and print a row a target."""
    arguments = _arguments()
    real = Path(os.environ["MIL_DATA"]) if os.environ.get("MIL_DATA") else None
    names: list[str] = arguments.target or list(TARGETS)
    shares = {name: TARGETS[name].share for name in names}
    n_cases = {
        name: -(-arguments.cases * share // sum(shares.values())) for name, share in shares.items()
    }
    _print("target", {kind: kind for kind in _KINDS}, "cases", "s")
    total = Outcome()
    for name in names:
        outcome = fuzz({name: n_cases[name]}, seed=arguments.seed, real=real)[name]
        _keep(outcome.findings, arguments.out, real)
        _print(name, outcome.counts, outcome.counts.total(), round(outcome.seconds))
        total.counts += outcome.counts
        total.findings += outcome.findings
        total.seconds += outcome.seconds
    _print("all", total.counts, total.counts.total(), round(total.seconds))
    if total.findings:
        sys.stderr.write(f"{len(total.findings)} findings in {arguments.out}\n")
    return 1 if total.findings else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="in all, at least")
    parser.add_argument("--target", action="append", choices=[*TARGETS], help="all if not given")
    parser.add_argument("--seed", type=int, default=0, help="decides all cases")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    return parser.parse_args()


def _keep(findings: Sequence[Finding], out: Path, real: Path | None) -> None:
    """Write the files of each finding, and what is known of it."""
    samples: dict[str, list[Sample]] = {}
    for result in findings:
        target = result.case.target
        if target not in samples:
            samples[target] = healthy_samples(target, real)
        folder = out / f"{'-'.join(map(str, result.case))}-{result.kind}"
        for name, data in spoilt(samples[target], result.case).items():
            path = folder / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (folder / "found.txt").write_text(f"{result.kind}\n{result.told}\n", encoding="utf-8")


def _print(name: str, counts: Mapping[str, object], n_cases: object, seconds: object) -> None:
    cells = "".join(f"{counts.get(kind, 0):>11}" for kind in _KINDS)
    sys.stdout.write(f"{name:12}{n_cases:>8}{cells}{seconds:>6}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
