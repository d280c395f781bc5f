"""Every page that people look at, in a browser: on a desk, on a phone, on paper, and read aloud."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from cli.viewer.content import ViewerState
from cli.viewer.server import ViewServer
from features.bags.h5 import bag_path, find_bags, write_bag
from features.slides.base import RgbArray
from features.slides.synthetic import write_slide
from features.visualization.deepzoom import DeepZoomReader, Region
from mil.calibration.priors import balanced
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.inference.bundle import load_bundle
from mil.inference.predict import predict
from mil.multilabel.table import read_label_table
from mil.multilabel.train import train_labels
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.browser import BROWSER_MARKS, Tab, open_tab
from tests.cli.running import mil_ok
from tests.fakes import make_bag

pytestmark = [*BROWSER_MARKS, pytest.mark.usefixtures("drawn_figures")]

SETTLED = (
    "typeof panes === 'object' && panes.length > 0 && panes.every(({viewer: {world}}) =>"
    " world.getItemCount() === 2 && [0, 1].every((i) => world.getItemAt(i).getFullyLoaded()))"
)
"""Whether the viewer has loaded the slide and its overlay."""
PHONE, DESK = (360, 740), (1280, 900)
A4_PX, A4_LANDSCAPE_PX = 703, 1046
"""186 and 277 mm within the margins, CSS px."""
FAST = TrainConfig(n_members=2, n_components=8, fixed_steps=8, max_epochs=3)
LONG = "a-patient-with-a-name-much-longer-than-a-phone-is-wide-0123456789"
PAGES = {
    "describe": "describe.html",
    "compare": "compare.html",
    "evaluate": "evaluation.html",
    "report": "runs/two/report.html",
    "report of three classes": "runs/three/report.html",
    "report with covariates": "runs/clinical/report.html",
    "combined run": "runs/both/report.html",
    "labels": "runs/labels/report.html",
    "report of a label": "runs/labels/labels/left/report.html",
    "patient": f"explanations/{LONG}/index.html",
    "patients": "explanations/index.html",
    "preview": "preview/index.html",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages, of a cohort of two classes, one of three, and one of several labels."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("slides", "bags"):
        (folder / name).mkdir()
    rows, labels = [], []
    for number in range(30):
        name = LONG if number == 2 else f"p{number}"
        slide_id = f"{name}_0"
        bag = make_bag(slide_id, n_tiles=4 + number % 5, dim=16)
        bag.features[:] += np.float16(0.4 * (number % 3))
        write_bag(bag_path(folder / "bags", slide_id), bag)
        rows.append((slide_id, name, number % 3, number % 4))
        labels.append(f"{slide_id},{name},{number % 2},{int(number % 3 > 0)}")
        if number < 6:
            pixels = np.full((bag.meta.height_px0, bag.meta.width_px0, 3), 240, np.uint8)
            pixels[:448, :448] = (180 - 20 * number, 60, 90 + 20 * number)
            write_slide(folder / "slides" / f"{slide_id}.tif", pixels)
    head = "image_id,patient_id,label,center_id,age,sex"
    names_of_two = ("CE", "LAA", "LAA")
    for table, names in (("two", names_of_two), ("three", ("benign", "grade 1", "2"))):
        lines = [
            f"{slide},{patient},{names[c]},{centre},{40 + 7 * row % 31},{'fm'[row % 2]}"
            for row, (slide, patient, c, centre) in enumerate(rows)
        ]
        (folder / f"{table}.csv").write_text("\n".join([head, *lines]) + "\n")
        cohort = read_cohort(folder / f"{table}.csv", labelled=True)
        bags = load_patient_bags(cohort, find_bags(folder / "bags"))
        train_run(
            cohort, bags, folder / "runs" / table, n_folds=3, n_repeats=2, seed=0, config=FAST,
            on_head=lambda done, total: None,
        )  # fmt: skip
    cohort = read_cohort(folder / "two.csv", labelled=True)
    train_run(
        cohort, load_patient_bags(cohort, find_bags(folder / "bags")), folder / "runs" / "clinical",
        n_folds=3, n_repeats=2, seed=1, config=FAST, on_head=lambda done, total: None,
        covariates=("age", "sex"), folds_of=folder / "runs" / "two",
    )  # fmt: skip
    mil_ok("combine", folder / "runs" / "two", folder / "runs" / "clinical", "--run",
        folder / "runs" / "both")  # fmt: skip
    (folder / "labels.csv").write_text("\n".join(["image_id,patient_id,left,right", *labels]))
    table = read_label_table(folder / "labels.csv", ["left", "right"])
    train_labels(
        table, load_patient_bags(table.patients, find_bags(folder / "bags")),
        folder / "runs" / "labels", n_folds=3, n_repeats=1, seed=0, config=FAST,
        on_head=lambda label, done, total: None,
    )  # fmt: skip
    where = ("--slides", folder / "slides")
    mil_ok("describe", folder / "two.csv", *where, "--bags", folder / "bags", "--out",
        folder / "describe.html")  # fmt: skip
    mil_ok("explain", "--run", folder / "runs" / "two", "--patients", folder / "two.csv", *where,
        "--bags", folder / "bags", "--out", folder / "explanations",
        *(word for name in ("p0", "p1", LONG, "p3", "p4", "p5") for word in ("--patient", name)),
    )  # fmt: skip
    for run in ("two", "clinical", "labels"):
        mil_ok("report", folder / "runs" / run, *where, "--bags", folder / "bags",
            "--explanations", folder / "explanations")  # fmt: skip
    mil_ok("preview", folder / "slides", "--out", folder / "preview")
    mil_ok("compare", folder / "runs" / "two", folder / "runs" / "two" / "out_of_fold.csv",
        "--out", folder / "compare.html")  # fmt: skip
    others = [head]
    for number in range(18):
        bag = make_bag(f"other{number}_0", n_tiles=5, dim=16)
        bag.features[:] += np.float16(0.4 * (number % 3))
        write_bag(bag_path(folder / "bags", bag.meta.slide_id), bag)
        label, centre = names_of_two[number % 3], number % 2
        others.append(f"other{number}_0,other{number},{label},{centre},50,f")
    (folder / "others.csv").write_text("\n".join(others) + "\n")
    mil_ok("evaluate", folder / "runs" / "two", "--cohort", folder / "others.csv", "--bags",
        folder / "bags", "--out", folder / "evaluation.html")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def server(world: Path) -> Iterator[ViewServer]:
    run = load_bundle(world / "runs" / "two")
    cohort = read_cohort(world / "two.csv", labelled=False)
    prior = balanced(run.classes)
    viewed = ViewerState(
        run, cohort, predict(run, cohort, world / "bags", prior=prior),
        bags=find_bags(world / "bags"), prior=prior,
        paths={path.stem: path for path in (world / "slides").iterdir()},
    )  # fmt: skip
    server = ViewServer(viewed)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    viewed.close()


def show(
    tab: Tab, url: str, size: tuple[int, int], *, media: str = "screen", scheme: str = "light"
) -> None:
    """Open a page on a screen of that size, and wait for all its pictures."""
    tab.resize(*size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    tab.send("Emulation.setEmulatedMedia", media=media, features=[feature])
    tab.open(url)


def how_wide(tab: Tab) -> int:
    return int(tab.evaluate("document.documentElement.scrollWidth"))


def broken_pictures(tab: Tab) -> list[str]:
    shown = "[...document.images].filter((image) => image.src && image.complete)"
    return list(tab.evaluate(f"{shown}.filter((i) => !i.naturalWidth).map((i) => i.outerHTML)"))


@cache
def axe() -> str:
    return (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")


def barriers(tab: Tab) -> list[str]:
    """What people with another eye, ear or hand would stumble on, as axe-core finds it."""
    tab.evaluate(axe() + "; 0")
    return list(tab.evaluate(
        "axe.run().then((found) => found.violations.flatMap((rule) => rule.nodes.map("
        "(node) => `${rule.id}: ${node.html.slice(0, 150)} ${node.failureSummary}`)))"
    ))  # fmt: skip


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), (DESK, "light")])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_its_screen_without_errors_or_barriers(
    world: Path, tab: Tab, page: str, size: tuple[int, int], scheme: str
) -> None:
    show(tab, (world / PAGES[page]).as_uri(), size, scheme=scheme)
    assert how_wide(tab) <= size[0]
    assert broken_pictures(tab) == []
    assert barriers(tab) == []
    assert tab.errors == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_paper(world: Path, tab: Tab, page: str) -> None:
    paper_px = A4_LANDSCAPE_PX if page == "preview" else A4_PX
    show(tab, (world / PAGES[page]).as_uri(), (paper_px, 1000), media="print")
    assert how_wide(tab) <= paper_px
    cut = tab.evaluate(
        "[...document.querySelectorAll('.wide, figure')].filter((e) => "
        f"e.getBoundingClientRect().right > {paper_px + 1} || e.scrollWidth > e.clientWidth + 1)"
        ".map((e) => e.innerText.slice(0, 60))"
    )
    assert cut == []
    paper = base64.b64decode(tab.send("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert paper.startswith(b"%PDF")


@pytest.mark.parametrize(
    "page", ["report", "report with covariates", "labels", "report of a label"]
)
def test_a_report_shows_tissue_and_leads_to_explanations_and_back(
    world: Path, tab: Tab, page: str
) -> None:
    report = (world / PAGES[page]).as_uri()
    show(tab, report, DESK)
    assert tab.evaluate("document.querySelectorAll('.tissue img.slide').length") > 0
    pages = tab.evaluate("[...document.querySelectorAll('a')].map((link) => link.href)")
    folder = (world / "explanations").as_uri()  # of all patients whose slides are there
    explanations = {address for address in pages if address.startswith(folder)}
    assert (world / PAGES["patients"]).as_uri() in explanations
    assert len(explanations) > 1
    of_two = (world / PAGES["report"]).as_uri()  # the run that was explained
    for address in explanations:
        tab.open(address)
        links = tab.evaluate("[...document.querySelectorAll('a')].map((link) => link.href)")
        assert of_two in links


def test_on_paper_all_patients_of_a_report_are_seen(world: Path, tab: Tab) -> None:
    show(tab, (world / PAGES["report"]).as_uri(), (A4_PX, 1000), media="print")
    assert tab.evaluate("document.querySelector('details tbody tr').getBoundingClientRect().height")


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_the_viewer_fits_its_screen_without_errors_or_barriers(
    server: ViewServer, tab: Tab, size: tuple[int, int]
) -> None:
    show(tab, server.url, size, scheme="dark" if size == PHONE else "light")
    for n_panes in (1, 2):
        tab.wait_for(f"typeof panes === 'object' && panes.length === {n_panes} && {SETTLED}")
        assert how_wide(tab) <= size[0]
        assert broken_pictures(tab) == []
        assert barriers(tab) == []
        tab.press("s")  # side by side
    assert tab.errors == []


def test_the_viewer_is_used_by_keys_alone(server: ViewServer, tab: Tab) -> None:
    show(tab, server.url, DESK)
    tab.wait_for(SETTLED)
    tab.evaluate("document.querySelectorAll('#rows button')[4].focus()")
    tab.send("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r")
    tab.wait_for("byId('patient').textContent === 'Patient p4'")
    tab.press("ArrowUp")
    tab.wait_for("byId('patient').textContent === 'Patient p3'")
    rows = "document.querySelectorAll('#rows [aria-current=true]')"
    assert tab.evaluate(f"[...{rows}].map((row) => row.querySelector('button').innerText)") == [
        "p3"
    ]


def test_the_viewer_says_that_it_waits_for_a_slide(
    server: ViewServer, tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(tab, server.url, DESK)
    tab.wait_for(f"{SETTLED} && panes[0].busy.hidden")
    may_read, read = threading.Event(), DeepZoomReader.read

    def wait_and_read(zoom: DeepZoomReader, window: Region) -> RgbArray:
        may_read.wait(60)
        return read(zoom, window)

    monkeypatch.setattr(DeepZoomReader, "read", wait_and_read)
    tab.evaluate("openPatient(5)")
    busy = "panes[0].busy"
    tab.wait_for(f"panes[0] && !{busy}.hidden && {busy}.textContent.startsWith('Reading')")
    may_read.set()
    tab.wait_for(f"{SETTLED} && {busy}.hidden")
