"""``mil demo``: the whole road on painted slides, by the commands a user would type."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cli.console import progress_bar, stderr, stdout
from features.utils.hardware import CPU_COUNT

__all__ = ["demo"]


def demo(
    *,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where all that the demo makes goes.")
    ] = Path("demo"),
    train_patients: Annotated[
        int, typer.Option(min=24, metavar="N", help="Training patients to paint.")
    ] = 60,
    test_patients: Annotated[
        int, typer.Option(min=8, metavar="N", help="Held-out patients to paint.")
    ] = 30,
    signal: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="How far the class shows in the tissue; 0: not at all.",
        ),
    ] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed paints another cohort.")] = 0,
) -> None:
    """Paint a small cohort of stroke clots, then embed, train, infer and score it.

    The slides are synthetic: they show that the road works and what its outputs look like, and say
    nothing about patients. Takes a few minutes on two cores.

    Example: `mil demo --out demo`

    Example: `mil demo --train-patients 24 --test-patients 8`

    Exit codes: 0 done, 2 usage, else that of the command that failed.
    """
    from features.slides.synthetic import make_cohort, write_synthetic_cohort

    started = time.monotonic()
    stdout.print(
        "These slides are SYNTHETIC: painted tissue whose mixture depends on the class. Scores on "
        "them show that the road works, nothing more."
    )
    plan = make_cohort(n_patients=train_patients + test_patients, seed=seed, signal=signal)
    with progress_bar("slides") as bars:
        task = bars.add_task("painting", total=len(plan))
        write_synthetic_cohort(
            out,
            plan,
            n_test_patients=test_patients,
            n_workers=CPU_COUNT,
            on_slide=lambda: bars.advance(task),
        )
    bags, run, submission = out / "bags", out / "runs" / "demo", out / "submission.csv"
    # Bags of an earlier demo may have been made otherwise.
    _run("embed", out / "slides", "--bags", bags, "--overwrite")
    _run(
        "train", "--cohort", out / "train.csv", "--bags", bags, "--run", run, "--seed", seed,
        "--overwrite",
    )  # fmt: skip
    _run("infer", "--patients", out / "test.csv", "--run", run, "--bags", bags, "--out", submission)
    _run("score", submission, "--cohort", out / "test_labels.csv")
    stdout.print(f"Everything lies in {out}/ ({time.monotonic() - started:.0f} s):")
    for path, words in (
        (out / "slides", "painted slides, tables beside them"),
        (bags, "one bag of embeddings a slide"),
        (run, "the model bundle"),
        (submission, "one row a held-out patient"),
    ):
        stdout.print(f"  {path}: {words}")


def _run(*arguments: object) -> None:
    """Print a command and run it as a user would, in a process of its own."""
    words = [str(argument) for argument in arguments]
    stdout.print(f"\n$ mil {shlex.join(words)}", style="bold")
    sys.stdout.flush()
    code = subprocess.run([sys.executable, "-m", "cli", *words], check=False).returncode  # noqa: S603
    if code:
        stderr.print(f"that command ended with exit code {code}", style="bold red")
        raise typer.Exit(code)
