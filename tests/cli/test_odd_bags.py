"""Bags that are damaged, missing or odd: every command goes on with the others and says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from features.bags.h5 import read_bag, write_bag
from tests.cli.running import mil, mil_ok
from tests.fakes import make_bag, write_cohort


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bags, a table and a run of 20 patients."""
    folder = tmp_path_factory.mktemp("world")
    write_cohort(folder, n_patients=20, shift=1.0)
    train(folder / "train.csv", folder / "bags", folder / "run")
    for number in range(4):
        write_bag(folder / "bags" / f"n{number}.h5", make_bag(f"n{number}", dim=16, n_tiles=12))
    return folder


def train(table: Path, bags: Path, run: Path, *options: object) -> None:
    mil_ok(
        "train", "--cohort", table, "--bags", bags, "--run", run, "--folds", 2, "--head", "mean",
        *options,
    )  # fmt: skip


@pytest.fixture
def bags(world: Path, tmp_path: Path) -> Path:
    shutil.copytree(world / "bags", tmp_path / "bags")
    return tmp_path / "bags"


def fill(value: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file["features"][...] = value

    return change


def put(value: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file["features"][3, 5] = value

    return change


def place(x_px0: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file["coords"][2, 0] = x_px0

    return change


def attribute(name: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file.attrs[name] = value

    return change


DAMAGE = {
    "NaN": put(np.nan), "infinity": put(-np.inf), "zeros": fill(0), "a constant": fill(7),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:900]),
    "of another slide": lambda path: write_bag(path, make_bag("other", dim=16)),
    "of another make": lambda path: write_bag(path, make_bag(path.stem, dim=15)),
    "of version 0": attribute("format_version", 0), "of no kind": attribute("kind", "frog"),
    "left of the slide": place(-448), "right of the slide": place(448 * 90),
    "no HDF5": lambda path: path.write_bytes(b"<html>not found</html>"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_inference_goes_on_past_a_damaged_bag(
    world: Path, bags: Path, tmp_path: Path, damage: str
) -> None:
    DAMAGE[damage](bags / "n1.h5")
    table = tmp_path / "test.csv"
    table.write_text("image_id,patient_id\nn0,p0\nn1,p1\nn2,p2\nn3,p2\n")
    out = tmp_path / "out.csv"
    ask = ["infer", "--patients", table, "--run", world / "run", "--bags", bags, "--out", out]
    result = mil(*ask, "--abstain")
    assert result.exit_code == 3
    assert "warning: not used: " in result.output
    assert "n1" in result.output
    rows = pd.read_csv(out, index_col="patient_id")
    assert rows.notna().all(axis=None)
    assert rows.loc["p1"].tolist() == [0.5, 0.5]
    details = pd.read_csv(tmp_path / "out.details.csv", index_col="patient_id")
    assert details.loc["p1", "status"] == "bag_refused"
    assert details.loc["p1", "look_at"]
    assert "n1" in details.loc["p1", "problems"]
    assert details.loc[["p0", "p2"], "status"].tolist() == ["ok", "ok"]
    data = json.loads(mil(*ask, "--json").stdout)
    assert list(data["problems"]) == ["n1"]


@pytest.mark.parametrize("damage", ["NaN", "cut off", "left of the slide"])
def test_the_other_commands_name_a_damaged_bag(
    world: Path, bags: Path, tmp_path: Path, damage: str
) -> None:
    DAMAGE[damage](bags / "003_0.h5")
    table = world / "train.csv"
    codes = {
        "train": ("--cohort", table, "--run", tmp_path / "run", "--folds", 2, "--head", "mean"),
        "audit": (table,),
        "describe": (table, "--out", tmp_path / "d.html"),
        "explain": ("--patients", table, "--run", world / "run", "--out", tmp_path / "pages"),
    }
    for command, options in codes.items():
        result = mil(command, *options, "--bags", bags)
        assert result.exit_code == (1 if command == "train" else 3), (command, result.output)
        assert "003_0" in result.output, command
        assert "Traceback" not in result.output


def test_explanations_go_on_past_a_bag_of_another_make(
    world: Path, bags: Path, tmp_path: Path
) -> None:
    DAMAGE["of another make"](bags / "n1.h5")
    table = tmp_path / "test.csv"
    table.write_text("image_id,patient_id\nn0,p0\nn1,p1\n")
    ask = ["explain", "--patients", table, "--run", world / "run", "--bags", bags, "--out",
           tmp_path / "pages"]  # fmt: skip
    result = mil(*ask)
    assert result.exit_code == 3
    assert (
        "n1.h5: made with embeddings of 15 numbers; expected embeddings of 16 numbers as in the run"
        in result.output
    )
    table.write_text("image_id,patient_id\nn1,p1\n")
    assert mil(*ask).exit_code == 1


def test_a_part_of_a_patient_is_predicted(world: Path, bags: Path, tmp_path: Path) -> None:
    DAMAGE["NaN"](bags / "n1.h5")
    table = tmp_path / "test.csv"
    table.write_text("image_id,patient_id\nn0,p0\nn1,p0\n")
    ask = ["infer", "--patients", table, "--run", world / "run", "--bags", bags, "--out",
           tmp_path / "out.csv"]  # fmt: skip
    assert mil(*ask).exit_code == 3
    details = pd.read_csv(tmp_path / "out.details.csv")
    assert details["status"].tolist() == ["slides_missing"]
    assert details["n_tiles"].tolist() == [12]


@pytest.mark.parametrize("names", [("000", "N1"), ("slide 000_0", "x_n1"), ("000-0", "x")])
def test_no_bag_of_any_patient_is_exit_code_1_with_the_nearest_names(
    world: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    table = tmp_path / "test.csv"
    table.write_text("image_id,patient_id\n" + "".join(f"{n},p{n}\n" for n in names))
    result = mil("infer", "--patients", table, "--run", world / "run", "--bags", world / "bags",
                 "--out", tmp_path / "out.csv")  # fmt: skip
    assert result.exit_code == 1
    assert "none of its 2 slides has a bag" in result.output
    assert "'000_0'" in result.output.split("the nearest of the ")[1]
    assert not (tmp_path / "out.csv").exists()
    explained = mil("explain", "--patients", table, "--run", world / "run", "--bags",
                    world / "bags", "--out", tmp_path / "pages")  # fmt: skip
    assert explained.exit_code == 1
    assert explained.output.strip() == result.output.strip()


def test_the_order_of_rows_changes_nothing(world: Path, tmp_path: Path) -> None:
    header, *rows = (world / "train.csv").read_text().splitlines()
    rows = [rows[index] for index in np.random.default_rng(1).permutation(len(rows))]
    table = tmp_path / "train.csv"
    table.write_text("\n".join([header, *rows]) + "\n")
    train(table, world / "bags", tmp_path / "run")
    assert (tmp_path / "run" / "model.json").read_bytes() == (
        world / "run" / "model.json"
    ).read_bytes()  # it holds the digests of all parts


@pytest.mark.parametrize("order", ["shuffled", "reversed", "mirrored", "turned"])
def test_copies_in_another_order_are_found(
    world: Path, bags: Path, tmp_path: Path, order: str
) -> None:
    bag = read_bag(bags / "003_0.h5")
    rows = np.arange(12)
    rows = {
        "shuffled": np.random.default_rng(0).permutation(12), "reversed": rows[::-1],
        "mirrored": rows.reshape(3, 4)[:, ::-1].ravel(),
        "turned": np.rot90(rows.reshape(3, 4)).ravel(),
    }[order]  # fmt: skip
    write_bag(bags / "n0.h5", make_bag("n0", dim=16, n_tiles=12))
    with h5py.File(bags / "n0.h5", "r+") as file:
        file["features"][...] = bag.features[rows]
    table = tmp_path / "test.csv"
    table.write_text("image_id,patient_id\nn0,new\n")
    result = mil("audit", world / "train.csv", table, "--bags", bags)
    assert result.exit_code == 1
    assert "have the same embeddings" in result.output
    ask = ["infer", "--patients", table, "--run", world / "run", "--bags", bags, "--out",
           tmp_path / "out.csv"]  # fmt: skip
    assert "was trained on 1 of these patients" in mil_ok(*ask).output
    assert pd.read_csv(tmp_path / "out.details.csv", dtype=str)["seen_as"].tolist() == ["003"]


@pytest.mark.parametrize("change", ["cut short", "added to", "in part among others"])
def test_copies_that_lost_or_gained_tiles_are_found(
    world: Path, bags: Path, tmp_path: Path, change: str
) -> None:
    tiles = read_bag(bags / "003_0.h5").features
    own = make_bag("n0", dim=16, n_tiles=30).features
    features = {
        "cut short": tiles[4:], "added to": np.concatenate([own[:5], tiles]),
        "in part among others": np.concatenate([tiles[:8], own]),
    }[change]  # fmt: skip
    copy = make_bag("n0", dim=16, n_tiles=len(features))
    write_bag(bags / "n0.h5", replace(copy, features=features))
    table = tmp_path / "test.csv"
    table.write_text("image_id,patient_id\nn0,new\n")
    ask = ["infer", "--patients", table, "--run", world / "run", "--bags", bags, "--out",
           tmp_path / "out.csv"]  # fmt: skip
    assert "was trained on 1 of these patients" in mil_ok(*ask).output
    assert pd.read_csv(tmp_path / "out.details.csv", dtype=str)["seen_as"].tolist() == ["003"]
    both = tmp_path / "train.csv"
    both.write_text((world / "train.csv").read_text() + "n0,new,CE\n")
    train(both, bags, tmp_path / "run")
    notes = (tmp_path / "run" / "notes.json").read_text()
    assert "copies of each other: 1, first 003_0 of 003 and n0 of new" in notes
    folds = pd.read_csv(tmp_path / "run" / "folds.csv", dtype=str).set_index("patient_id")
    assert folds.loc["003", "fold"] == folds.loc["new", "fold"]


@pytest.mark.parametrize("has_places", [True, False])
@pytest.mark.parametrize("change", ["cut short", "added to"])
def test_the_audit_finds_copies_that_lost_or_gained_tiles(
    world: Path, bags: Path, tmp_path: Path, change: str, has_places: bool
) -> None:
    bag = read_bag(bags / "003_0.h5")
    own = make_bag("n0", dim=16, n_tiles=30).features
    features = bag.features[3:] if change == "cut short" else np.concatenate([bag.features, own])
    copy = make_bag("n0", dim=16, n_tiles=len(features))
    places = copy.coords_px0 if has_places else np.full_like(copy.coords_px0, -1)
    write_bag(bags / "n0.h5", replace(copy, features=features, coords_px0=places))
    table = tmp_path / "test.csv"
    table.write_text("image_id,patient_id\nn0,new\n")
    result = mil("audit", world / "train.csv", table, "--bags", bags, "--json")
    assert result.exit_code == 1
    (found,) = (f for f in json.loads(result.stdout)["findings"] if f["kind"] == "shared_tiles")
    assert found["severity"] == "error"
    assert "003_0" in found["message"]
    assert "n0" in found["message"]


def test_copies_of_a_slide_of_one_patient_count_once(
    world: Path, bags: Path, tmp_path: Path
) -> None:
    tiles = read_bag(bags / "n0.h5").features
    part = np.concatenate([make_bag("own", dim=16, n_tiles=2).features, tiles[9:0:-1]])
    for number, copied in enumerate((tiles, tiles[::-1], part)):
        copy = replace(make_bag(f"c{number}", dim=16, n_tiles=len(copied)), features=copied)
        write_bag(bags / f"c{number}.h5", copy)
    details = {}
    for name, slides in (("once", ["n0", "n1"]), ("thrice", ["n0", "c0", "c1", "c2", "n1"])):
        table = tmp_path / f"{name}.csv"
        table.write_text("image_id,patient_id\n" + "".join(f"{slide},p\n" for slide in slides))
        mil_ok("infer", "--patients", table, "--run", world / "run", "--bags", bags, "--out",
               tmp_path / "out.csv")  # fmt: skip
        details[name] = pd.read_csv(tmp_path / "out.details.csv").iloc[0]
        details[name]["CE"] = pd.read_csv(tmp_path / "out.csv")["CE"].iloc[0]
    for column in ("CE", "typicality", "set", "status"):
        assert details["once"][column] == details["thrice"][column], column
    mil_ok("explain", "--patients", tmp_path / "thrice.csv", "--run", world / "run", "--bags", bags,
           "--out", tmp_path / "pages")  # fmt: skip
    both = tmp_path / "train.csv"
    both.write_text(
        (world / "train.csv").read_text() + "n0,new,CE\nc0,new,CE\nc1,new,CE\nc2,new,CE\n"
    )
    train(both, bags, tmp_path / "run")
    notes = (tmp_path / "run" / "notes.json").read_text()
    assert "copies of another slide of their patient, which counts once: 3, c1, c2, n0" in notes


EDITS: dict[str, Callable[[dict], None]] = {
    "classes": lambda run: run["classes"].reverse(),
    "counts": lambda run: run["cohort_counts"].reverse(),
    "slope": lambda run: run["calibrator"].update(slope=1e300),
    "seed": lambda run: run["settings"].update(seed=99),
    "no digest": lambda run: run.pop("sha256"),
    "versions": lambda run: run["versions"].update(torch="0.1"),
    "said to be of version 1": lambda run: run.update(format_version=1),
    "said to be of version 2": lambda run: run.update(format_version=2),
    "of version 2 without its own digest": lambda run: run.update(format_version=2, sha256=None),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_run_edited_by_hand_is_refused(world: Path, tmp_path: Path, edit: str) -> None:
    shutil.copytree(world / "run", tmp_path / "run")
    described = json.loads((tmp_path / "run" / "model.json").read_text())
    EDITS[edit](described)
    (tmp_path / "run" / "model.json").write_text(json.dumps(described))
    assert_refused(world, tmp_path)


def test_a_part_of_another_run_is_refused(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    described = json.loads((run / "model.json").read_text())
    for_people = {"MODEL_CARD.md", "model.json", "report.html", "settings.toml"}
    assert {path.name for path in run.iterdir()} - for_people == set(described["parts_sha256"])
    for part in sorted(described["parts_sha256"]):
        before = (run / part).read_bytes()
        content = bytearray(before)
        content[-3] ^= 1
        (run / part).write_bytes(content)
        assert_refused(world, tmp_path)
        for command in (["report", run], ["compare", run, world / "run"]):
            result = mil(*command)
            assert result.exit_code == 1, part
            assert part in result.output
        (run / part).write_bytes(before)


def test_held_out_predictions_of_another_run_are_refused_without_digests(
    world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    described = json.loads((run / "model.json").read_text())
    kept = {name: value for name, value in described.items() if "sha256" not in name}
    kept |= {"format_version": 2, "filter_sha256": None}
    (run / "model.json").write_text(json.dumps(kept))
    mil_ok("report", run)
    table = pd.read_csv(run / "judged.csv", dtype=str)
    table["calibrated_CE"], table["calibrated_LAA"] = (
        table["calibrated_LAA"],
        table["calibrated_CE"],
    )
    table.to_csv(run / "judged.csv", index=False)
    for command in (["report", run], ["compare", run, world / "run"]):
        result = mil(*command)
        assert result.exit_code == 1
        assert "judged.csv is of another run" in result.output


def assert_refused(world: Path, folder: Path) -> None:
    result = mil("infer", "--patients", world / "train.csv", "--run", folder / "run", "--bags",
                 world / "bags", "--out", folder / "out.csv")  # fmt: skip
    assert result.exit_code == 1
    assert "damaged" in result.output
    assert not (folder / "out.csv").exists()


def test_a_description_in_another_layout_is_the_same(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "run", tmp_path / "run")
    path = tmp_path / "run" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    for run, name in ((world / "run", "before.csv"), (tmp_path / "run", "after.csv")):
        mil_ok("infer", "--patients", world / "train.csv", "--run", run, "--bags", world / "bags",
               "--out", tmp_path / name)  # fmt: skip
    assert (tmp_path / "after.csv").read_bytes() == (tmp_path / "before.csv").read_bytes()


def test_columns_are_named_on_every_command(world: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    text = (world / "train.csv").read_text()
    table.write_text(text.replace("image_id,patient_id,label", "wsi,case_id,diagnosis"))
    names = ["--column", "slide=wsi", "--column", "patient=case_id", "--column",
             "label=diagnosis"]  # fmt: skip
    of_run = ["--run", world / "run", "--bags", world / "bags"]
    mil_ok("audit", table, *names)
    mil_ok("describe", table, *names, "--out", tmp_path / "d.html")
    mil_ok("infer", "--patients", table, *of_run, *names, "--out", tmp_path / "o.csv")
    mil_ok("score", tmp_path / "o.csv", "--cohort", table, *names)
    assert mil("audit", table).exit_code == 1
    assert mil("audit", table, "--column", "colour=x").exit_code == 2


def test_spellings_are_named_by_audit_and_describe(world: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = [f"s{n},p{n},{'Aa'[n % 2]},{('Mayo', 'mayo ', 'M')[n % 3]}" for n in range(12)]
    table.write_text("image_id,patient_id,label,center_id\n" + "\n".join(rows) + "\n")
    for command in ("audit", "describe"):
        options = ["--out", tmp_path / "d.html"] if command == "describe" else []
        output = mil(command, table, *options).output
        assert "A = a" in output
        assert "Mayo = mayo" in output
    result = mil("train", "--cohort", table, "--bags", world / "bags", "--run", tmp_path / "run")
    assert result.exit_code == 1
    assert "'A' and 'a', which look alike" in result.output


def test_center_is_another_spelling_of_centre(world: Path, tmp_path: Path) -> None:
    result = mil("train", "--by", "center", "--cohort", world / "train.csv", "--bags",
                 world / "bags", "--run", tmp_path / "run")  # fmt: skip
    assert result.exit_code == 1
    assert "patients without a centre" in result.output


def test_huge_embeddings_get_bounded_probabilities(world: Path, bags: Path, tmp_path: Path) -> None:
    for number, scale in enumerate((1e4, 3e2, 1e3, -1e4)):
        path = bags / f"n{number}.h5"
        tiles = (read_bag(path).features.astype(np.float64) * abs(scale) + scale).clip(-6e4, 6e4)
        with h5py.File(path, "r+") as file:
            file["features"][...] = tiles
    table = tmp_path / "test.csv"
    table.write_text("image_id,patient_id\n" + "".join(f"n{n},p{n}\n" for n in range(4)))
    mil("infer", "--patients", table, "--run", world / "run", "--bags", bags, "--abstain", "--out",
        tmp_path / "out.csv")  # fmt: skip
    rows = pd.read_csv(tmp_path / "out.csv").set_index("patient_id")
    assert (rows.to_numpy() == 0.5).all()
    details = pd.read_csv(tmp_path / "out.details.csv")
    assert details["look_at"].all()
    assert set(details["status"]) == {"out_of_range"}


@pytest.mark.parametrize("scale", [1e-6, 1e-3])
def test_tiny_embeddings_get_the_prior(
    world: Path, bags: Path, tmp_path: Path, scale: float
) -> None:
    path = bags / "n0.h5"
    tiles = read_bag(path).features * np.float16(scale)
    with h5py.File(path, "r+") as file:
        file["features"][...] = tiles
    table = tmp_path / "test.csv"
    table.write_text("image_id,patient_id\nn0,p0\nn1,p1\n")
    result = mil("infer", "--patients", table, "--run", world / "run", "--bags", bags, "--out",
                 tmp_path / "out.csv")  # fmt: skip
    assert result.exit_code == 3
    assert "another scale than those of the training" in result.output
    assert pd.read_csv(tmp_path / "out.csv")["CE"][0] == 0.5
    assert pd.read_csv(tmp_path / "out.details.csv")["status"].tolist() == ["out_of_range", "ok"]
