"""Advice on bags, those of other programs included: each message is followed, and arrives."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from features.bags.h5 import write_bag
from tests.cli.running import expect_advice, follow_advice, mil, mil_ok
from tests.fakes import make_bag

N_TILES = 4
FEATURES = np.random.default_rng(0).normal(size=(N_TILES, 8)).astype(np.float32)
COORDS = 448 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])


class Unsafe:
    """An object whose loading needs code."""


def write_h5(path: Path, *, attributes: dict[str, object] | None = None, **arrays: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name.replace("__", "/"), data=array)
        file.attrs.update(attributes or {})


def write_trident(path: Path) -> None:
    write_h5(path, features=FEATURES, coords=COORDS)
    about = {"patch_size": 224, "patch_size_level0": 448, "target_magnification": 20, "overlap": 0}
    with h5py.File(path, "r+") as file:
        file["coords"].attrs.update(about)


def write_stamp(path: Path, features: np.ndarray = FEATURES, **attributes: object) -> None:
    about = {"stamp_version": "2.0.0", "unit": "um", "tile_size_um": 112.0, "tile_size_px": 224}
    write_h5(path, attributes={**about, **attributes}, feats=features, coords=COORDS / 4.0)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of every layout, each beside one that cannot be imported as it is."""
    folder = tmp_path_factory.mktemp("study of bags")
    for name in ("s1", "s2"):
        write_h5(folder / f"clam/h5_files/{name}.h5", features=FEATURES, coords=COORDS)
        write_stamp(folder / f"stamp/{name}.h5")
        for encoder in ("uni", "conch"):
            write_trident(folder / f"trident/features_{encoder}/{name}.h5")
        for folder_name in ("conch", "uni 2"):
            write_stamp(folder / "both" / folder_name / f"{name}.h5")
        write_h5(folder / f"atlas/patches/{name}.h5", coords=COORDS, features__uni=FEATURES,
                 features__conch=FEATURES)  # fmt: skip
        write_h5(folder / f"unfinished/patches/{name}.h5", coords=COORDS)
        write_h5(folder / f"vectors/{name}.h5", features=FEATURES[:1])
        write_stamp(folder / f"nan/{name}.h5", FEATURES + np.nan)
        write_stamp(folder / f"int8/{name}.h5", (20 * FEATURES).astype(np.int8))
        write_h5(folder / f"old/{name}.h5", feats=FEATURES, coords=COORDS)
        write_h5(folder / f"damaged/h5_files/{name}.h5", features=FEATURES)
        (folder / "bare").mkdir(exist_ok=True)
        torch.save(torch.from_numpy(FEATURES), folder / "bare" / f"{name}.pt")
        (folder / "unsafe").mkdir(exist_ok=True)
        torch.save({"features": torch.from_numpy(FEATURES), "by": Unsafe()},
                   folder / "unsafe" / f"{name}.pt")  # fmt: skip
        (folder / "copies").mkdir(exist_ok=True)
        for suffix in (".pt", ".svs.pt"):
            shutil.copy(folder / "bare" / f"{name}.pt", folder / "copies" / f"{name}{suffix}")
        for cut, whole in (("cut_clam", f"clam/h5_files/{name}.h5"), ("cut", f"bare/{name}.pt")):
            (folder / cut).mkdir(exist_ok=True)
            file = folder / whole
            (folder / cut / file.name).write_bytes(file.read_bytes()[:500])
        (folder / "tables").mkdir(exist_ok=True)
        (folder / "tables" / f"{name}.csv").touch()
        (folder / "bags").mkdir(exist_ok=True)
        write_bag(folder / "bags" / f"{name}.h5", make_bag(name))
    shutil.copytree(folder / "bags", folder / "my bags" / "of 2026")
    shutil.copytree(folder / "bags", folder / "mixed")
    write_bag(folder / "mixed" / "s3.h5", make_bag("s3", dim=9))
    (folder / "file").touch()
    return folder


@pytest.fixture(autouse=True)
def in_study(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        ("clam --from stamp", "Check --from", "clam --from clam"),
        ("stamp --from clam", "Check --from", "stamp --from stamp"),
        ("stamp --from trident", "Check --from", "stamp --from stamp"),
        ("stamp --from atlaspatch", "Check --from", "stamp --from stamp"),
        ("clam --from slideflow", "Check --from", "clam --from clam"),
        ("damaged --from clam", "Check --from", "clam --from clam"),
        ("cut_clam --from clam", "Copy it again, or make its embeddings again", "clam --from clam"),
        ("cut --from torch", "Copy it again, or make its embeddings again", "bare --from torch"),
        ("vectors --from torch", "is imported with --slide-vectors", "vectors --slide-vectors"),
        ("vectors --from clam", "is imported with --slide-vectors", "vectors --slide-vectors"),
        ("clam --slide-vectors", "imported with --from instead", "clam --from clam"),
        ("atlas --slide-vectors", "imported with --from instead",
         "atlas --from atlaspatch --backbone uni"),
        ("tables --slide-vectors", "imported with --from instead", "clam --from clam"),
        ("trident --from trident", "expected one set of bags. Choose one of these folders.",
         "trident/features_uni --from trident"),
        ("both --from stamp", "Import both/conch and 'both/uni 2' one by one, into two folders.",
         "'both/uni 2' --from stamp"),
        ("copies --from torch", "Move one of them elsewhere.", "bare --from torch"),
        ("atlas --from atlaspatch", "Name one with --backbone.",
         "atlas --from atlaspatch --backbone uni"),
        ("atlas --from atlaspatch --backbone resnet", "Name one with --backbone.",
         "atlas --from atlaspatch --backbone conch"),
        ("unfinished --from atlaspatch", "Run its feature step first.",
         "atlas --from atlaspatch --backbone uni"),
        ("old --from stamp", "Embed the slide again with a current STAMP.", "stamp --from stamp"),
        ("unsafe --from torch", "load it elsewhere and save the bare tensor", "bare --from torch"),
        ("int8 --from stamp", "restore their values first", "stamp --from stamp"),
        ("nan --from stamp", "Make its embeddings again with the program that wrote the file.",
         "stamp --from stamp"),
    ],
)  # fmt: skip
def test_advice_on_files_of_other_programs_leads_to_bags(
    wrong: str, advice: str, then: str, tmp_path: Path
) -> None:
    command = f"bags import {{}} --bags {tmp_path / 'bags'}"
    follow_advice(command.format(wrong), advice, command.format(then))


def test_a_folder_of_bags_that_is_named_can_be_typed() -> None:
    follow_advice(
        "bags verify 'my bags'", "such as 'my bags/of 2026'.", "bags verify 'my bags/of 2026'"
    )


def test_a_bag_that_is_there_twice_is_deleted_once(tmp_path: Path) -> None:
    for name in ("s1.h5", "s1.svs.h5"):
        shutil.copy("bags/s1.h5", tmp_path / name)
    failed = mil("bags", "verify", tmp_path)
    assert failed.exit_code == 1
    assert "Delete one of them." in failed.output
    (tmp_path / "s1.svs.h5").unlink()
    mil_ok("bags", "verify", tmp_path)


@pytest.mark.parametrize(
    ("outdated", "advice"),
    [("pt_files", "Move the file that is out of date elsewhere."),
     ("patches", "Run its patching and feature steps with the same settings, or move")],
)  # fmt: skip
def test_files_of_clam_that_are_out_of_date_are_moved(
    tmp_path: Path, outdated: str, advice: str
) -> None:
    slides = tmp_path / "clam"
    shutil.copytree("clam", slides)
    (slides / "pt_files").mkdir()
    for name in ("s1", "s2"):
        n_rows = N_TILES - (outdated == "pt_files")
        torch.save(torch.from_numpy(FEATURES[:n_rows]), slides / "pt_files" / f"{name}.pt")
        write_h5(slides / "patches" / f"{name}.h5", coords=COORDS + (outdated == "patches"))
    command = f"bags import {slides} --from clam --bags {tmp_path}/"
    expect_advice(f"{command}a", advice)
    (slides / outdated).rename(tmp_path / "elsewhere")
    mil_ok(*f"{command}b".split())


def test_a_file_that_says_it_is_of_another_slide_is_moved(tmp_path: Path) -> None:
    for name in ("s1", "s2"):
        write_trident(tmp_path / "job" / f"{name}.h5")
        with h5py.File(tmp_path / "job" / f"{name}.h5", "r+") as file:
            file["features"].attrs["name"] = "s1"
    command = ["bags", "import", tmp_path / "job", "--from", "trident", "--bags"]
    failed = mil(*command, tmp_path / "a")
    assert failed.exit_code == 3
    assert "Name the file after its slide, or move it elsewhere." in failed.stderr
    (tmp_path / "job" / "s1.h5").rename(tmp_path / "s1.h5")
    noted = mil_ok(*command, tmp_path / "b")
    assert "note: s2: its file says that it is of slide 's1', which has none" in noted.stderr


def test_imported_bags_are_exported_once_their_options_are_given(tmp_path: Path) -> None:
    def command(word: str, source: str, layout: str) -> str:
        return f"bags {word} {source} --{'from' if word == 'import' else 'to'} {layout} "

    out, bags = tmp_path / "out", tmp_path / "bags"
    mil_ok(*command("import", "clam", "clam").split(), "--bags", bags)
    failed = mil(*command("export", bags, "trident").split(), "--out", out)
    assert failed.exit_code == 1
    assert "Import the bags again with --mpp and --tile-px." in failed.output
    options = f"--mpp 0.5 --tile-px 224 --bags {tmp_path / 'again'}"
    mil_ok(*command("import", "clam", "clam").split(), *options.split())
    mil_ok(*command("export", tmp_path / "again", "trident").split(), "--out", out)
    mil_ok(*command("import", "bare", "torch").split(), "--bags", tmp_path / "bare")
    failed = mil(*command("export", tmp_path / "bare", "clam").split(), "--out", tmp_path / "no")
    assert "Only --to torch does without coordinates." in failed.output
    mil_ok(*command("export", tmp_path / "bare", "torch").split(), "--out", tmp_path / "pt")


def test_a_store_that_was_damaged_is_packed_again(tmp_path: Path) -> None:
    store, out = tmp_path / "bags.zarr", tmp_path / "clam"
    pack = ["bags", "pack", "bags", "--out", store, "--overwrite"]
    export = ["bags", "export", store, "--to", "clam", "--out", out]
    for file, n_bytes, advice in (
        ("features/c/0/0", 40, "Pack the bags again."),
        ("bags/c/0", 0, "Pack the bags again."),
        ("zarr.json", None, "Pack the bags again with 'mil bags pack'."),
    ):
        mil_ok(*pack)
        content = (store / file).read_bytes()
        (store / file).write_bytes(
            content.replace(b'"complete": true', b'"complete": false')
            if n_bytes is None
            else content[:n_bytes]
        )
        failed = mil(*export)
        assert failed.exit_code == 1
        assert advice in failed.stderr.splitlines()[-1]
        shutil.rmtree(out, ignore_errors=True)
    mil_ok(*pack)
    mil_ok(*export)


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        ("bags verify memory://none/bags.zarr", "Name a folder of bags, or a packed store.",
         "bags verify bags"),
        ("bags pack mixed --out {out}/pack", "Embed all slides with the same settings, or choose",
         "bags pack bags --out {out}/pack"),
        ("bags import clam --from clam --bags bags", "Name another folder, or empty this one.",
         "bags import clam --from clam --bags {out}/bags"),
        ("bags import clam --from clam --bags file/bags", "Name another folder.",
         "bags import clam --from clam --bags {out}/bags"),
    ],
)  # fmt: skip
def test_advice_on_folders_leads_there(wrong: str, advice: str, then: str, tmp_path: Path) -> None:
    follow_advice(wrong.format(out=tmp_path), advice, then.format(out=tmp_path))


def test_nothing_is_added_to_a_store_but_to_a_folder(tmp_path: Path) -> None:
    mil_ok("bags", "pack", "bags", "--out", tmp_path / "bags.zarr")
    command = f"bags import clam --from clam --bags {tmp_path}/bags"
    advice = "is a packed store, to which no bag can be added: name a folder"
    follow_advice(f"{command}.zarr", advice, command, exit_code=2)
