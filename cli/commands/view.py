"""``mil view``: a run's patients, slides and attention in a browser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import progress_bar, spinner, stderr, stdout
from cli.options import BagsSource, ColumnNames, Prior, SlidesDir, flag
from cli.shared.arguments import files_of, parse_columns
from cli.shared.output import print_caveats
from cli.shared.runs import add_run_covariates, newest_run, training_cohort
from features.utils.text import pluralize

if TYPE_CHECKING:
    from cli.viewer.server import ViewServer
    from mil.inference.bundle import ModelBundle
    from mil.inference.predict import PatientPrediction

__all__ = ["true_labels", "view"]


def view(
    *,
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN",
            help="Folder of the run; default: the newest in `runs/`.",
            show_default=False,
        ),
    ] = None,
    patients: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Table with `patient_id` and `image_id` (or `slide_id`); default: the patients "
            "of the training.",
        ),
    ] = None,
    columns: ColumnNames = None,
    bags: BagsSource = Path("bags"),
    slides: SlidesDir = None,
    prior: Prior = "balanced",
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, metavar="N", help="Port to listen on; 0 chooses any free one."
        ),
    ] = 0,
    browser: Annotated[bool, flag("--browser/--no-browser", "Open the page in a browser.")] = True,
) -> None:
    """Browse a run's patients: zoomable slides with the attention as an overlay.

    The page is served on this machine only, with a new token each time; it needs no network, and
    Ctrl-C stops it. The probabilities are those of `mil infer`, or out-of-fold probabilities for
    patients that the run was trained on. Without `--slides` the overlay has a plain background.

    Example: `mil view runs/first --patients test.csv --slides slides/`

    Exit codes: 0 stopped by Ctrl-C, 1 run, table, bags, slides or port cannot be used, 2 usage.
    """
    names = parse_columns(columns)
    with spinner("loading the run"):
        from cli.viewer.content import ViewerState
        from cli.viewer.server import ViewServer
        from features.bags.store import open_bags
        from features.errors import MilError
        from features.series.config import is_series_fingerprint
        from mil.data.cohort import read_cohort
        from mil.errors import RunError
        from mil.inference.bundle import load_bundle
        from mil.inference.output import (
            bag_caveats,
            covariate_caveats,
            missing_bag_caveats,
            unlike_caveats,
        )
        from mil.inference.predict import check_any_used, iter_predictions

        model = load_bundle(run or newest_run())
        if is_series_fingerprint(model.fingerprint):  # without a plane for an overlay
            raise RunError(
                model.path, actual="a run on series of images", expected="one on slides",
                hint="'mil explain --series' shows them.",
            )  # fmt: skip
        cohort = (
            training_cohort(model)
            if patients is None
            else read_cohort(patients, labelled=False, columns=names)
        )
        cohort = add_run_covariates(model, cohort, columns=names, has_table=patients is not None)
        shares = model.parse_prior(prior)
        paths = None if slides is None else files_of(cohort, slides, option="--slides")
        refs = open_bags(bags, may_be_empty=True)
    with progress_bar("patients") as bars:
        predictions = [
            prediction
            for patient in bars.track(cohort.patients, description="predicting")
            for prediction in iter_predictions(
                model, replace(cohort, patients=(patient,)), refs, prior=shares
            )
        ]
    check_any_used(predictions, refs, source=cohort.path)
    state = ViewerState(
        model, cohort, predictions, bags=refs, prior=shares, paths=paths,
        true_labels=true_labels(model, patients, names),
    )  # fmt: skip
    try:
        server = ViewServer(state, port=port)
    except OSError as error:
        raise MilError(
            f"port {port}", actual=f"cannot be used ({error.strerror or error})",
            expected="a free port", hint="Choose another with --port; 0 takes any free one.",
        ) from error  # fmt: skip
    new = [p for p in predictions if not p.matched_training_patient]
    print_caveats((
        *bag_caveats(predictions), *missing_bag_caveats(predictions, refs), *unlike_caveats(new),
        *covariate_caveats(model, cohort),
    ))  # fmt: skip
    _print_start(server, predictions, with_slides=slides is not None)
    if browser:
        typer.launch(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        stderr.print("closed")
    finally:
        server.server_close()
        state.close()


def true_labels(
    run: ModelBundle, patients: Path | None, columns: Mapping[str, str]
) -> dict[str, str]:
    """Return the labels by patient id that the run holds, and those of the table, if it has any."""
    from features.errors import TableError
    from features.utils.tables import read_table
    from features.utils.text import normalize_name
    from mil.data.cohort import find_role

    labels: dict[str, str] = {}
    held_out = run.path / "judged.csv"
    if held_out.is_file():
        table = read_table(held_out)
        labels |= dict(zip(table["patient_id"].map(normalize_name), table["label"], strict=True))
    if patients is not None:
        table = read_table(patients)
        of_patients = table[find_role(table, "patient", where=patients, columns=columns)]
        try:
            of_labels = table[find_role(table, "label", where=patients, columns=columns)]
        except TableError:
            if "label" in columns:  # named, but not there
                raise
        else:
            labels |= dict(zip(of_patients.map(normalize_name), of_labels, strict=True))
    return labels


def _print_start(
    server: ViewServer, predictions: list[PatientPrediction], *, with_slides: bool
) -> None:
    n_seen = sum(bool(p.matched_training_patient) for p in predictions)
    stdout.print(f"{pluralize(len(predictions), 'patients')} at {server.url}")
    if n_seen:
        stderr.print(
            f"The run was trained on {n_seen} of them: the page shows and marks their out-of-fold "
            "probabilities.",
        )
    if not with_slides:
        stderr.print("No slides were given (--slides): the overlay has a plain background.")
    stderr.print("Press Ctrl-C to stop.")
