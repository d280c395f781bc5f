"""Series of images by the commands that a user types."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from features.bags.h5 import read_bag, write_bag
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.data.covariates import with_covariates
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.cli.running import expect_advice, follow_advice, mil, mil_ok
from tests.fakes import make_series
from tests.scans import BIRTH_DATE, PLANTED, paint_slice, write_frames, write_scan, write_slice

N_BAGS = 24


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bags of image series, a table of patients, a run, and the images of two series."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "bags").mkdir()
    rows, images = ["slide_id,patient_id,label"], ["bag_id,path"]
    for number in range(N_BAGS):
        bag = make_series(f"s{number}", n_images=6, dim=16, shift=0.9 * (number % 2))
        write_bag(folder / "bags" / f"s{number}.h5", bag)
        rows.append(f"s{number},p{number},{'ill' if number % 2 else 'well'}")
        for source in bag.source if number < 2 else ():
            Image.new("L", (40, 40), 60).save(folder / source)
            images.append(f"s{number},{source}")
    (folder / "train.csv").write_text("\n".join(rows))
    (folder / "images.csv").write_text("\n".join(images))
    cohort = read_cohort(folder / "train.csv", labelled=True)
    paths = {f"s{n}": folder / "bags" / f"s{n}.h5" for n in range(N_BAGS)}
    train_run(
        cohort, load_patient_bags(cohort, paths), folder / "run", n_folds=2, n_repeats=1, seed=0,
        on_head=lambda done, total: None,
        config=TrainConfig(n_members=2, n_components=8, fixed_steps=15),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), path)
    return path


def test_scans_are_embedded_by_one_command(tmp_path: Path, weights: Path) -> None:
    for number in range(2):
        write_scan(tmp_path / "scans" / f"scan{number}", n_slices=3, seed=(number,))
    command = (
        "embed", "--series", tmp_path / "scans", "--bags", tmp_path / "bags", "--backbone",
        "test_vit", "--weights", weights, "--execution", "eager", "--device", "cpu",
        "--tile-px", 64, "--batch", 4,
    )  # fmt: skip
    result = mil_ok(*command, "--json")
    assert json.loads(result.stdout)["n_tiles"] == 6
    assert read_bag(tmp_path / "bags" / "scan1.h5").order is not None
    again = mil_ok(*command)
    assert "skipped" in again.output
    for secret in (PLANTED, BIRTH_DATE):
        assert secret not in result.output + again.output


@pytest.mark.ci
def test_runs_on_series_take_covariates_and_are_combined(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "train.csv", dtype=str)
    table["age"] = [60 + number * 7 % 11 for number in range(N_BAGS)]
    table.to_csv(tmp_path / "train.csv", index=False)
    cohort = with_covariates(read_cohort(tmp_path / "train.csv", labelled=True), ["age"])
    paths = {f"s{n}": world / "bags" / f"s{n}.h5" for n in range(N_BAGS)}
    train_run(
        cohort, load_patient_bags(cohort, paths), tmp_path / "run", n_folds=2, report=False,
        config=TrainConfig(n_members=1, n_components=8, fixed_steps=2),
    )  # fmt: skip
    mil_ok("combine", tmp_path / "run", world / "run", "--run", tmp_path / "all")
    table[:4].drop(columns="label").to_csv(tmp_path / "new.csv", index=False)
    mil_ok("infer", "--run", tmp_path / "all", "--patients", tmp_path / "new.csv", "--bags",
           world / "bags", "--out", tmp_path / "out.csv")  # fmt: skip
    assert pd.read_csv(tmp_path / "out.details.csv")["seen_in_training"].all()


def test_slides_and_series_do_not_go_together(tmp_path: Path) -> None:
    for arguments in (("--series", tmp_path, tmp_path), (), ("--series", tmp_path, "--dry-run")):
        result = mil("embed", *arguments)
        assert result.exit_code == 2
    assert "not with --series" in result.output
    assert "PATHS" in mil("embed").output


def test_unknown_windows_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    result = mil("embed", "--series", tmp_path, "--windows", "liver")
    assert result.exit_code == 1
    assert "three of brain" in result.output


def test_verify_finds_nothing_wrong_with_bags_of_images(world: Path) -> None:
    result = mil_ok("bags", "verify", world / "bags", "--json")
    assert json.loads(result.stdout)["n_bad"] == 0


def test_describe_and_audit_take_bags_of_images(world: Path, tmp_path: Path) -> None:
    mil_ok("describe", world / "train.csv", "--bags", world / "bags", "--out", tmp_path / "d.html")
    page = (tmp_path / "d.html").read_text()
    assert "the number of embedded images of each series" in page
    assert "tissue" not in page.lower().split("<body")[1]
    audited = mil_ok("audit", world / "train.csv", "--bags", world / "bags")
    assert "24 of 24 bags hold series of images" in " ".join(audited.output.split())


def test_no_other_layout_is_made_of_bags_of_images(world: Path, tmp_path: Path) -> None:
    result = mil("bags", "export", world / "bags", "--to", "stamp", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "a bag of kind 'image'" in result.output


def test_a_run_on_series_infers_and_says_where_it_looked(world: Path, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("slide_id,patient_id\ns0,p0\ns1,p1\n")
    where = ("--run", world / "run", "--bags", world / "bags", "--patients", tmp_path / "test.csv")
    assert mil("infer", *where, "--out", tmp_path / "out.csv").exit_code == 0
    mil_ok("explain", *where, "--out", tmp_path / "e", "--series", world / "images.csv")
    page = (tmp_path / "e" / "p1" / "index.html").read_text()
    assert "Attention by position in series" in page
    assert 'class="switch"' not in page  # a single map needs none
    assert page.count("data:image/jpeg") == 6
    for text in (page, (tmp_path / "e" / "index.html").read_text()):
        shown = re.sub(r"<[^>]+>", " ", text.split("<body")[1])
        assert "Images" in shown
        assert not re.search(r"\b(slide|tile|tissue)s?\b", shown, re.IGNORECASE)
    table = (tmp_path / "e" / "p1" / "s1.csv").read_text().splitlines()
    assert table[0].startswith("slide_id,order,source,attention,percentile")
    assert len(table) == 7
    shares = [float(row.split(",")[3]) for row in table[1:]]
    np.testing.assert_allclose(sum(shares), 1)


def test_without_the_images_the_places_are_still_shown(world: Path, tmp_path: Path) -> None:
    mil_ok(
        "explain", "--run", world / "run", "--bags", world / "bags", "--slide", "s3", "--out",
        tmp_path / "e",
    )  # fmt: skip
    assert "Attention by position in series" in (tmp_path / "e" / "s3" / "index.html").read_text()


def test_slides_cannot_be_embedded_for_a_run_on_series(world: Path, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("slide_id,patient_id\nnew,p0\n")
    Image.new("RGB", (300, 300)).save(tmp_path / "new.png")
    result = mil(
        "infer", "--run", world / "run", "--bags", tmp_path / "none", "--slides", tmp_path,
        "--patients", tmp_path / "test.csv",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "series of images" in result.output


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> tuple[Path, list[str]]:
    """Scans, bags of all but one, a run of classes and one of labels; and all that was printed."""
    folder = tmp_path_factory.mktemp("scanned")
    scans, table = folder / "scans", ["slide_id,patient_id,label,any,sub"]
    for number in range(13):
        write_scan(scans / f"s{number}", n_slices=3, seed=(number,), bleeding=range(number % 2))
        table.append(f"s{number},p{number},{'ab'[number % 2]},{number % 2},{number // 2 % 2}")
    slices = [paint_slice(np.random.default_rng(n)) for n in range(3)]
    shutil.rmtree(scans / "s2")
    (scans / "s2").mkdir()
    write_frames(scans / "s2" / "frames.dcm", slices, positions=[10, 0, 5])
    broken = scans / "s3" / "IM0000.dcm"  # the rest of the scan is fine
    broken.write_bytes(broken.read_bytes()[:-3000])
    (folder / "train.csv").write_text("\n".join(table[:13]))
    (folder / "test.csv").write_text("slide_id,patient_id\ns12,p12\n")
    (folder / "known").mkdir()
    for number in range(12):
        (folder / "known" / f"s{number}").symlink_to(scans / f"s{number}")
    data = [
        mil(
            "embed", "--series", folder / "known", "--bags", folder / "bags", "--backbone",
            "test_vit", "--tile-px", 48, "--windows", "brain,bone,soft", "--weights", weights,
            "--device", "cpu", "--max-failed", 0.5,
        )
    ]  # fmt: skip
    data += [
        mil(
            "train", "--cohort", folder / "train.csv", "--bags", folder / "bags", "--run",
            folder / name, "--folds", 2, "--device", "cpu", *labels,
        )
        for name, labels in (("one", ()), ("several", ("--labels", "any,sub")))
    ]  # fmt: skip
    assert [result.exit_code for result in data] == [0] * 3, data
    return folder, [result.output for result in data]


@pytest.mark.parametrize("name", ["one", "several"])
def test_infer_embeds_new_series_as_those_of_the_run_were(
    scanned: tuple[Path, list[str]], tmp_path: Path, weights: Path, name: str
) -> None:
    folder, _ = scanned
    shutil.copytree(folder / "bags", tmp_path / "bags")
    result = mil_ok(
        "infer", "--run", folder / name, "--bags", tmp_path / "bags", "--patients",
        folder / "test.csv", "--series", folder / "scans", "--out", tmp_path / "out.csv", "--json",
        "--weights", weights, "--device", "cpu", "--batch", 4,
    )  # fmt: skip
    assert json.loads(result.stdout)["status"] == {"ok": 1}
    new, old = (read_bag(tmp_path / "bags" / f"s{n}.h5").meta.fingerprint for n in (12, 0))
    assert new == old


def test_slices_that_make_no_series_are_exported_again(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = f"embed --backbone test_vit --weights {weights} --tile-px 48 --device cpu --series "
    write_scan(tmp_path / "scans" / "whole", n_slices=2)
    whole = f"{embed} {tmp_path}/scans --bags {tmp_path}/whole"
    for number in range(2):
        write_scan(tmp_path / "studies" / "one" / f"{number}", n_slices=2, seed=(number,))
    (tmp_path / "mr" / "a").mkdir(parents=True)
    write_slice(
        tmp_path / "mr" / "a" / "a.dcm", paint_slice(np.random.default_rng(0)), Modality="MR"
    )
    write_scan(tmp_path / "cut" / "a", n_slices=1)
    dcmread = pydicom.dcmread

    def read(path: Path, **options: object) -> object:
        if "cut" in Path(path).parts:
            raise ValueError("a length beyond the end")
        return dcmread(path, **options)

    monkeypatch.setattr(pydicom, "dcmread", read)
    for name, advice in (
        ("studies", "Give each study its own bag id or folder."),
        ("mr", "Convert other images to PNG first, or allow more with --max-failed."),
        ("cut", "Export it again, or allow more with --max-failed."),
    ):
        follow_advice(f"{embed} {tmp_path}/{name} --bags {tmp_path}/bags", advice, whole)


def test_series_named_as_slides_are_named_as_series_instead(
    scanned: tuple[Path, list[str]], tmp_path: Path, weights: Path
) -> None:
    folder, _ = scanned
    shutil.copytree(folder / "bags", tmp_path / "bags")
    Image.new("RGB", (60, 60)).save(tmp_path / "s12.png")
    infer = (
        f"infer --run {folder}/one --bags {tmp_path}/bags --patients {folder}/test.csv "
        f"--out {tmp_path}/out.csv --weights {weights}"
    )
    follow_advice(
        f"{infer} --slides {tmp_path}",
        "Name them with --series instead of --slides.",
        f"{infer} --series {folder}/scans",
    )


def test_what_shows_series_is_proposed_instead_of_view(
    scanned: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, printed = scanned
    bags = ["--bags", str(folder / "bags")]
    expect_advice(
        ["view", folder / "one", *bags, "--no-browser"], "'mil explain --series' shows them."
    )
    mil_ok("explain", "--run", folder / "one", *bags, "--series", folder / "scans", "--patients",
           folder / "train.csv", "--patient", "p1", "--out", tmp_path / "pages")  # fmt: skip
    proposed = f"mil explain --run {folder / 'one'} --bags {folder / 'bags'} --series SERIES\n"
    assert proposed in printed[1]
    assert "mil view" not in printed[1]


def test_series_and_slides_are_not_asked_for_together(tmp_path: Path) -> None:
    result = mil(
        "infer", "--patients", tmp_path / "t.csv", "--series", tmp_path, "--slides", tmp_path
    )
    assert result.exit_code == 2


@pytest.mark.ci
def test_no_name_from_a_header_reaches_a_file_a_page_or_the_screen(
    scanned: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, data = scanned
    where = ("--bags", folder / "bags", "--patients", folder / "train.csv")
    for run in (folder / "one", folder / "several"):
        data.append(
            mil("infer", "--run", run, *where, "--out", tmp_path / f"{run.name}.csv").output
        )
    data += [
        result.output
        for result in (
            mil("describe", folder / "train.csv", "--bags", folder / "bags", "--out",
                tmp_path / "describe.html"),
            mil("explain", "--run", folder / "one", *where, "--series", folder / "scans", "--out",
                tmp_path / "pages"),
            mil("report", folder / "one"),
            mil("audit", folder / "train.csv", "--bags", folder / "bags"),
            mil("bags", "verify", folder / "bags"),
        )
    ]  # fmt: skip
    pages = [*folder.rglob("*.html"), *tmp_path.rglob("*.html")]
    assert len(pages) >= 1 + 3 + 1 + 13  # of runs, of the cohort, and of each patient explained
    written = [path for place in (folder, tmp_path) for path in place.rglob("*") if path.is_file()]
    for path in written:
        if path.suffix != ".dcm":
            data.append(f"{path.name} {path.read_bytes().decode('latin-1')}")
    for text in data:
        assert "Traceback" not in text
        for secret in (PLANTED, BIRTH_DATE, "1901-02-03", "Jane", "Doctor"):
            assert secret not in text, text[:60]


def test_series_cannot_be_embedded_for_a_run_of_an_unknown_backbone(
    world: Path, tmp_path: Path
) -> None:
    (tmp_path / "test.csv").write_text("slide_id,patient_id\nnew,p0\n")
    (tmp_path / "new").mkdir()
    Image.new("L", (30, 30)).save(tmp_path / "new" / "1.png")
    result = mil(
        "infer", "--run", world / "run", "--bags", tmp_path / "none", "--series", tmp_path,
        "--patients", tmp_path / "test.csv", "--out", tmp_path / "out.csv", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "backbone 'fake'" in result.output


def test_labels_of_images_that_no_bag_holds_are_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "bags").mkdir()
    rows, images = ["image_id,patient_id,label"], ["slide_id,source,label"]
    for number in range(12):
        name = f"s{number}"
        write_bag(tmp_path / "bags" / f"{name}.h5", make_series(name, shift=number % 2))
        rows.append(f"{name},p{number},{'ab'[number % 2]}")
        images += [f"{name},{name}_{index}.png,{index % 2}" for index in range(4)]
    images += [f"t{number},t_{index}.png,1" for number in range(7) for index in range(2)]
    images.append("s0,another.png,1")
    table, labels = tmp_path / "train.csv", tmp_path / "images.csv"
    table.write_text("\n".join(rows))
    labels.write_text("\n".join(images))
    given = ["--bags", tmp_path / "bags", "--image-labels", labels]
    few = ["--set", "n_members=1", "--set", "fixed_steps=2", "--set", "n_components=4"]
    run = tmp_path / "run"
    train = ["train", "--cohort", table, *given, "--run", run, "--head", "gated", "--folds", 2]
    explain = ["explain", "--run", run, "--patients", table, *given, "--out", tmp_path / "pages"]
    for command in ([*train, *few], explain):
        told = mil_ok(*command).stderr
        others = "labels of images of 7 bags that are not read: t0, t1, t2, t3, t4 and 2 mo"
        assert (others in told) == (command is not explain)  # which shows a part of the patients
        assert "labels of 1 image that their bags do not hold: s0/another.png" in told
    table.write_text("\n".join(rows[:1] + rows[3:5]))
    assert "labels of images" not in mil_ok(*explain).stderr
    table.write_text("\n".join([*rows, "t0,p12,a"]))
    assert "images of 1 bag that are not read: t0" in mil(*explain).stderr
    table.write_text("\n".join(rows))
    labels.write_text("slide_id,source,label\ns0,another.png,1\n")
    told = mil_ok(*explain)
    assert "no patient's images have labels of both kinds" in told.stderr
    assert "nan" not in told.stdout
