"""Slides of several scenes, from `mil inspect` to the pages that show them again."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from safetensors.torch import save_file

from cli.viewer.slides import SlideCache, view_slide
from features.bags.h5 import find_bags, read_bag, read_bag_info, read_meta
from features.bags.store import BagStore
from features.slides.reader import open_slide, scene_of, slide_id_of, split_scene
from tests.cli.running import mil, mil_ok
from tests.cli.test_filter import tissue


def backbone(base: Path) -> tuple[object, ...]:
    return (
        "--backbone", "test_vit", "--weights", base / "weights.safetensors", "--tile-px", 64,
        "--rules", "none", "--execution", "eager", "--batch", 8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of two sections with a macro image, and bags of both sections."""
    base = tmp_path_factory.mktemp("scenes")
    (base / "slides").mkdir()
    torch.manual_seed(0)
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    save_file(state, base / "weights.safetensors")
    macro = np.full((90, 200, 3), 230, np.uint8)
    with tifffile.TiffWriter(base / "slides" / "s.ome.tif", ome=True) as file:
        file.write(macro, photometric="rgb", metadata={"Name": "macro image", "axes": "YXS"})
        for number, (name, side) in enumerate((("left", 256), ("right", 512))):
            pixels = np.full((side + 128, side, 3), 245, np.uint8)
            pixels[64:-64, 32:-32] = tissue(number, side)[:, 32:-32]
            file.write(
                pixels, photometric="rgb", tile=(128, 128),
                metadata={"Name": name, "axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
            )  # fmt: skip
    return base


@pytest.fixture(scope="module")
def bags(folder: Path) -> Path:
    for options in ((), ("--scene", 1)):
        mil_ok("embed", folder / "slides", "--bags", folder / "bags", *backbone(folder), *options)
    return folder / "bags"


def test_inspect_lists_scenes_and_what_was_set_aside(folder: Path) -> None:
    text = mil_ok("inspect", folder / "slides").stdout
    for words in ("2 of 2", "1: 256 × 384 px 'left'", "macro image, 200 × 90 px", "512 x 640 px"):
        assert words in text
    (slide,) = json.loads(mil_ok("inspect", folder / "slides", "--scene", 1, "--json").stdout)[
        "slides"
    ]
    assert (slide["slide_id"], slide["width_px0"], slide["scene"]) == ("s_scene1", 256, 1)
    assert [other["number"] for other in slide["other_scenes"]] == [2]
    wrong = mil("inspect", folder / "slides", "--scene", 3)
    assert wrong.exit_code == 1
    assert "no scene 3; expected 1 to 2" in wrong.output


def test_two_scenes_become_two_bags_that_name_each_other(bags: Path) -> None:
    assert list(find_bags(bags)) == ["s", "s_scene1"]
    largest, other = (read_meta(bags / f"{name}.h5") for name in ("s", "s_scene1"))
    assert (largest.width_px0, largest.scene) == (512, 2)
    assert "1: 256 × 384 px 'left'" in largest.other_scenes
    assert (other.slide_id, other.width_px0, other.scene) == ("s_scene1", 256, 1)
    assert "2: 512 × 640 px 'right'" in other.other_scenes
    assert largest.slide_content_id == other.slide_content_id
    features = [read_bag(bags / f"{name}.h5").features for name in ("s", "s_scene1")]
    assert len(features[0]) > len(features[1]) > 0


def test_the_summary_names_the_slides_of_several_scenes(folder: Path, bags: Path) -> None:
    command = ("embed", folder / "slides", "--bags", bags, *backbone(folder))
    assert "1 slide with several scenes" in (text := mil_ok(*command).stdout)
    assert "s (scene 2; others 1: 256 × 384 px 'left'). --scene N embeds another" in text
    summary = json.loads(mil_ok(*command, "--json").stdout)
    assert summary["other_scenes"] == {"s": "1: 256 × 384 px 'left'"}


def test_describe_reads_the_scenes_that_its_table_names(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("image_id,patient_id,label\ns_scene1,1,A\ns_scene2,2,B\n")
    page = ("--out", tmp_path / "page.html", "--json")
    summary = json.loads(mil_ok("describe", table, "--slides", folder / "slides", *page).stdout)
    assert summary["n_files"] == 2
    assert (summary["largest_slide"]["slide_id"], summary["largest_slide"]["width_px0"]) == (
        "s_scene2",
        512,
    )
    assert not [finding for finding in summary["findings"] if "file" in str(finding).lower()]


def test_packed_bags_keep_their_scene(bags: Path, tmp_path: Path) -> None:
    mil_ok("bags", "pack", bags, "--out", tmp_path / "pack.zarr")
    packed = BagStore(tmp_path / "pack.zarr")
    assert {name: read_bag_info(ref).meta.scene for name, ref in packed.items()} == {
        "s": 2,
        "s_scene1": 1,
    }


def test_a_preview_has_the_id_of_its_scene(folder: Path, tmp_path: Path) -> None:
    mil_ok("preview", folder / "slides", "--scene", 1, "--rules", "none", "--out", tmp_path)
    assert json.loads((tmp_path / "s_scene1.json").read_text())["width_px0"] == 256
    assert (tmp_path / "s_scene1.jpg").exists()


def test_the_viewer_shows_the_scene_of_the_id(folder: Path) -> None:
    cache = SlideCache()
    path = folder / "slides" / "s.ome.tif"
    for slide_id, width_px0 in (("s", 512), ("s_scene1", 256)):
        viewed = view_slide(slide_id, None, path, cache, has_bag=False, expects_file=True)
        assert viewed.zoom is not None
        assert viewed.zoom.width_px0 == width_px0
    cache.close()


def test_ids_name_scenes_and_files_keep_names_that_look_alike(folder: Path) -> None:
    assert slide_id_of("a/x.svs", 3) == "x_scene3"
    assert split_scene("x_scene3") == ("x", 3)
    assert scene_of("x_scene3", Path("x.svs")) == 3
    assert scene_of("x_scene3", Path("x_scene3.svs")) is None
    with closing(open_slide(folder / "slides" / "s.ome.tif")) as slide:
        assert slide.scene == 2
