"""``mil view``: a run's patients, their slides and where it looked, in a browser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import progress_bar, spinner, stderr, stdout
from cli.options import BagsPlace, PictureSlides, Prior, flag
from cli.shared.arguments import files_of
from cli.shared.runs import newest_run
from features.utils.text import pluralize

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cli.viewer.content import ViewerState
    from cli.viewer.server import ViewServer
    from features.bags.bag import BagRef
    from mil.data.cohort import Cohort
    from mil.inference.bundle import ModelBundle
    from mil.inference.predict import PatientPrediction

__all__ = ["view"]


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
            "that the run was trained on.",
        ),
    ] = None,
    bags: BagsPlace = Path("bags"),
    slides: PictureSlides = None,
    prior: Prior = "balanced",
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, metavar="N", help="Where to listen; 0 takes any free port."),
    ] = 0,
    browser: Annotated[bool, flag("--browser/--no-browser", "Open the page in a browser.")] = True,
) -> None:
    """Look through a run's patients: slides to zoom into, with the attention laid over them.

    A page of this machine only, behind a token that is new each time; it needs no network, and
    Ctrl-C ends it. Patients have the probabilities that `mil infer` gives; those that the run was
    trained on have the out-of-fold ones. Without `--slides` the colours lie on plain ground.

    Example: `mil view runs/first --patients test.csv --slides slides/`

    Exit codes: 0 ended by Ctrl-C, 1 run, table, bags, slides or port cannot be used, 2 usage.
    """
    with spinner("loading the run"):
        from cli.viewer.content import ViewerState
        from features.bags.store import open_bags
        from features.errors import BagError
        from mil.data.cohort import read_cohort
        from mil.inference.bundle import load_bundle

        model = load_bundle(run or newest_run())
        _require_slides(model)
        cohort = _trained_on(model) if patients is None else read_cohort(patients, labelled=False)
        shares = model.parse_prior(prior)
        paths = None if slides is None else files_of(cohort, slides, option="--slides")
        places = open_bags(bags, may_be_empty=True)
    predictions = _predict(model, cohort, places, shares)
    if all(prediction.status == "no_bag" for prediction in predictions):
        raise BagError(
            bags, actual=f"no bag of any of the {len(predictions)} patients",
            expected="one bag a slide", hint="Name their folder with --bags, or run 'mil embed'.",
        )  # fmt: skip
    viewed = ViewerState(model, cohort, predictions, bags=places, prior=shares, paths=paths)
    server = _start_server(viewed, port)
    _say(server, predictions, with_slides=slides is not None)
    if browser:
        typer.launch(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        stderr.print("closed")
    finally:
        server.server_close()
        viewed.close()


def _require_slides(run: ModelBundle) -> None:
    """Refuse a run on series of images, which have no plane to lay colours on."""
    from features.series.config import is_series_fingerprint
    from mil.errors import RunError

    if is_series_fingerprint(run.fingerprint):
        raise RunError(
            run.path, actual="a run on series of images", expected="one on slides",
            hint="'mil explain --series' shows them.",
        )  # fmt: skip


def _trained_on(run: ModelBundle) -> Cohort:
    """The patients of a run and their slides, as it remembers them."""
    from mil.data.cohort import Cohort, Patient

    slides: dict[str, list[str]] = {}
    for slide in run.training_slides:
        slides.setdefault(slide.patient_id, []).append(slide.slide_id)
    trained_on = tuple(
        Patient(patient_id=patient_id, slide_ids=tuple(ids), label=None, center_id=None)
        for patient_id, ids in slides.items()
    )
    return Cohort(path=run.path / "slides.csv", patients=trained_on, classes=())


def _predict(
    run: ModelBundle, cohort: Cohort, bags: Mapping[str, BagRef], prior: npt.NDArray[np.float64]
) -> list[PatientPrediction]:
    from dataclasses import replace

    from mil.inference.predict import predict

    predictions = []
    with progress_bar("patients") as bars:
        task = bars.add_task("predicting", total=len(cohort.patients))
        for patient in cohort.patients:
            alone = replace(cohort, patients=(patient,))
            predictions += predict(run, alone, bags, prior=prior)
            bars.advance(task)
    return predictions


def _start_server(viewed: ViewerState, port: int) -> ViewServer:
    from cli.viewer.server import ViewServer
    from features.errors import MilError

    try:
        return ViewServer(viewed, port=port)
    except OSError as error:
        raise MilError(
            f"port {port}", actual=f"cannot be listened on ({error.strerror or error})",
            expected="a free port", hint="Name another with --port; 0 takes any free one.",
        ) from error  # fmt: skip


def _say(server: ViewServer, predictions: list[PatientPrediction], *, with_slides: bool) -> None:
    n_seen = sum(bool(p.matched_training_patient) for p in predictions)
    stdout.print(f"{pluralize(len(predictions), 'patients')} at {server.url}")
    if n_seen:
        stderr.print(
            f"The run was trained on {n_seen} of them: the page shows their out-of-fold "
            "probabilities and says so.",
        )
    if not with_slides:
        stderr.print("No slides were given (--slides): colours lie on plain ground.")
    stderr.print("Ctrl-C ends it.")
