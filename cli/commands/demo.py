"""``mil demo``: all steps on synthetic slides, by the commands a user would type."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cli.console import print_next, progress_bar, stderr, stdout
from cli.streams import EXIT_UNREAD
from features.utils.hardware import CPU_COUNT

__all__ = ["N_TEST_PATIENTS", "N_TRAIN_PATIENTS", "TARGET_MPP", "demo"]

N_TRAIN_PATIENTS = 60
"""Training patients by default."""

N_TEST_PATIENTS = 30
"""Held-out patients by default."""

TARGET_MPP = 0.25
"""µm per px of the tiles: with 224 px, 60 tiles per slide or more, a few of them of a focus."""


def demo(
    *,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for all files of the demo.")
    ] = Path("demo"),
    train_patients: Annotated[
        int, typer.Option(min=24, metavar="N", help="Number of training patients.")
    ] = N_TRAIN_PATIENTS,
    test_patients: Annotated[
        int, typer.Option(min=8, metavar="N", help="Number of held-out patients.")
    ] = N_TEST_PATIENTS,
    signal: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Strength of the class signals, in all of the tissue and in a spot; 0: none.",
        ),
    ] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the cohort.")] = 0,
) -> None:
    """Generate a small synthetic cohort of stroke clots, then embed, train, infer and score it.

    The slides are synthetic: they show that all steps work and what the output looks like, and say
    nothing about patients. Takes a few minutes on two cores.

    Example: `mil demo --out demo`

    Example: `mil demo --train-patients 24 --test-patients 8`

    Exit codes: 0 done, 2 usage, else the code of the failed command.
    """
    from features.slides.synthetic import make_cohort, write_synthetic_cohort

    started = time.monotonic()
    stdout.print(
        "These slides are SYNTHETIC: generated tissue whose composition depends on the class, as "
        "does how often a small spot of calcification occurs. "
        "Scores on them show that the program works, nothing more."
    )
    plan = make_cohort(n_patients=train_patients + test_patients, seed=seed, signal=signal)
    with progress_bar("slides") as bars:
        task = bars.add_task("generating", total=len(plan))
        write_synthetic_cohort(
            out,
            plan,
            n_test_patients=test_patients,
            n_workers=CPU_COUNT,
            on_slide=lambda: bars.advance(task),
        )
    slides, bags, run = out / "slides", out / "bags", out / "runs" / "demo"
    submission, explanations = out / "submission.csv", out / "explanations"
    shown = run / "explanations"
    # Bags of an earlier demo may have been made with other settings.
    _run("embed", slides, "--bags", bags, "--mpp", TARGET_MPP, "--overwrite")
    _run(
        "describe", out / "train.csv", "--slides", slides, "--bags", bags,
        "--out", out / "describe.html",
    )  # fmt: skip
    _run(
        "train", "--cohort", out / "train.csv", "--bags", bags, "--run", run, "--seed", seed,
        "--overwrite",
    )  # fmt: skip
    _run("infer", "--patients", out / "test.csv", "--run", run, "--bags", bags, "--out", submission)
    _run("score", submission, "--cohort", out / "test_labels.csv")
    of_run = ("--run", run, "--bags", bags, "--slides", slides)
    _run("explain", "--patients", out / "test.csv", *of_run, "--out", explanations)
    # The patients that the report shows, one click from it.
    _run("explain", *of_run, "--out", shown)
    _run("report", run, "--bags", bags, "--slides", slides, "--explanations", shown)
    stdout.print(f"Results in {out}/ ({time.monotonic() - started:.0f} s):")
    for path, content in (
        (slides, "synthetic slides; the tables are next to them"),
        (bags, "one bag of embeddings per slide"),
        (out / "describe.html", "what the training cohort looks like"),
        (run, "the model bundle; report.html says what it is worth"),
        (submission, "one row per held-out patient"),
        (explanations / "index.html", "where the model looked, for each held-out patient"),
    ):
        stdout.print(f"  {path}: {content}")
    print_next(
        "open {run}/report.html",
        "mil view {run} --patients {patients} --slides {slides} --bags {bags}",
        run=run, patients=out / "test_labels.csv", slides=slides, bags=bags,
    )  # fmt: skip


def _run(*arguments: object) -> None:
    """Print a command and run it in its own process, as a user would."""
    words = [str(argument) for argument in arguments]
    stdout.print(f"\n$ mil {shlex.join(words)}", style="bold")
    sys.stdout.flush()
    with subprocess.Popen([sys.executable, "-m", "cli", *words]) as process:  # noqa: S603
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()  # It finishes the slides in progress.
            process.wait()
            raise
    if code and code != EXIT_UNREAD:
        stderr.print(f"the command failed with exit code {code}", style="bold red")
    if code:
        raise typer.Exit(code)
