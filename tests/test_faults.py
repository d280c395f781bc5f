"""The whole road where nothing is convenient: odd names, read-only inputs, a disk that is full."""

from __future__ import annotations

import ast
import errno
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from cli.viewer.content import ViewerState
from features.bags.h5 import find_bags
from mil.calibration.priors import balanced
from mil.data.cohort import read_cohort
from mil.inference.bundle import load_bundle
from mil.inference.predict import predict
from tests.cli.running import mil, mil_ok
from tests.cli.test_filter import pen, tissue
from tests.cli.test_view import ask, serve
from tests.disks import full_after, read_only

pytestmark = pytest.mark.usefixtures("quick_runs")
ROOT = Path(__file__).parents[1]
N_PATIENTS = 12


def slide_id(number: int) -> str:
    return f"Präparat {number:02d} β"


def write_as_excel(path: Path, rows: list[tuple[str, ...]]) -> None:
    """As a German Excel saves: with a mark, semicolons, and Windows line ends."""
    text = "".join(";".join(row) + "\r\n" for row in rows)
    path.write_bytes(text.encode("utf-8-sig"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides, tables and weights under a name with blanks, umlauts and signs; bags and a run."""
    base = tmp_path_factory.mktemp("world") / "Größe 切片 (é) & #1 100%"
    for name in ("Schnitte ä", "Serien", "Beispiele"):
        (base / name).mkdir(parents=True)
    torch.manual_seed(0)
    save_file(
        timm.create_model("test_vit", pretrained=False).state_dict(), base / "Gewichte.safetensors"
    )
    rows = [("image_id", "patient_id", "label")]
    series, examples = [("bag_id", "path")], [("path", "label", "slide_id")]
    for number in range(N_PATIENTS):
        pixels = np.full((560, 560, 3), 245, np.uint8)
        pixels[80:480, 80:480] = tissue(number, 400)
        Image.fromarray(pixels).save(base / "Schnitte ä" / f"{slide_id(number)}.png")
        rows.append((slide_id(number), f"Müller {number:02d}", "AB"[number % 2]))
    for number in range(4):
        Image.fromarray(tissue(number, 80)).save(base / "Serien" / f"Bild {number}.png")
        series.append((f"Serie {number // 2} ü", f"Serien/Bild {number}.png"))
        for name, paint in (("keep", tissue), ("drop", pen)):
            path = f"Beispiele/{name} {number}.png"
            Image.fromarray(paint(50 + number, 240)).save(base / path)
            examples.append((path, name, f"fremd {number}"))
    for name, table in (("Kohorte", rows), ("Serien", series), ("Beispiele", examples)):
        write_as_excel(base / f"{name}.csv", table)
    mil_ok("embed", base / "Schnitte ä", "--bags", base / "Taschen", *backbone(base))
    mil_ok(
        "train", "--cohort", base / "Kohorte.csv", "--bags", base / "Taschen", "--run",
        base / "Läufe" / "erster Lauf", "--folds", 2, "--head", "mean",
    )  # fmt: skip
    return base


def backbone(base: Path) -> tuple[object, ...]:
    return (
        "--backbone", "test_vit", "--weights", base / "Gewichte.safetensors", "--tile-px", 80,
        "--execution", "eager", "--batch", 8,
    )  # fmt: skip


def steps(base: Path, out: Path) -> dict[str, tuple[object, ...]]:
    """Commands that read what lies in ``base`` and write below ``out``, by what they write."""
    cohort, slides, bags = base / "Kohorte.csv", base / "Schnitte ä", base / "Taschen"
    of_run = ("--run", base / "Läufe" / "erster Lauf", "--bags", bags)
    return {
        "bags": ("embed", slides, "--bags", out / "bags", *backbone(base)),
        "series": (
            "embed", "--series", base / "Serien.csv", "--bags", out / "series", *backbone(base)
        ),
        "pictures": ("preview", slides, "--out", out / "pictures", "--tile-px", 80),
        "pack.zarr": ("bags", "pack", bags, "--out", out / "pack.zarr", "--overwrite"),
        "export": ("bags", "export", bags, "--to", "clam", "--out", out / "export"),
        "filter.safetensors": (
            "filter", "fit", base / "Beispiele.csv", "--out", out / "filter.safetensors",
            *backbone(base),
        ),
        "run": (
            "train", "--cohort", cohort, "--bags", bags, "--run", out / "run", "--folds", 2,
            "--head", "mean",
        ),
        "submission.csv": (
            "infer", "--patients", cohort, *of_run, "--out", out / "submission.csv"
        ),
        "pages": (
            "explain", "--patients", cohort, *of_run, "--slides", slides, "--out", out / "pages",
            "--patient", "Müller 03", "--top", 2,
        ),
        "describe.html": (
            "describe", cohort, "--slides", slides, "--bags", bags, "--out", out / "describe.html"
        ),
    }  # fmt: skip


STEPS = tuple(steps(Path(), Path()))


@pytest.mark.parametrize("name", STEPS)
def test_every_command_works_with_any_name_on_inputs_that_cannot_be_written_to(
    world: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "Ausgabe 出力 ñ"
    out.mkdir()
    with read_only(world):
        mil_ok(*steps(world, out)[name])
    assert (out / name).exists()
    if name == "submission.csv":
        patients = pd.read_csv(out / name)["patient_id"].tolist()
        assert patients == [f"Müller {number:02d}" for number in range(N_PATIENTS)]
    if name == "bags":
        assert list(find_bags(out / name)) == [slide_id(n) for n in range(N_PATIENTS)]


def test_commands_that_only_look_take_any_name(world: Path) -> None:
    cohort, bags, run = world / "Kohorte.csv", world / "Taschen", world / "Läufe" / "erster Lauf"
    data = json.loads(mil_ok("inspect", world / "Schnitte ä", "--json").stdout)
    assert data["slides"][0]["slide_id"] == slide_id(0)
    mil_ok("bags", "verify", bags)
    mil_ok("audit", cohort, "--bags", bags)
    table = read_cohort(cohort, labelled=False)
    model = load_bundle(run)
    prior = balanced(model.classes)
    viewed = ViewerState(
        model, table, predict(model, table, bags, prior=prior), bags=find_bags(bags),
        prior=prior, paths={slide_id(3): world / "Schnitte ä" / f"{slide_id(3)}.png"},
    )  # fmt: skip
    serving = serve(viewed)
    server = next(serving)
    status, content, _ = ask(server, f"/{server.token}/patients.json")
    assert status == 200
    assert "Müller 03" in json.dumps(json.loads(content), ensure_ascii=False)
    assert next(serving, None) is None


def test_a_report_is_not_written_into_a_run_that_is_read_only(world: Path) -> None:
    run = world / "Läufe" / "erster Lauf"
    with read_only(run):
        result = mil("report", run)
    assert result.exit_code == 1
    assert "report.html: cannot be written (Read-only file system)" in result.output
    assert "Make the folder writable" in result.output


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "name", [name for name in STEPS if name not in {"bags", "series", "run", "export"}]
)
def test_a_full_disk_is_one_clear_error_and_leaves_what_was_written_before(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    command = steps(world, tmp_path)[name]
    mil_ok(*command)
    before = contents(tmp_path)
    with monkeypatch.context() as patched:
        full_after(patched, 0, number=errno.ENOSPC, text="No space left on device")
        result = mil(*command)
    assert result.exit_code == 1, result.output
    assert "cannot be written (No space left on device)" in result.output
    assert "Free some space" in result.output
    assert contents(tmp_path) == before
    mil_ok(*command)
    assert contents(tmp_path) == before


def test_a_full_disk_while_a_report_is_drawn_leaves_the_old_one(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world / "Läufe" / "erster Lauf"
    before = contents(run)
    with monkeypatch.context() as patched:
        full_after(patched, 0, number=errno.ENOSPC, text="No space left on device")
        result = mil("report", run)
    assert result.exit_code == 1
    assert "report.html: cannot be written (No space left on device)" in result.output
    assert contents(run) == before


def test_every_test_that_the_table_of_faults_names_exists() -> None:
    text = (ROOT / "docs" / "reference" / "faults.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    rows = [line for line in lines if not line.endswith("| shown by |")]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for path, name in named:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
            assert name in functions, f"{path} has no {name}"
