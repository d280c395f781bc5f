"""Bags of other programs, on files written to their layouts, and a stored sample of our own.

The sample ``tests/data/bag-v1.h5`` was written once, by format version 1, and must never be
written again. It came from this script, run in the folder of the project::

    from pathlib import Path
    from features.bags.h5 import write_bag
    from tests.fakes import make_bag

    write_bag(Path("tests/data/bag-v1.h5"), make_bag("sample", n_tiles=12, dim=8, seed=1))
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from features.bags.bag import UNKNOWN, Bag, check_fingerprint
from features.bags.convert import ConversionResult, export_bags, import_bags
from features.bags.formats.base import ImportDefaults, unknown_fields
from features.bags.h5 import find_bags, read_bag, read_meta, write_bag
from features.bags.verify import verify_bags
from features.embedding.config import config_from_fingerprint
from features.errors import BagError, OutputError
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from tests.fakes import Harm, make_bag

SAMPLE = Path(__file__).parents[2] / "data" / "bag-v1.h5"
FEATURES = np.arange(24, dtype=np.float32).reshape(3, 8) / 16
COORDS = np.array([[448, 896], [0, 0], [896, 0]])
IN_ORDER = [1, 2, 0]
"""Rows of ``COORDS`` in reading order."""


def quiet(n_done: int, n_all: int) -> None:
    """Ignore the progress."""


def import_slide(source: Path, layout: str, **defaults: object) -> tuple[Bag, ConversionResult]:
    """Import a folder of one slide."""
    bags_dir = source.parent / "imported"
    (result,) = import_bags(
        source, bags_dir, layout=layout, defaults=ImportDefaults(**defaults), on_slide=quiet
    )
    assert result.problem == ""
    return read_bag(bags_dir / f"{result.slide_id}.h5"), result


def import_problem(source: Path, layout: str, **defaults: object) -> str:
    """Return why a folder of one slide cannot be imported."""
    bags_dir = source.parent / "imported"
    (result,) = import_bags(
        source, bags_dir, layout=layout, defaults=ImportDefaults(**defaults), on_slide=quiet
    )
    assert list(bags_dir.iterdir()) == []
    return result.problem


def write_h5(path: Path, *, attributes: dict[str, object] | None = None, **arrays: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name.replace("__", "/"), data=array)
        file.attrs.update(attributes or {})


def write_pt(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


# The format of this program in an old version.


def test_a_bag_of_version_1_stays_readable() -> None:
    bag = read_bag(SAMPLE)
    assert bag.features.shape == (12, 8)
    assert bag.features.dtype == np.float16
    assert bag.features_sha256 == (
        "e5a16d84327ac4db8f39aa9afed5c2fad0e628550e8fede272e4f503268adf08"
    )
    assert bag.features[0, :3].tolist() == [-1.1455078125, -0.529296875, -0.2186279296875]
    assert bag.coords_px0[:5].tolist() == [[0, 0], [448, 0], [896, 0], [1344, 0], [0, 448]]
    np.testing.assert_array_equal(bag.tissue_fraction, np.ones(12, np.float32))
    meta = bag.meta
    assert (meta.slide_id, meta.mpp_x, meta.mpp_source) == ("sample", 0.25, "assumed")
    assert (meta.width_px0, meta.span_x_px0, meta.n_tried) == (1792, 448.0, 12)
    assert meta.background_rgb == (255, 255, 255)
    assert meta.fingerprint.encoder == "fake"
    assert json.loads(meta.fingerprint.transform) == {"input_px": 224}
    assert (meta.fingerprint.tile_px, meta.fingerprint.target_mpp) == (224, 0.5)


def test_the_stored_sample_is_small() -> None:
    assert SAMPLE.stat().st_size < 20_000


# Files in the layouts of other programs.


def test_clam_gives_embeddings_and_corners(tmp_path: Path) -> None:
    write_h5(tmp_path / "clam/h5_files/s1.h5", features=FEATURES, coords=COORDS.astype(np.int32))
    bag, result = import_slide(tmp_path / "clam", "clam")
    np.testing.assert_array_equal(bag.features, FEATURES[IN_ORDER])
    np.testing.assert_array_equal(bag.coords_px0, COORDS[IN_ORDER])
    assert bag.meta.fingerprint.encoder == bag.meta.fingerprint.weights_sha256 == UNKNOWN
    assert result.unknown == unknown_fields(bag.meta)
    for name in ("encoder", "mpp", "size", "target_mpp", "tile_px", "transform", "weights_sha256"):
        assert name in result.unknown
    assert "coords" not in result.unknown


def test_clam_tensors_take_their_places_from_patches(tmp_path: Path) -> None:
    write_pt(tmp_path / "clam/pt_files/s1.pt", torch.from_numpy(FEATURES))
    patches = tmp_path / "clam/patches/s1.h5"
    write_h5(patches, coords=COORDS)
    with h5py.File(patches, "r+") as file:
        file["coords"].attrs.update(
            {"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0), "level_dim": (500, 400)}
        )
    bag, result = import_slide(tmp_path / "clam", "clam", encoder="resnet50", target_mpp=1.0)
    np.testing.assert_array_equal(bag.coords_px0, COORDS[IN_ORDER])
    assert (bag.meta.width_px0, bag.meta.height_px0) == (2000, 1600)
    assert bag.meta.span_x_px0 == 1024
    assert bag.meta.fingerprint.tile_px == 256
    assert bag.meta.fingerprint.encoder == "resnet50"
    assert not {"encoder", "size", "target_mpp", "tile_px"} & set(result.unknown)


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [(FEATURES[:2], r"embeddings of shape \(3, 8\), and \(2, 8\) in .*s1\.pt; expected the same"),
     (FEATURES[::-1].copy(), r"other embeddings than in .*s1\.pt; expected the same.*out of date"),
     (FEATURES.astype(np.float16), "")],
)  # fmt: skip
@pytest.mark.parametrize("folders", [("h5_files", "pt_files"), ("", "")])
def test_clam_files_of_one_slide_that_differ_are_refused(
    tmp_path: Path, folders: tuple[str, str], tensor: np.ndarray, problem: str
) -> None:
    h5_path, pt_path = (tmp_path / "clam" / name for name in folders)
    write_h5(h5_path / "s1.h5", features=FEATURES[None], coords=COORDS[None])
    write_pt(pt_path / "s1.pt", torch.from_numpy(tensor))
    if problem:
        assert re.search(problem, import_problem(tmp_path / "clam", "clam"))
    else:
        import_slide(tmp_path / "clam", "clam")


def test_a_damaged_clam_tensor_is_not_in_the_way_of_a_whole_file(tmp_path: Path) -> None:
    write_h5(tmp_path / "clam/h5_files/s1.h5", features=FEATURES, coords=COORDS)
    (tmp_path / "clam/pt_files").mkdir()
    (tmp_path / "clam/pt_files/s1.pt").write_bytes(b"cut off")
    bag, _ = import_slide(tmp_path / "clam", "clam")
    np.testing.assert_array_equal(bag.features, FEATURES[IN_ORDER])


def test_a_file_that_says_it_is_of_another_slide_is_refused_or_noted(tmp_path: Path) -> None:
    for name, stated in {
        "s1": "s1.svs", "s2": "s1", "s3": "renamed", "TCGA-1": "TCGA-1-01Z", "s4": "s4.odd",
    }.items():  # fmt: skip
        write_trident(tmp_path / "job" / f"{name}.h5", FEATURES, COORDS)
        with h5py.File(tmp_path / "job" / f"{name}.h5", "r+") as file:
            file["features"].attrs["name"] = stated
    results = {result.slide_id: result for result in import_all(tmp_path / "job", "trident")}
    assert "say they are of slide 's1'; expected those of 's2'" in results["s2"].problem
    assert {name for name, result in results.items() if result.problem} == {"s2"}
    assert {name: one.named for name, one in results.items() if one.named} == {"s3": "renamed"}


def write_trident(path: Path, features: np.ndarray, coords: np.ndarray) -> None:
    write_h5(path, features=features, coords=coords)
    with h5py.File(path, "r+") as file:
        file["features"].attrs.update({"name": path.stem, "savetodir": "/x", "encoder": "uni_v1"})
        file["coords"].attrs.update(
            {
                "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40,
                "target_magnification": 20, "overlap": 0, "name": path.stem, "savetodir": "/x",
                "level0_width": 2000, "level0_height": 1600, "note": h5py.Empty("f"),
            }
        )  # fmt: skip


@pytest.mark.parametrize("where", ["", "features_uni_v1", "20x_256px_0px_overlap/features_uni_v1"])
def test_trident_says_most_of_its_making(tmp_path: Path, where: str) -> None:
    write_trident(tmp_path / "job" / where / "s1.h5", FEATURES, COORDS)
    bag, result = import_slide(tmp_path / "job", "trident")
    np.testing.assert_array_equal(bag.features, FEATURES[IN_ORDER])
    fingerprint = bag.meta.fingerprint
    assert (fingerprint.encoder, fingerprint.tile_px, fingerprint.target_mpp) == (
        "uni_v1",
        256,
        0.5,
    )
    assert (bag.meta.mpp_x, bag.meta.mpp_source) == (0.25, "assumed")
    assert (bag.meta.span_x_px0, bag.meta.width_px0) == (512, 2000)
    assert {"mpp", "weights_sha256"} <= set(result.unknown)
    assert not {"encoder", "overlap_px", "size", "target_mpp", "tile_px"} & set(result.unknown)


def test_a_leading_batch_axis_is_dropped(tmp_path: Path) -> None:
    write_trident(tmp_path / "job/s1.h5", FEATURES[None], COORDS[None])
    bag, _ = import_slide(tmp_path / "job", "trident")
    np.testing.assert_array_equal(bag.features, FEATURES[IN_ORDER])
    np.testing.assert_array_equal(bag.coords_px0, COORDS[IN_ORDER])


def test_a_batch_of_two_is_refused(tmp_path: Path) -> None:
    write_trident(tmp_path / "job/s1.h5", np.stack([FEATURES, FEATURES]), COORDS)
    assert "features of shape (2, 3, 8)" in import_problem(tmp_path / "job", "trident")


def test_a_slide_without_tiles_becomes_a_bag_without_tiles(tmp_path: Path) -> None:
    write_trident(tmp_path / "job/s1.h5", FEATURES[:0], COORDS[:0])
    bag, _ = import_slide(tmp_path / "job", "trident")
    assert bag.features.shape == (0, 8)
    assert bag.meta.empty_reason == "the trident file holds no tile"
    assert verify_bags(tmp_path / "imported", on_bag=quiet).n_bad == 0


def test_slides_without_tiles_are_no_copies_of_each_other(tmp_path: Path) -> None:
    contents = set()
    for name in ("s1", "s2"):
        write_trident(tmp_path / name / f"job/{name}.h5", FEATURES[:0], COORDS[:0])
        contents.add(import_slide(tmp_path / name / "job", "trident")[0].meta.slide_content_id)
    assert len(contents) == 2


def test_embeddings_of_several_encoders_must_be_chosen_from(tmp_path: Path) -> None:
    for name in ("uni_v1", "resnet50"):
        write_trident(tmp_path / f"job/features_{name}/s1.h5", FEATURES, COORDS)
    with pytest.raises(BagError, match="bags in several folders"):
        import_bags(
            tmp_path / "job",
            tmp_path / "b",
            layout="trident",
            defaults=ImportDefaults(),
            on_slide=quiet,
        )


STAMP = {
    "stamp_version": "2.4.0", "extractor": "uni2", "unit": "um", "tile_size_um": 256.0,
    "tile_size_px": 224, "code_hash": "x", "feat_type": "tile",
}  # fmt: skip


def test_stamp_counts_in_micrometres(tmp_path: Path) -> None:
    write_h5(
        tmp_path / "stamp/s1.h5", attributes=STAMP, feats=FEATURES.astype(np.float16),
        coords=(COORDS / 448 * 256).astype(np.float32),
    )  # fmt: skip
    bag, result = import_slide(tmp_path / "stamp", "stamp", slide_mpp=0.5)
    np.testing.assert_array_equal(bag.coords_px0, COORDS[IN_ORDER] / 448 * 512)
    fingerprint = bag.meta.fingerprint
    assert (fingerprint.encoder, fingerprint.tile_px, fingerprint.target_mpp) == (
        "uni2",
        224,
        pytest.approx(256 / 224),
    )
    assert bag.meta.span_x_px0 == pytest.approx(512, rel=1e-4)
    assert bag.meta.mpp_source == "given"
    assert "mpp" not in result.unknown


def test_stamp_in_micrometres_is_placed_at_the_assumed_resolution_if_none_is_given(
    tmp_path: Path,
) -> None:
    write_h5(
        tmp_path / "stamp/s1.h5", attributes=STAMP, feats=FEATURES, coords=COORDS / 448 * 256.0
    )
    bag, result = import_slide(tmp_path / "stamp", "stamp", mpp_by_slide={"other": 0.5})
    np.testing.assert_array_equal(bag.coords_px0, COORDS[IN_ORDER] / 448 * 1024)
    assert bag.meta.mpp_source == "assumed"
    assert "mpp" in result.unknown


def test_early_stamp_without_a_unit_is_known_by_its_step(tmp_path: Path) -> None:
    write_h5(tmp_path / "stamp/s1.h5", feats=FEATURES, coords=COORDS // 2)
    bag, _ = import_slide(tmp_path / "stamp", "stamp", slide_mpp=0.5)
    np.testing.assert_array_equal(bag.coords_px0, COORDS[IN_ORDER] // 448 * 512)
    assert bag.meta.fingerprint.tile_px == 224


def test_stamp_without_unit_or_known_step_is_refused(tmp_path: Path) -> None:
    write_h5(tmp_path / "stamp/s1.h5", feats=FEATURES, coords=COORDS)
    assert "coords without a unit" in import_problem(tmp_path / "stamp", "stamp")


def test_stamp_of_the_second_kind_of_attributes(tmp_path: Path) -> None:
    write_h5(
        tmp_path / "stamp/s1.h5", attributes={"unit": "um", "tile_size": 256.0},
        patch_embeddings=FEATURES, coords=COORDS / 448 * 256.0,
    )  # fmt: skip
    bag, result = import_slide(tmp_path / "stamp", "stamp", slide_mpp=0.25)
    np.testing.assert_array_equal(bag.coords_px0, COORDS[IN_ORDER] / 448 * 1024)
    assert {"encoder", "tile_px", "target_mpp"} <= set(result.unknown)


def test_atlaspatch_keeps_embeddings_in_a_group_and_places_in_five_columns(tmp_path: Path) -> None:
    rows = np.hstack([COORDS, np.full((3, 3), (512, 512, 0))]).astype(np.int32)
    attributes = {
        "patch_size": 256, "patch_size_level0": 512, "target_magnification": 20, "overlap": 0,
        "level0_width": 2000, "level0_height": 1600, "mpp": 0.2527,
    }  # fmt: skip
    write_h5(
        tmp_path / "atlas/patches/s1.h5", attributes=attributes, coords=rows,
        features__uni_v1=FEATURES, features__resnet50=-FEATURES,
    )  # fmt: skip
    bag, result = import_slide(tmp_path / "atlas", "atlaspatch", encoder="resnet50")
    np.testing.assert_array_equal(bag.features, -FEATURES[IN_ORDER])
    np.testing.assert_array_equal(bag.coords_px0, COORDS[IN_ORDER])
    assert (bag.meta.mpp_x, bag.meta.mpp_source) == (0.2527, "file")
    assert "mpp" not in result.unknown
    for path in (tmp_path / "imported").iterdir():
        path.unlink()
    assert "embeddings of resnet50, uni_v1; expected one" in import_problem(
        tmp_path / "atlas", "atlaspatch"
    )
    assert "expected 'conch'" in import_problem(tmp_path / "atlas", "atlaspatch", encoder="conch")


def write_slideflow(folder: Path, tile_um: object) -> None:
    write_pt(folder / "s1.pt", torch.from_numpy(FEATURES))
    np.savez(folder / "s1.index.npz", arr_0=COORDS + 224)
    config = {"extractor": {"class": "a.b.CTransPath"}, "tile_px": 224, "tile_um": tile_um}
    (folder / "bags_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("tile_um", [112, "20x"])
def test_slideflow_gives_centres(tmp_path: Path, tile_um: object) -> None:
    write_slideflow(tmp_path / "sf", tile_um)
    bag, result = import_slide(tmp_path / "sf", "slideflow", slide_mpp=0.25)
    np.testing.assert_array_equal(bag.coords_px0, COORDS[IN_ORDER])
    fingerprint = bag.meta.fingerprint
    assert (fingerprint.encoder, fingerprint.tile_px, fingerprint.target_mpp) == (
        "CTransPath",
        224,
        0.5,
    )
    assert "mpp" not in result.unknown


def test_an_assumed_resolution_costs_no_slide_whose_centres_are_near_its_edge(
    tmp_path: Path,
) -> None:
    write_slideflow(tmp_path / "sf", 112)
    np.savez(tmp_path / "sf/s1.index.npz", arr_0=COORDS + 112)  # tiles of 224 px: 0.5 µm/px
    bag, result = import_slide(tmp_path / "sf", "slideflow")
    np.testing.assert_array_equal(bag.coords_px0, np.maximum(COORDS - 112, 0)[IN_ORDER])
    assert "mpp" in result.unknown
    (tmp_path / "imported/s1.h5").unlink()
    assert "outside the slide" in import_problem(tmp_path / "sf", "slideflow", slide_mpp=0.25)
    np.savez(tmp_path / "sf/s1.index.npz", arr_0=COORDS - 1)
    assert "outside the slide" in import_problem(tmp_path / "sf", "slideflow")


@pytest.mark.parametrize(
    "content",
    [
        torch.from_numpy(FEATURES),
        torch.from_numpy(FEATURES)[None],
        torch.from_numpy(FEATURES).to(torch.bfloat16),
        {"feats": torch.from_numpy(FEATURES), "label": 1},
        {"features": torch.from_numpy(FEATURES).double()},
    ],
)
def test_tensors_and_dictionaries_of_tensors_are_read(tmp_path: Path, content: object) -> None:
    write_pt(tmp_path / "pt/s1.pt", content)
    bag, result = import_slide(tmp_path / "pt", "torch", encoder="resnet50")
    np.testing.assert_allclose(bag.features, FEATURES, rtol=1e-2)
    assert "coords" in result.unknown
    assert (bag.coords_px0 == -1).all()
    assert verify_bags(tmp_path / "imported", on_bag=quiet).n_bad == 0


def test_a_dictionary_may_bring_its_places(tmp_path: Path) -> None:
    write_pt(
        tmp_path / "pt/s1.pt",
        {"features": torch.from_numpy(FEATURES), "coords": torch.from_numpy(COORDS)},
    )
    bag, result = import_slide(tmp_path / "pt", "torch")
    np.testing.assert_array_equal(bag.coords_px0, COORDS[IN_ORDER])
    assert "coords" not in result.unknown


# Malicious and damaged files.


@pytest.mark.parametrize("layout", ["torch", "clam", "slideflow"])
@pytest.mark.parametrize("save", [torch.save, lambda c, p: p.write_bytes(pickle.dumps(c))])
def test_a_pickle_that_would_run_a_program_is_refused(
    tmp_path: Path, save: Callable[[object, Path], object], layout: str
) -> None:
    (tmp_path / "pt").mkdir()
    save({"features": Harm(tmp_path / "harmed")}, tmp_path / "pt/s1.pt")
    assert "it was not loaded" in import_problem(tmp_path / "pt", layout)
    assert not (tmp_path / "harmed").exists()


def test_a_tensor_that_claims_more_than_its_file_is_refused(tmp_path: Path) -> None:
    write_pt(tmp_path / "pt/s1.pt", torch.zeros(1, 8).expand(10**12, 8))
    assert "a tensor that states (1000000000000, 8) values" in import_problem(
        tmp_path / "pt", "torch"
    )


def test_a_packed_archive_is_refused(tmp_path: Path) -> None:
    write_pt(tmp_path / "plain.pt", torch.zeros(100_000, 8))
    (tmp_path / "pt").mkdir()
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "pt/s1.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
    assert "an archive that unpacks to" in import_problem(tmp_path / "pt", "torch")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"label": 1}, "no tensor"),
        ({"x": torch.zeros(2)}, "a dictionary of 'x'"),
        ([torch.zeros(2, 3)], "an object of type list; expected a tensor, or a dictionary"),
        (3, "an object of type int"),
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
        (torch.zeros(3), "features of shape (3,)"),
        (torch.eye(3).to_sparse(), "layout torch.sparse_coo"),
        (torch.full((2, 8), float("nan")), "2 embeddings hold NaN"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, content: object, expected: str) -> None:
    write_pt(tmp_path / "pt/s1.pt", content)
    assert expected in import_problem(tmp_path / "pt", "torch")


@pytest.mark.parametrize("layout", ["clam", "slideflow", "torch"])
def test_a_dictionary_of_tensors_is_read_by_name_in_every_layout(
    tmp_path: Path, layout: str
) -> None:
    source = tmp_path / layout
    write_pt(source / "s1.pt", {"feats": torch.from_numpy(FEATURES)})
    bag, _ = import_slide(source, layout)
    np.testing.assert_array_equal(bag.features, FEATURES)
    (tmp_path / "imported/s1.h5").unlink()
    write_pt(source / "s1.pt", {"x": torch.from_numpy(FEATURES)})
    assert "a dictionary of 'x'" in import_problem(source, layout)


def test_coordinates_in_a_dictionary_are_read_by_name(tmp_path: Path) -> None:
    write_pt(tmp_path / "pt/s1.pt", torch.from_numpy(FEATURES))
    write_pt(tmp_path / "pt/coords/s1.pt", {"coords": torch.from_numpy(COORDS)})
    bag, _ = import_slide(tmp_path / "pt", "torch")
    np.testing.assert_array_equal(bag.coords_px0, COORDS[IN_ORDER])


@pytest.mark.parametrize("n_bytes", [0, 10, 300, -30])
def test_truncated_tensors_are_refused(tmp_path: Path, n_bytes: int) -> None:
    write_pt(tmp_path / "pt/s1.pt", torch.from_numpy(FEATURES))
    whole = (tmp_path / "pt/s1.pt").read_bytes()
    (tmp_path / "pt/s1.pt").write_bytes(whole[:n_bytes])
    assert "s1.pt: no" in import_problem(tmp_path / "pt", "torch")


def test_an_index_that_numpy_stumbles_over_is_refused(tmp_path: Path) -> None:
    write_slideflow(tmp_path / "sf", 112)
    for header in (b"{'descr': '<i8', (", b"no array at all"):
        npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        with zipfile.ZipFile(tmp_path / "sf/s1.index.npz", "w") as archive:
            archive.writestr("arr_0.npy", npy if header.startswith(b"{") else header)
        assert "s1" in import_problem(tmp_path / "sf", "slideflow")


def test_a_pickled_index_is_refused(tmp_path: Path) -> None:
    write_slideflow(tmp_path / "sf", 112)
    harm = np.array([Harm(tmp_path / "harmed")], dtype=object)
    np.savez(tmp_path / "sf/s1.index.npz", arr_0=harm, allow_pickle=True)
    assert "Object arrays cannot be loaded" in import_problem(tmp_path / "sf", "slideflow")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "3"])
def test_a_broken_configuration_is_refused_or_taken_for_silent(
    tmp_path: Path, content: str
) -> None:
    write_slideflow(tmp_path / "sf", 112)
    (tmp_path / "sf/bags_config.json").write_text(content)
    if content == "3":
        assert import_slide(tmp_path / "sf", "slideflow")[0].meta.fingerprint.encoder == UNKNOWN
    else:
        assert "bags_config.json: not readable" in import_problem(tmp_path / "sf", "slideflow")


@pytest.mark.parametrize("coords", [COORDS[:2], np.full((3, 2), np.nan), COORDS[:, :1]])
def test_places_that_do_not_fit_are_refused(tmp_path: Path, coords: np.ndarray) -> None:
    write_h5(tmp_path / "clam/s1.h5", features=FEATURES, coords=coords)
    assert "coords of shape" in import_problem(tmp_path / "clam", "clam")


def test_a_link_out_of_a_foreign_file_is_not_followed(tmp_path: Path) -> None:
    write_h5(tmp_path / "secret.h5", uni=FEATURES)
    write_h5(tmp_path / "atlas/s1.h5", coords=COORDS)
    with h5py.File(tmp_path / "atlas/s1.h5", "r+") as file:
        file["features"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/")
    assert "is a link to somewhere else" in import_problem(tmp_path / "atlas", "atlaspatch")


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    write_h5(tmp_path / "clam/s1.h5", features=FEATURES, coords=COORDS)
    (tmp_path / "clam/s2.h5").write_bytes(b"no bag")
    write_h5(tmp_path / "clam/s3.h5", other=FEATURES)
    outcomes = import_bags(
        tmp_path / "clam", tmp_path / "b", layout="clam", defaults=ImportDefaults(), on_slide=quiet
    )
    assert [result.slide_id for result in outcomes if result.problem] == ["s2", "s3"]
    assert list(find_bags(tmp_path / "b")) == ["s1"]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    write_h5(tmp_path / "clam/s1.h5", features=FEATURES, coords=COORDS)
    write_bag(tmp_path / "s1.h5", make_bag("s1"))
    for source, layout, out in ((tmp_path / "clam", "clam", tmp_path),):
        with pytest.raises(OutputError, match="there is something already"):
            import_bags(source, out, layout=layout, defaults=ImportDefaults(), on_slide=quiet)
        with pytest.raises(OutputError, match="there is something already"):
            export_bags(tmp_path, out, layout=layout, on_slide=quiet)


def test_a_folder_without_such_bags_is_an_error(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BagError, match="no such"):
            import_bags(
                source, tmp_path / "b", layout="clam", defaults=ImportDefaults(), on_slide=quiet
            )


# There and back.


def write_ours(folder: Path, *, n_views: int = 0) -> dict[str, Bag]:
    folder.mkdir()
    bags = {
        "s1": make_bag("s1", n_tiles=7, n_views=n_views),
        "s2": make_bag("s2", n_tiles=1, n_views=n_views),
        "s3": make_bag("s3", n_tiles=0, n_views=n_views, empty_reason="no tissue"),
    }
    for name, bag in bags.items():
        write_bag(folder / f"{name}.h5", bag)
    return bags


@pytest.mark.parametrize("layout", ["clam", "trident", "stamp", "slideflow", "torch"])
def test_export_and_import_give_the_same_bags(tmp_path: Path, layout: str) -> None:
    bags = write_ours(tmp_path / "ours")
    results = export_bags(tmp_path / "ours", tmp_path / "theirs", layout=layout, on_slide=quiet)
    assert [result.problem for result in results] == ["", "", ""]
    results = import_bags(
        tmp_path / "theirs", tmp_path / "back", layout=layout,
        defaults=ImportDefaults(slide_mpp=0.25, target_mpp=0.5, tile_px=224), on_slide=quiet,
    )  # fmt: skip
    assert [result.problem for result in results] == ["", "", ""]
    for name, bag in bags.items():
        back = read_bag(tmp_path / "back" / f"{name}.h5")
        np.testing.assert_array_equal(back.features, bag.features)
        np.testing.assert_array_equal(back.coords_px0, bag.coords_px0)
        assert back.features.dtype == bag.features.dtype
        assert back.meta.span_x_px0 == bag.meta.span_x_px0
        assert back.meta.fingerprint.target_mpp == 0.5
    checked = verify_bags(tmp_path / "back", on_bag=quiet)
    assert (checked.n_bad, checked.n_fingerprints) == (0, 1)


def test_views_stay_behind_where_others_have_no_place_for_them(tmp_path: Path) -> None:
    bags = write_ours(tmp_path / "ours", n_views=2)
    export_bags(tmp_path / "ours", tmp_path / "theirs", layout="torch", on_slide=quiet)
    import_bags(
        tmp_path / "theirs",
        tmp_path / "back",
        layout="torch",
        defaults=ImportDefaults(),
        on_slide=quiet,
    )
    back = read_bag(tmp_path / "back" / "s1.h5")
    np.testing.assert_array_equal(back.features, bags["s1"].features)
    assert back.views is None


@pytest.mark.parametrize("layout", ["trident", "stamp", "slideflow"])
def test_the_encoder_comes_back_where_the_layout_has_room(tmp_path: Path, layout: str) -> None:
    write_ours(tmp_path / "ours")
    export_bags(tmp_path / "ours", tmp_path / "theirs", layout=layout, on_slide=quiet)
    import_bags(
        tmp_path / "theirs",
        tmp_path / "back",
        layout=layout,
        defaults=ImportDefaults(),
        on_slide=quiet,
    )
    fingerprint = read_meta(tmp_path / "back/s1.h5").fingerprint
    assert (fingerprint.encoder, fingerprint.tile_px, fingerprint.target_mpp) == ("fake", 224, 0.5)


def test_stamp_files_state_their_unit_and_tile(tmp_path: Path) -> None:
    write_ours(tmp_path / "ours")
    export_bags(tmp_path / "ours", tmp_path / "theirs", layout="stamp", on_slide=quiet)
    with h5py.File(tmp_path / "theirs/s1.h5") as file:
        assert file["feats"].dtype == np.float16
        assert file["coords"].dtype == np.float32
        assert file["coords"][1].tolist() == [112.0, 0.0]
        assert dict(file.attrs)["tile_size_um"] == 112.0
        assert dict(file.attrs)["unit"] == "um"


def test_bags_without_places_go_only_where_none_are_needed(tmp_path: Path) -> None:
    write_pt(tmp_path / "pt/s1.pt", torch.from_numpy(FEATURES))
    import_slide(tmp_path / "pt", "torch")
    for layout in ("clam", "stamp"):
        (result,) = export_bags(
            tmp_path / "imported", tmp_path / layout, layout=layout, on_slide=quiet
        )
        assert "coords" in result.problem
    (result,) = export_bags(tmp_path / "imported", tmp_path / "out", layout="torch", on_slide=quiet)
    assert result.problem == ""
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s1.pt"]


def test_bags_made_differently_are_not_exported_together(tmp_path: Path) -> None:
    write_ours(tmp_path / "ours")
    bag = make_bag("s4")
    other = replace(bag.meta, fingerprint=replace(bag.meta.fingerprint, encoder="../another"))
    write_bag(tmp_path / "ours/s4.h5", replace(bag, meta=other))
    results = export_bags(tmp_path / "ours", tmp_path / "out", layout="trident", on_slide=quiet)
    assert [result.slide_id for result in results if result.problem] == ["s4"]


def test_an_encoder_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    bag = make_bag("s1")
    other = replace(bag.meta, fingerprint=replace(bag.meta.fingerprint, encoder="/../../x"))
    (tmp_path / "ours").mkdir()
    write_bag(tmp_path / "ours/s1.h5", replace(bag, meta=other))
    export_bags(tmp_path / "ours", tmp_path / "out", layout="trident", on_slide=quiet)
    (path,) = tmp_path.glob("out/*/features_*/s1.h5")
    assert path.parent.name == "features__.._.._x"


def test_layouts_that_are_only_read_cannot_be_written(tmp_path: Path) -> None:
    write_ours(tmp_path / "ours")
    with pytest.raises(BagError, match="imported only"):
        export_bags(tmp_path / "ours", tmp_path / "out", layout="atlaspatch", on_slide=quiet)


# The other half reads them like its own.


def test_imported_bags_train_together_but_never_with_our_own(tmp_path: Path) -> None:
    for name in ("s1", "s2"):
        write_trident(tmp_path / f"job/{name}.h5", FEATURES, COORDS)
    import_bags(
        tmp_path / "job",
        tmp_path / "bags",
        layout="trident",
        defaults=ImportDefaults(),
        on_slide=quiet,
    )
    table = tmp_path / "train.csv"
    table.write_text("image_id,patient_id,label\ns1,p1,CE\ns2,p2,LAA\n")
    store = load_patient_bags(read_cohort(table, labelled=True), find_bags(tmp_path / "bags"))
    np.testing.assert_array_equal(store.features["p1"], FEATURES[IN_ORDER])
    assert store.fingerprint.encoder == "uni_v1"
    assert len({note.content_id for note in store.slides}) == 1  # equal embeddings
    with pytest.raises(BagError, match="made with --backbone fake"):
        check_fingerprint(
            store.fingerprint, [("s3", make_bag("s3").meta.fingerprint)], source="the run"
        )


def test_no_slide_can_be_embedded_to_match_imported_bags(tmp_path: Path) -> None:
    write_trident(tmp_path / "job/s1.h5", FEATURES, COORDS)
    bag, _ = import_slide(tmp_path / "job", "trident")
    with pytest.raises(BagError, match="how their tiles were made is unknown"):
        config_from_fingerprint(bag.meta.fingerprint, batch_tiles=1, n_workers=1)


def test_a_bag_under_the_name_of_another_slide_is_refused(tmp_path: Path) -> None:
    write_bag(tmp_path / "s1.h5", make_bag("s2"))
    table = tmp_path / "train.csv"
    table.write_text("image_id,patient_id\ns1,p1\n")
    with pytest.raises(BagError, match="the bag of slide 's2'; expected that of 's1'"):
        load_patient_bags(read_cohort(table, labelled=False), find_bags(tmp_path))


# Folders that other programs and people make.


def import_all(source: Path, layout: str) -> list[ConversionResult]:
    bags_dir = source.parent / "imported"
    return import_bags(
        source, bags_dir, layout=layout, defaults=ImportDefaults(), on_slide=quiet
    )  # fmt: skip


def write_stamp(path: Path, features: np.ndarray = FEATURES) -> None:
    about = {"stamp_version": "2.0.0", "unit": "um", "tile_size_um": 112.0, "tile_size_px": 224}
    write_h5(path, attributes=about, feats=features, coords=COORDS.astype(np.float32))


@pytest.mark.parametrize("folders", [["", "a", "a/b"], ["a", "b", "c"], ["a/b", "a/b", "a"]])
def test_bags_in_subfolders_are_imported(tmp_path: Path, folders: list[str]) -> None:
    for number, folder in enumerate(folders):
        write_stamp(tmp_path / "stamp" / folder / f"s{number}.h5")
        write_pt(tmp_path / "torch" / folder / f"s{number}.pt", torch.from_numpy(FEATURES))
    for layout in ("stamp", "torch"):
        results = import_all(tmp_path / layout, layout)
        assert {r.slide_id for r in results if not r.problem and not r.left_out} == {
            "s0", "s1", "s2",
        }  # fmt: skip
        assert find_bags(tmp_path / "imported").keys() == {"s0", "s1", "s2"}
        for path in (tmp_path / "imported").iterdir():
            path.unlink()


def test_files_that_are_not_of_the_layout_are_left_out_by_name(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_h5(source / "h5_files" / "s1.h5", features=FEATURES, coords=COORDS)
    write_h5(source / "more" / "s2.h5", features=FEATURES, coords=COORDS)
    write_h5(source / "s3.H5", features=FEATURES, coords=COORDS)
    write_h5(source / "patches" / "s1.h5", coords=COORDS)  # of a slide that is taken
    write_pt(source / "pt_files" / "s1.pt", torch.from_numpy(FEATURES))
    np.save(source / "s4.npy", FEATURES)
    (source / "._s1.h5").write_bytes(b"left by macOS")
    (source / "read me.txt").write_text("no embeddings")
    results = import_all(source, "clam")
    assert [r.slide_id for r in results if not r.left_out] == ["s1"]
    left_out = {r.slide_id: r.left_out for r in results if r.left_out}
    assert left_out.keys() == {"more/s2.h5", "s3.H5", "s4.npy"}
    assert left_out["s4.npy"] == "a .npy file, and those of this layout are .h5"


def test_links_that_lead_nowhere_or_to_folders_are_left_out_by_name(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    write_stamp(source / "s1.h5")
    for name in ("s1", "s2"):
        write_stamp(elsewhere / f"{name}.h5")
    (source / "cohort").symlink_to(elsewhere)
    (source / "s3.h5").symlink_to(tmp_path / "gone.h5")
    results = import_all(source, "stamp")
    assert {r.slide_id: r.left_out for r in results} == {
        "s1": "", "cohort/s2.h5": "not where this layout has its bags",
        "s3.h5": "a link to a file that is not there",
    }  # fmt: skip


def test_bags_deep_behind_links_are_left_out_by_name_and_loops_end(tmp_path: Path) -> None:
    source, other, third = tmp_path / "in", tmp_path / "other", tmp_path / "third"
    write_pt(source / "pt_files" / "s1.pt", torch.from_numpy(FEATURES))
    write_pt(other / "pt_files" / "s2.pt", torch.from_numpy(FEATURES))
    write_pt(third / "s3.pt", torch.from_numpy(FEATURES))
    for name in ("one/s4.pt", "two/s5.pt"):
        write_pt(tmp_path / "of" / name, torch.from_numpy(FEATURES))
    for link, target in {
        source / "second": other, other / "pt_files" / "third": third, third / "back": other,
        source / "loop": source, source / "up": tmp_path, source / "again": source / "pt_files",
        source / "all": tmp_path / "of", source / "one": tmp_path / "of" / "one",
        source / "lost": tmp_path / "gone", source / "read me.txt": tmp_path / "gone.txt",
    }.items():  # fmt: skip
        link.symlink_to(target)
    left_out = {r.slide_id: r.left_out for r in import_all(source, "clam")}
    assert left_out.pop("s1") == ""
    assert left_out.pop("lost") == "a link to a folder that is not there"
    assert left_out == dict.fromkeys(
        ["second/pt_files/s2.pt", "second/pt_files/third/s3.pt", "one/s4.pt", "all/two/s5.pt"],
        "not where this layout has its bags",
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_compared_without_a_word_of_the_library(
    tmp_path: Path, value: float
) -> None:
    features = FEATURES.copy()
    features[0, 0] = value
    write_h5(tmp_path / "in" / "h5_files" / "s1.h5", features=features, coords=COORDS)
    write_pt(tmp_path / "in" / "pt_files" / "s1.pt", torch.from_numpy(features))
    with warnings.catch_warnings(action="error"):
        (result,) = import_all(tmp_path / "in", "clam")
    assert "expected finite numbers" in result.problem


@pytest.mark.parametrize("array", [np.float32(3), np.zeros(0, np.float32)])
def test_an_array_without_a_vector_is_refused_by_slide(tmp_path: Path, array: np.ndarray) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "s1.npy", array)
    (result,) = import_all(tmp_path / "in", "slide-vectors")
    assert "s1.npy: " in result.problem


def test_two_bags_of_one_slide_in_subfolders_are_refused(tmp_path: Path) -> None:
    for folder in ("uni", "conch"):
        write_stamp(tmp_path / "in" / folder / "s1.h5")
    with pytest.raises(BagError, match="two bags of slide 's1'") as caught:
        import_all(tmp_path / "in", "stamp")
    assert "one by one" in str(caught.value)


def test_two_vectors_of_one_slide_in_files_of_two_kinds_are_refused(tmp_path: Path) -> None:
    write_h5(tmp_path / "in" / "s1.h5", features=FEATURES[:1])
    write_pt(tmp_path / "in" / "s1.pt", torch.from_numpy(FEATURES[:1] + 1))
    with pytest.raises(BagError, match=r"two bags of slide 's1': .*s1\.h5 and .*s1\.pt"):
        import_all(tmp_path / "in", "slide-vectors")
    (tmp_path / "in" / "s1.pt").unlink()
    assert [r.slide_id for r in import_all(tmp_path / "in", "slide-vectors")] == ["s1"]


def test_bags_named_after_the_file_of_the_slide_are_imported_under_its_id(tmp_path: Path) -> None:
    write_stamp(tmp_path / "in" / "x.svs.h5")
    assert [r.slide_id for r in import_all(tmp_path / "in", "stamp")] == ["x"]


@pytest.mark.parametrize(
    ("features", "message"),
    [(FEATURES.astype(np.int8), "type int8"), (FEATURES.astype(np.int64), "type int64"),
     (FEATURES.astype(np.float16).view(np.uint16), "type uint16"),
     (FEATURES > 1, "no 2-dimensional|bool"), (FEATURES + np.nan, "hold NaN"),
     (FEATURES * 0, "are all zeros"), (FEATURES * 0 + 1, "are equal")],
)  # fmt: skip
def test_embeddings_of_no_encoder_are_not_imported(
    tmp_path: Path, features: np.ndarray, message: str
) -> None:
    write_stamp(tmp_path / "in" / "s1.h5", features)
    problem = import_problem(tmp_path / "in", "stamp")
    assert re.search(message, problem), problem
    assert "s1.h5" in problem


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_tensors_of_integers_are_not_imported(tmp_path: Path, dtype: torch.dtype) -> None:
    write_pt(tmp_path / "in" / "s1.pt", torch.arange(24).reshape(3, 8).to(dtype))
    assert "floating-point numbers" in import_problem(tmp_path / "in", "torch")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
def test_tensors_of_any_floating_type_are_imported(tmp_path: Path, dtype: torch.dtype) -> None:
    write_pt(tmp_path / "in" / "s1.pt", torch.from_numpy(FEATURES).to(dtype))
    bag, _ = import_slide(tmp_path / "in", "torch")
    np.testing.assert_array_equal(bag.features, FEATURES)


def test_a_table_of_vectors_is_told_what_is_imported(tmp_path: Path) -> None:
    (tmp_path / "vectors.csv").write_text("slide_id,f0\ns1,1.5\n")
    with pytest.raises(
        BagError, match=r"a file, no folder; expected a folder with <slide>.h5, .pt"
    ):
        import_bags(
            tmp_path / "vectors.csv", tmp_path / "bags", layout="slide-vectors",
            defaults=ImportDefaults(), on_slide=quiet,
        )  # fmt: skip
