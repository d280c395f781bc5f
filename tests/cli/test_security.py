"""Hostile ids through every command, and the network, which nobody asks."""

from __future__ import annotations

import csv
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from features.bags.h5 import bag_path, write_bag
from features.encoders.weights import build_untrained
from tests.cli.running import mil, mil_ok
from tests.fakes import make_bag, write_cohort

PATIENTS = [
    "../../x", "/etc/passwd", "con", "nul.txt", "x" * 300, "two\nlines", "=cmd|' /C calc'!A0",
    "@SUM(1)", "-2+3", "<script>alert(1)</script>", "049194", "\x1b[31mred", "..b", "a\\b",
]  # fmt: skip
SLIDES = ["con", "two\nlines", "=1+1", "x" * 240, "<b>", "{{ 7*7 }}", "\x1b]0;title\x07"]
TINY = "test_resnet"


def write_table(path: Path, rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose cohort has hostile patients and slides among its own."""
    folder = tmp_path_factory.mktemp("outer") / "world"
    table = write_cohort(folder, n_patients=24, shift=0.8)
    with table.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    for number, patient in enumerate(PATIENTS):
        slide = SLIDES[number] if number < len(SLIDES) else f"h{number}"
        write_bag(bag_path(folder / "bags", slide), make_bag(slide, n_tiles=6, dim=16))
        rows.append([slide, patient, "LAA" if number % 2 else "CE"])
    write_table(table, [header, *rows])
    mil_ok("train", "--cohort", table, "--bags", folder / "bags", "--run", folder / "run",
                "--folds", 2, "--head", "mean")  # fmt: skip
    return folder


def files_of(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_hostile_ids_go_through_inference_to_the_letter_and_are_no_formulas(
    world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "submission.csv"
    mil_ok("infer", "--patients", world / "train.csv", "--run", world / "run",
                "--bags", world / "bags", "--out", out)  # fmt: skip
    with out.open(newline="", encoding="utf-8") as file:
        written = [row[0] for row in csv.reader(file)]
    assert not [name for name in written if name[:1] in {"=", "@", "+", "-"}]
    assert {name for name in PATIENTS if name[0] not in "=@-"} < set(written)
    assert {f"'{name}" for name in PATIENTS if name[0] in "=@-"} < set(written)
    scored = mil_ok("score", out, "--cohort", world / "train.csv", "--json")
    assert json.loads(scored.stdout)["files"][0]["raw"]["auroc"]["value"] > 0.5


@pytest.mark.ci
def test_hostile_ids_write_nothing_outside_their_folder(world: Path, tmp_path: Path) -> None:
    before = files_of(world.parent)
    for command in (
        ["explain", "--patients", world / "train.csv", "--run", world / "run",
         "--bags", world / "bags", "--out", tmp_path / "pages"],
        ["describe", world / "train.csv", "--out", tmp_path / "describe.html"],
        ["audit", world / "train.csv", "--bags", world / "bags"],
    ):  # fmt: skip
        result = mil(*command)
        assert result.exit_code in {0, 1, 3}, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output
    assert files_of(world.parent) == before
    assert {path.name for path in tmp_path.iterdir()} == {"pages", "describe.html"}
    assert len([path for path in (tmp_path / "pages").iterdir() if path.is_dir()]) == 38
    for page in tmp_path.rglob("*.html"):
        assert "<script>alert" not in page.read_text(encoding="utf-8")


def test_a_name_is_no_markup_and_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    folder = tmp_path / "x["
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "b] [bold] :smile: \x1b]0;title\x07.png")
    result = mil_ok("inspect", folder)
    assert "\x1b" not in result.output
    assert "x[/b] [bold] :smile: ?]0;title?.png" in result.output.replace("\n", "")


def test_an_error_is_one_line_whatever_a_name_holds(tmp_path: Path) -> None:
    rows = [("image_id", "patient_id", "label"), ("a", "two\nlines\x1b[31m", "x"),
            ("b", "two\nlines\x1b[31m", "y")]  # fmt: skip
    table = write_table(tmp_path / "t.csv", rows)
    result = mil("train", "--cohort", table, "--bags", tmp_path, "--run", tmp_path / "run")
    assert result.exit_code == 1
    assert "\x1b[31m" not in result.output
    assert len(result.output.strip().splitlines()) == 1


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Addresses that the program asked over a network; none of them answers."""
    recipients: list[object] = []
    connect = socket.socket.connect

    def refuse(*arguments: object, **_: object) -> None:
        recipients.append(arguments)
        raise OSError("the network is not there")

    def connect_here_only(self: socket.socket, address: object) -> None:
        if self.family == socket.AF_UNIX:  # processes of this machine talk so
            connect(self, address)
        else:
            refuse(address)

    monkeypatch.setattr(socket.socket, "connect", connect_here_only)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket.socket, "sendto", refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    return recipients


@pytest.mark.ci
def test_from_slides_to_predictions_nobody_asks_the_network(
    tmp_path: Path, asked: list[object]
) -> None:
    (tmp_path / "slides").mkdir()
    rows = [("image_id", "patient_id", "label")]
    for number in range(12):
        pixels = np.full((256, 256, 3), 245, np.uint8)
        noise = np.random.default_rng(number).integers(0, 60, (160, 160, 3), np.uint8)
        pixels[48:208, 48:208] = noise + np.array([150, 60, 120], np.uint8)
        tifffile.imwrite(
            tmp_path / "slides" / f"{number}.tif", pixels, photometric="rgb", tile=(64, 64)
        )
        rows.append((f"{number}", f"p{number}", "LAA" if number % 2 else "CE"))
    table = write_table(tmp_path / "train.csv", rows)
    torch.manual_seed(0)
    torch.save(build_untrained(TINY).state_dict(), tmp_path / "w.pth")
    bags, run = tmp_path / "bags", tmp_path / "run"
    for command in (
        ["embed", tmp_path / "slides", "--bags", bags, "--backbone", TINY, "--weights",
         tmp_path / "w.pth", "--slide-mpp", "0.5", "--tile-px", 64, "--device", "cpu",
         "--rules", "none", "--min-tissue", 0],
        ["train", "--cohort", table, "--bags", bags, "--run", run, "--folds", 2, "--head", "mean"],
        ["report", run],
        ["infer", "--patients", table, "--run", run, "--bags", bags, "--out",
         tmp_path / "submission.csv"],
    ):  # fmt: skip
        mil_ok(*command)
    assert asked == []
