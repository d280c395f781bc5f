from __future__ import annotations

import json
from pathlib import Path
from shutil import rmtree
from uuid import uuid4

import h5py
import numpy as np
import pytest
import torch

from features.bags.h5 import read_bag, write_bag
from tests.cli.running import expect_advice, mil, mil_ok
from tests.fakes import make_bag, write_cohort


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good bags."""
    bags_dir = tmp_path / "bags"
    bags_dir.mkdir()
    for name in ("a", "b"):
        write_bag(bags_dir / f"{name}.h5", make_bag(name))
    return bags_dir


def test_many_bad_bags_take_a_few_lines(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.h5").write_bytes(b"no HDF5")
    write_bag(tmp_path / "good.h5", make_bag("good"))
    result = mil("bags", "verify", tmp_path)
    assert result.exit_code == 3
    told = [line for line in result.stderr.splitlines() if line.startswith("bad: ")]
    assert [line.split(":")[1] for line in told[:5]] == [f" {number:02}" for number in range(5)]
    assert told[5:] == ["bad: 35 more; --json lists all"]
    assert len(json.loads(mil("bags", "verify", tmp_path, "--json").stdout)["problems"]) == 40


@pytest.mark.parametrize("command", ["verify", "pack", "import", "export"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = mil_ok("bags", command, "--help")
    assert f"Example: mil bags {command}" in result.output


def test_good_bags_are_exit_code_0(folder: Path) -> None:
    result = mil_ok("bags", "verify", folder)
    assert "bad: " not in result.output


def test_some_bad_bags_are_exit_code_3_and_listed(folder: Path) -> None:
    (folder / "[bold]c.h5").write_bytes(b"no bag")
    result = mil("bags", "verify", folder)
    assert result.exit_code == 3
    assert "[bold]c" in result.output
    assert "not readable as HDF5" in result.output
    data = mil("bags", "verify", folder, "--json")
    assert data.exit_code == 3
    summary = json.loads(data.stdout)
    assert (summary["n_bags"], summary["n_bad"], summary["n_tiles"]) == (3, 1, 8)
    assert summary["problems"] == {"[bold]c": ["not readable as HDF5"]}


def test_no_good_bag_is_exit_code_1(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    assert mil("bags", "verify", folder).exit_code == 1
    result = mil("bags", "verify", tmp_path / "gone")
    assert result.exit_code == 1
    assert "there is no such folder" in result.output


def test_bags_go_out_and_come_back(folder: Path, tmp_path: Path) -> None:
    result = mil_ok("bags", "export", folder, "--to", "stamp", "--out", tmp_path / "out")
    assert "2 of 2 slides, 8 tiles" in result.output
    table = tmp_path / "mpp.csv"
    table.write_text("slide_id,mpp\na,0.25\n")
    args = ["bags", "import", tmp_path / "out", "--from", "stamp"]
    result = mil_ok(*args, "--bags", tmp_path / "back", "--mpp-table", table)
    assert "Unknown about their provenance: mpp (of 1), size, slide_content_id" in result.output
    data = json.loads(mil(*args, "--bags", tmp_path / "b2", "--slide-mpp", "0.25", "--json").stdout)
    assert (data["n_done"], data["failed"]) == (2, {})
    assert data["unknown"]["weights_sha256"] == 2
    assert "mpp" not in data["unknown"]


def test_files_left_out_of_an_import_are_exit_code_3_and_named(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name in ("h5_files/s1", *(f"more/x{number}" for number in range(7))):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(source / f"{name}.h5", "w") as file:
            file["features"], file["coords"] = np.eye(3), np.zeros((3, 2), int)
    result = mil("bags", "import", source, "--from", "clam", "--bags", tmp_path / "b1")
    assert result.exit_code == 3
    assert result.output.count("left out: more/x") == 5
    assert "left out: 2 more; --json lists all" in result.output
    result = mil("bags", "import", source, "--from", "clam", "--bags", tmp_path / "b2", "--json")
    assert result.exit_code == 3
    assert len(json.loads(result.stdout)["left_out"]) == 7


def test_slides_that_cannot_be_imported_are_told(tmp_path: Path) -> None:
    source = tmp_path / "clam"
    source.mkdir()
    (source / "bad.h5").write_bytes(b"no bag")
    result = mil("bags", "import", source, "--from", "clam", "--bags", tmp_path / "b1")
    assert result.exit_code == 1
    assert "bad.h5: not readable as HDF5" in result.output
    with h5py.File(source / "good.h5", "w") as file:
        file["features"] = np.eye(3, dtype=np.float32)
        file["coords"] = np.array([[0, 0], [256, 0], [512, 0]])
    result = mil("bags", "import", source, "--from", "clam", "--bags", tmp_path / "b2")
    assert result.exit_code == 3
    assert "1 of 2 slides, 3 tiles" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify"],
        ["pack"],
        ["import", "x"],
        ["import", "x", "--from", "excel"],
        ["export", "x", "--to", "atlaspatch", "--out", "y"],
        ["export", "x", "--to", "clam"],
        ["import", "x", "--from", "clam", "--tile-px", "0"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert mil("bags", *arguments).exit_code == 2


@pytest.mark.ci
def test_a_packed_store_serves_every_command_that_reads_bags(tmp_path: Path) -> None:
    table = write_cohort(tmp_path, n_patients=18, shift=0.8)
    store = f"memory://{uuid4().hex}/bags.zarr"
    data = json.loads(mil("bags", "pack", tmp_path / "bags", "--out", store, "--json").stdout)
    assert (data["n_bags"], data["n_tiles"]) == (22, 22 * 12)
    result = mil("bags", "pack", tmp_path / "bags", "--out", store)
    assert result.exit_code == 1
    assert "there is a packed store already" in result.output
    assert (
        "22 bags, 264 tiles"
        in mil("bags", "pack", tmp_path / "bags", "--out", store, "--overwrite").output
    )
    for name, bags in {"folder": tmp_path / "bags", "store": store}.items():
        out = tmp_path / name
        args = {
            "train": ["--cohort", table, "--run", out / "run", "--folds", 2],
            "infer": ["--patients", table, "--run", out / "run", "--out", out / "sub.csv"],
        }
        if bags == store:
            args["explain"] = ["--slide", "000_0", "--run", out / "run", "--out", out / "pages"]
            args["describe"] = [table, "--out", out / "page.html"]
        out.mkdir()
        for command, options in args.items():
            mil_ok(command, *options, "--bags", bags)
        (out / "audit.json").write_text(mil("audit", table, "--bags", bags, "--json").stdout)
    assert mil("bags", "verify", store).exit_code == 0
    assert mil("bags", "export", store, "--to", "clam", "--out", tmp_path / "clam").exit_code == 0
    folder, packed = tmp_path / "folder", tmp_path / "store"
    for name in (
        "run/heads.safetensors",
        "run/out_of_fold.csv",
        "sub.csv",
        "sub.details.csv",
        "audit.json",
    ):
        assert (folder / name).read_bytes() == (packed / name).read_bytes(), name


@pytest.mark.parametrize("command", [["embed", "x.tif"], ["bags", "import", "x", "--from", "clam"]])
def test_nothing_is_added_to_a_packed_store(
    folder: Path, tmp_path: Path, command: list[str]
) -> None:
    assert mil("bags", "pack", folder, "--out", tmp_path / "bags.zarr").exit_code == 0
    result = mil(*command, "--bags", tmp_path / "bags.zarr")
    assert result.exit_code == 2
    assert "packed store" in result.output


@pytest.mark.ci
def test_imported_bags_train(tmp_path: Path) -> None:
    table = write_cohort(tmp_path, n_patients=18, shift=0.8)
    mil("bags", "export", tmp_path / "bags", "--to", "clam", "--out", tmp_path / "clam")
    mil_ok(
        "bags", "import", tmp_path / "clam", "--from", "clam", "--bags", tmp_path / "back",
        "--backbone", "resnet50",
    )  # fmt: skip
    result = mil_ok(
        "train", "--cohort", table, "--bags", tmp_path / "back", "--run", tmp_path / "run",
        "--folds", 2, "--json",
    )  # fmt: skip
    data = json.loads(result.stdout)
    assert data["n_patients"] == 18
    assert any(
        "weights and preprocessing of their backbone are unknown" in n for n in data["notes"]
    )


def write_vectors(folder: Path, suffix: str, *, n_slides: int = 3) -> Path:
    """Write one vector per slide, as programs for slide embeddings do."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(n_slides):
        vector = rng.normal(size=12).astype(np.float32)
        path = folder / f"s{index}{suffix}"
        if suffix == ".h5":
            with h5py.File(path, "w") as file:
                file["features"] = vector[None]
        elif suffix == ".pt":
            torch.save({"slide_embedding": torch.from_numpy(vector)}, path)
        else:
            np.save(path, vector[None, None])
    return folder


@pytest.mark.parametrize("suffix", [".h5", ".pt", ".npy"])
def test_vectors_of_slides_are_imported_as_bags_of_one(tmp_path: Path, suffix: str) -> None:
    source = write_vectors(tmp_path / "vectors", suffix)
    mil_ok(
        "bags", "import", source, "--slide-vectors", "--backbone", "titan",
        "--bags", tmp_path / "bags",
    )  # fmt: skip
    bag = read_bag(tmp_path / "bags" / "s1.h5")
    assert bag.features.shape == (1, 12)
    assert bag.meta.fingerprint.encoder == "titan"
    rng = np.random.default_rng(0)
    expected = [rng.normal(size=12) for _ in range(3)][1]
    np.testing.assert_allclose(bag.features[0], expected, atol=2e-3)


def test_embeddings_of_tiles_are_no_vectors_of_slides(tmp_path: Path) -> None:
    source = write_vectors(tmp_path / "vectors", ".h5")
    with h5py.File(source / "tiles.h5", "w") as file:
        file["features"] = np.random.default_rng(1).normal(size=(5, 12))
    (source / "broken.h5").write_bytes(b"nothing")
    result = mil("bags", "import", source, "--slide-vectors", "--bags", tmp_path / "bags")
    assert result.exit_code == 3
    assert "an array of shape (5, 12)" in result.output
    assert "imported with --from instead of --slide-vectors" in result.output
    assert len(list((tmp_path / "bags").glob("*.h5"))) == 3


@pytest.mark.parametrize("options", [[], ["--slide-vectors", "--from", "torch"]])
def test_a_layout_or_vectors_must_be_named(tmp_path: Path, options: list[str]) -> None:
    result = mil("bags", "import", tmp_path, *options, "--bags", tmp_path / "bags")
    assert result.exit_code == 2
    assert "either --from or --slide-vectors" in result.output


def test_a_bag_of_another_encoder_is_not_imported_with_the_others(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(4):
        with h5py.File(tmp_path / "source" / f"s{number}.h5", "w") as file:
            file["features"] = np.random.default_rng(number).normal(size=(5, 8 + (number == 1)))
            file["coords"] = np.arange(10).reshape(5, 2) * 256
    result = mil("bags", "import", tmp_path / "source", "--from", "clam", "--bags", tmp_path / "b")
    assert result.exit_code == 3
    assert "failed: " in result.stderr
    assert "s1.h5: made with embeddings of 9 numbers; expected" in result.stderr
    assert "embeddings of 8 numbers as in 3 of 4 bags" in result.stderr
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["s0.h5", "s2.h5", "s3.h5"]
    mil_ok("bags", "verify", tmp_path / "b")


def test_bags_of_two_kinds_are_exported_apart(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "bags" / f"s{number}.h5"
        path.parent.mkdir(exist_ok=True)
        write_bag(path, make_bag(path.stem, dim=8 + number % 2))
    export = ["bags", "export", tmp_path / "bags", "--to", "torch", "--out", tmp_path / "out"]
    tie = expect_advice(export, "Move the bags of each kind into a folder of their own")
    assert "2 bags made with embeddings of 8 numbers, and as many with embeddings of 9" in tie
    assert not (tmp_path / "out").exists()
    (tmp_path / "others").mkdir()
    for name in ("s1.h5", "s3.h5"):
        (tmp_path / "bags" / name).rename(tmp_path / "others" / name)
    mil_ok(*export)
    assert mil("bags", "verify", tmp_path / "others").exit_code == 0


def test_files_of_two_kinds_are_imported_once_it_is_said_which_are_meant(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(4):
        with h5py.File(source / f"s{number}.h5", "w") as file:
            file["feats"] = np.random.default_rng(number).normal(size=(5, 8))
            file["coords"] = np.arange(10).reshape(5, 2) * 112.0
            file.attrs.update(unit="um", tile_size_um=112.0, tile_size_px=224)
            if number:
                file.attrs["extractor"] = "uni"
    bags = tmp_path / "bags"
    do_import = ["bags", "import", source, "--from", "stamp", "--bags", bags]
    advice = "State what files leave out with --backbone, --mpp, --tile-px, or import the others"
    assert "--backbone uni as in 3 of 4 bags" in expect_advice(do_import, advice, exit_code=3)
    rmtree(bags)
    mil_ok(*do_import, "--backbone", "uni")
    assert len(list(bags.iterdir())) == 4
    rmtree(bags)
    with h5py.File(source / "s1.h5", "r+") as file:
        del file.attrs["extractor"]
    tie = expect_advice(do_import, advice)
    assert "2 bags made with unknown --backbone, and as many with --backbone uni" in tie
    assert not list(bags.iterdir())
    (tmp_path / "others").mkdir()
    for name in ("s0.h5", "s1.h5"):
        (source / name).rename(tmp_path / "others" / name)
    mil_ok(*do_import)
