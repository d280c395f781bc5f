"""Advice on slides: each message of inspect, preview, embed and filter is followed, and arrives."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
import zarr
from PIL import Image
from safetensors.torch import save_file

from tests.cli.running import expect_advice, follow_advice, mil, mil_ok
from tests.cli.test_filter import pen, tissue
from tests.features.slides.test_absent_pixels import PIXELS, lose, write_tiff
from tests.features.slides.test_ome_zarr import write as write_zarr
from tests.features.slides.test_samples import trestle
from tests.features.slides.test_scenes import TILED, write_pages

pytestmark = pytest.mark.ci
MODEL = "--backbone test_vit --weights w.safetensors --execution eager --device cpu"
TILES = "--slide-mpp 0.5 --tile-px 64 --rules none"
EMBED = f"embed slides {MODEL} {TILES} --bags {{out}}"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small slides, tables of them, examples of tiles, and the weights of a small encoder."""
    folder = tmp_path_factory.mktemp("study")
    torch.manual_seed(0)
    save_file(
        timm.create_model("test_vit", pretrained=False).state_dict(), folder / "w.safetensors"
    )
    (folder / "slides").mkdir()
    for number in range(2):
        pixels = np.full((240, 240, 3), 245, np.uint8)
        pixels[40:200, 40:200] = tissue(number, 160)
        Image.fromarray(pixels).save(folder / "slides" / f"{number:03d}.png")
    for name, text in {
        "train.csv": "image_id,patient_id,label\n000,p0,CE\n001,p1,LAA\n",
        "paths.csv": "path\nslides/000.png\nslides/001.png\n",
        "comma.csv": 'image_id,mpp\n000,"0,5"\n001,"0,5"\n',
        "unit.csv": "image_id,mpp\n000,0.5 um\n001,0.5 um\n",
        "oblong.csv": "image_id,mpp_x,mpp_y\n000,0.5,1\n001,0.5,1\n",
        "elsewhere.csv": "path\nscans/000.png\nscans/001.png\n",
        "misspelt.csv": "path\nslides/000\nslides/001.png\n",
        "stated.csv": "path,mpp\nslides/000.png,0.5\nslides/001.png,0.5\n",
        "mpp.csv": "image_id,mpp\n000,0.5\n001,0.5\n",
        "odd.toml": "[embedding]\nmpp = 0.5\n",
        "embed.toml": "[embed]\nmpp = 0.5\n",
        "far.csv": "image_id,mpp\n000,500\n001,500\n",
    }.items():
        (folder / name).write_text(text)
    (folder / "a.zarr").mkdir()
    (folder / "a.zarr" / "0").write_bytes(b"of a chunk")
    rows = ["path,label,slide_id"]
    for number in range(3):
        for name, paint in (("keep", tissue), ("drop", pen)):
            Image.fromarray(paint(number, 128)).save(folder / f"{name}{number}.png")
            rows.append(f"{name}{number}.png,{name},s{number}")
    (folder / "examples.csv").write_text("\n".join(rows) + "\n")
    (folder / "few.csv").write_text("\n".join(rows[:3]) + "\n")
    (folder / "odd").mkdir()
    first = folder / "slides" / "000.png"
    for name in ("000.png", "000", "000.jpg.zip"):
        shutil.copy(first, folder / "odd" / name)
    with zipfile.ZipFile(folder / "packed.zarr.zip", "w") as archive:
        archive.write(first, "000.png")
    (folder / "odd" / "slide.vsi").write_bytes(b"of Olympus")
    (folder / "odd" / "slide.kfb").write_bytes(b"of KFBio")
    (folder / "odd" / "slide.gif").write_bytes(b"GIF89a")
    (folder / "odd" / "no.tif").write_bytes(b"II*\0 and no more")
    pixels = np.asarray(Image.open(first))
    write_pages(folder / "pages.tif", (pixels, TILED), (pixels[:, ::-1], TILED))
    write_pages(folder / "scenes.tif", (pixels, TILED), (pixels[:200, :200], TILED))
    noise = np.random.default_rng(0).integers(0, 256, PIXELS.shape, np.uint16)
    deep = (PIXELS.astype(np.uint16) << 8) + noise
    write_tiff(folder / "deep.tif", [deep])
    write_tiff(folder / "swapped.tif", [deep.byteswap()])
    lose(write_tiff(folder / "holes.tif", [PIXELS]), 0, [(6, 6), (6, 7), (7, 6), (7, 7)])
    pixels = np.full((240, 240, 3), 245, np.uint8)
    pixels[40:200, 40:200] = tissue(0, 160)
    pixels[40:200, 110:200] = 40, 150, 70  # green ink
    Image.fromarray(pixels).save(folder / "ink.png")
    Image.new("RGB", (240, 240), (150, 80, 140)).save(folder / "flat.png")
    pale = np.random.default_rng(0).integers(240, 249, (2400, 2400, 3), np.uint8)
    pale[:60, :60] = tissue(0, 60)
    Image.fromarray(pale).save(folder / "pale.png")
    Image.fromarray(pale[:200, :200]).save(folder / "no_mpp.png")
    return folder


@pytest.fixture(autouse=True)
def in_study(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)


def without(option: str) -> str:
    """Return the command that embeds without an option and its value."""
    assert option in EMBED
    return EMBED.replace(option, "")


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        (f"{EMBED} --overlap 64", "64 px is not less than the tile's 64 px",
         f"{EMBED} --overlap 63 --max-tiles 9"),
        (f"{EMBED} --shard 3/2", "is not I/N with I from 1 to N", f"{EMBED} --shard 2/2"),
        (f"{EMBED} --mpp-table mpp.csv", "give either --slide-mpp or --mpp-table",
         without("--slide-mpp 0.5") + " --mpp-table mpp.csv"),
        (f"embed {MODEL} --bags {{out}}", ("name slides or folders of slides, such as 'mil embed "
         "slides/'"), f"embed slides/ {MODEL} --bags {{out}}"),
        (f"embed {MODEL} --bags {{out}}", "or give --series",
         f"embed --series slides {MODEL} --bags {{out}}"),
        (f"embed slides --series slides {MODEL} --bags {{out}}",
         "give either PATHS or --series, not both", f"embed slides {MODEL} --bags {{out}}"),
        (f"embed --series slides {MODEL} --bags {{out}} --tissue all", "goes with slides, not with",
         f"embed slides {MODEL} --bags {{out}} --tissue all"),
        (f"{EMBED} --address head:1", "goes with --engine ray", EMBED),
        (f"preview slides {TILES} --overlap 99 --out {{out}}", "is not less than the tile's 64 px",
         f"preview slides {TILES} --overlap 32 --out {{out}}"),
        (f"preview slides {TILES} --mpp-table mpp.csv --out {{out}}",
         "give either --slide-mpp or --mpp-table", f"preview slides {TILES} --out {{out}}"),
        ("preview slides --out ./slides/", "slides are read from slides; name another",
         f"preview slides {TILES} --out {{out}}"),
        (f"filter fit examples.csv --out examples.csv --tile-px 64 {MODEL}", "name another",
         f"filter fit examples.csv --out {{out}}/f.filter --tile-px 64 {MODEL}"),
    ],
)  # fmt: skip
def test_advice_on_usage_is_usage_that_works(
    wrong: str, advice: str, then: str, tmp_path: Path
) -> None:
    follow_advice(wrong.format(out=tmp_path), advice, then.format(out=tmp_path), exit_code=2)


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        ("inspect slides --scene 2", "Leave --scene out.", "inspect slides"),
        ("inspect train.csv", "Name the folder of the slides instead", "inspect slides"),
        ("inspect train.csv", "or add a column 'path' of their files", "inspect paths.csv"),
        (f"preview slides {TILES} --scene 2 --out {{out}}", "Leave --scene out.",
         f"preview slides {TILES} --out {{out}}"),
        (f"preview slides slides/../train.csv {TILES} --out {{out}}", "Name the folder",
         f"preview slides {TILES} --out {{out}}"),
        (f"{EMBED} --scene 2", "Leave --scene out.", EMBED),
        ("inspect https://host/s.svs", "Download it, and name the file.", "inspect slides"),
        ("embed slides odd/000.png --dry-run --bags {out}", "Rename one",
         f"{EMBED} --dry-run"),
        (without("--slide-mpp 0.5") + " --mpp-table comma.csv", "Write it with a decimal point",
         without("--slide-mpp 0.5") + " --mpp-table mpp.csv"),
        (without("--slide-mpp 0.5") + " --mpp-table unit.csv",
         "Write one number without a unit, such as 0.25 for a 40x scan.",
         without("--slide-mpp 0.5") + " --mpp-table mpp.csv"),
        (without("--slide-mpp 0.5") + " --mpp-table oblong.csv",
         "Write one column 'mpp' with the right number.",
         without("--slide-mpp 0.5") + " --mpp-table mpp.csv"),
        ("inspect elsewhere.csv", "Paths are relative to the folder of the table.",
         "inspect paths.csv"),
        ("inspect misspelt.csv", "Did you mean '000.png'?", "inspect paths.csv"),
        (f"{EMBED} --config odd.toml", "Did you mean [embed]?", f"{EMBED} --config embed.toml"),
        (without("--tile-px 64") + " --set tile=64", "Did you mean 'tile_px'?",
         without("--tile-px 64") + " --set tile_px=64"),
        (EMBED.replace("test_vit", "tset_vit"), "Did you mean test_vit,", EMBED),
        (f"{EMBED} --model-arg mean=128", "divide values of 0 to 255 by 255",
         f"{EMBED} --model-arg mean=[0.5,0.5,0.5]"),
        (f"{EMBED} --model-arg mean=128", "State it with --model-arg mean=[RED,GREEN,BLUE]",
         f"{EMBED} --model-arg mean=[0.5,0.4,0.5]"),
        (f"{EMBED} --filter train.csv", "or fit it again with 'mil filter fit'",
         f"filter fit examples.csv --out {{out}}/f.filter --tile-px 64 {MODEL}"),
        (f"filter fit examples.csv --out {{out}}/f.filter --tile-px 200 {MODEL}",
         "or set the size of a tile with --tile-px",
         f"filter fit examples.csv --out {{out}}/f.filter --tile-px 128 {MODEL}"),
        (f"filter fit few.csv --out {{out}}/f.filter --tile-px 64 {MODEL}",
         "Add examples from more slides.",
         f"filter fit examples.csv --out {{out}}/f.filter --tile-px 64 {MODEL}"),
    ],
)  # fmt: skip
def test_advice_on_slides_and_settings_leads_to_results(
    wrong: str, advice: str, then: str, tmp_path: Path
) -> None:
    follow_advice(wrong.format(out=tmp_path), advice, then.format(out=tmp_path))


def test_advice_on_other_settings_and_other_filters_leads_to_bags(tmp_path: Path) -> None:
    embed = EMBED.format(out=tmp_path / "bags")
    mil_ok(*shlex.split(embed))
    other = f"{embed} --overlap 32"
    advice = "(--overwrite embeds again, --bags names another folder)"
    follow_advice(other, advice, other.replace("/bags", "/others"))
    assert advice in mil(*shlex.split(f"{other} --dry-run")).output  # as it would end
    follow_advice(other, advice, f"{other} --overwrite")
    fit = f"filter fit examples.csv --out {tmp_path}/f.filter --tile-px 64 {MODEL}"
    mil_ok(*shlex.split(fit))
    filtered = f"{EMBED.format(out=tmp_path / 'filtered')} --filter {tmp_path}/f.filter"
    follow_advice(f"{filtered} --stain-norm macenko", "Leave out --filter or", filtered)
    other = f"{EMBED.format(out=tmp_path / 'kept')} --filter {tmp_path}/f.filter --mpp 1"
    failed = mil(*shlex.split(other))
    assert failed.exit_code == 1
    assert "Fit it again: 'mil filter fit' with the same backbone" in failed.output
    mil_ok(*shlex.split(f"{fit} --mpp 1"))
    mil_ok(*shlex.split(other))


def test_previews_replace_no_slide(tmp_path: Path) -> None:
    slide = tmp_path / "s.jpg"
    Image.fromarray(tissue(1, 160)).save(slide)
    before = slide.read_bytes()
    assert mil("preview", slide, "--out", tmp_path).exit_code == 2
    assert slide.read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        ("inspect pages.tif", "choose one of them with --scene 1 to --scene 2.",
         "inspect pages.tif --scene 2"),
        ("inspect scenes.tif --scene 3", "Choose another with --scene, or leave it out",
         "inspect scenes.tif --scene 2"),
        ("inspect scenes.tif --scene 3", "Choose another with --scene, or leave it out",
         "inspect scenes.tif"),
        ("inspect packed.zarr.zip", "Unpack it, and name the folder.", "inspect slides"),
        ("inspect swapped.tif", "expected a picture. Copy or export it again.", "inspect deep.tif"),
        ("inspect a.zarr/0", "It is a part of a slide: name", "inspect slides"),
        ("inspect odd/no.tif", "Copy it again, or export it as tiled TIFF.", "inspect slides"),
        ("embed slides odd/000.png {more}", "or write into different folders with --bags.",
         "embed odd/000.png {more}"),
        (f"{without('--slide-mpp 0.5')} --mpp-table far.csv", "Give micrometres per level-0 pixel",
         f"{without('--slide-mpp 0.5')} --mpp-table mpp.csv"),
        (f"embed holes.tif {MODEL} {TILES} --bags {{out}} --max-failed 0",
         "or allow more with --max-failed.",
         f"embed holes.tif {MODEL} {TILES} --bags {{out}} --max-failed 0.9"),
        (f"embed flat.png {MODEL} {TILES} --tissue all --bags {{out}}",
         "Look at the slide with 'mil preview'",
         f"preview flat.png {TILES} --tissue all --out {{out}}"),
    ],
)  # fmt: skip
def test_advice_on_files_leads_to_slides(
    wrong: str, advice: str, then: str, tmp_path: Path
) -> None:
    more = f"{MODEL} {TILES} --bags {tmp_path}"
    follow_advice(
        wrong.format(out=tmp_path, more=more), advice, then.format(out=tmp_path, more=more)
    )


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        ("inspect odd", "read only if it is named", "inspect odd/000"),
        (EMBED.replace("slides", "stated.csv").replace("--slide-mpp 0.5", ""),
         "its resolutions are read with --mpp-table stated.csv only.",
         EMBED.replace("slides", "stated.csv").replace("--slide-mpp 0.5", "--mpp-table stated.csv")
         + "/again"),
        ("inspect odd", "unpack it first", "inspect slides"),
        ("inspect odd", "convert to OME-TIFF with bfconvert", "inspect slides"),
        ("inspect odd", "export as TIFF with the vendor's software", "inspect slides"),
        ("inspect odd", "convert to PNG or TIFF", "inspect slides"),
        ("inspect no_mpp.png", "give --slide-mpp, or --mpp-table to 'mil embed'.",
         "inspect no_mpp.png --slide-mpp 0.5"),
        (f"embed no_mpp.png {MODEL} --bags {{out}}/a", "If you know it, give --slide-mpp",
         f"embed no_mpp.png {MODEL} --bags {{out}}/b --slide-mpp 0.5"),
        (f"embed pale.png {MODEL} {TILES} --bags {{out}}/a", "Look at them with 'mil preview'",
         f"preview pale.png {TILES} --out {{out}}/b"),
        (f"embed ink.png {MODEL} {TILES.replace('none', 'all')} --bags {{out}}/a",
         "(--rules none turns the rules off)", f"embed ink.png {MODEL} {TILES} --bags {{out}}/b"),
        (f"embed pale.png {MODEL} {TILES} --bags {{out}}/a", "`--tissue all` takes everything.",
         f"embed pale.png {MODEL} {TILES} --bags {{out}}/b --tissue all --max-tiles 9"),
        (f"embed scenes.tif {MODEL} {TILES} --bags {{out}}/a", "--scene N embeds another.",
         f"embed scenes.tif {MODEL} {TILES} --bags {{out}}/a --scene 2"),
    ],
)  # fmt: skip
def test_advice_beside_results_can_be_followed(
    wrong: str, advice: str, then: str, tmp_path: Path
) -> None:
    said = mil(*shlex.split(wrong.format(out=tmp_path)))
    assert said.exit_code in (0, 3)
    assert any(advice in line for line in said.output.splitlines()), said.output
    mil_ok(*shlex.split(then.format(out=tmp_path)))


def test_advice_on_ome_zarr_leads_to_the_image_to_embed(tmp_path: Path) -> None:
    plate = tmp_path / "plate.zarr"
    zarr.open_group(plate, mode="w", attributes={"ome": {"plate": {"wells": [{"path": "B/03"}]}}})
    well = {"ome": {"well": {"images": [{"path": "2"}]}}}
    zarr.open_group(plate / "B" / "03", mode="w", attributes=well)
    write_zarr(plate / "B" / "03" / "2", zarr_format=3)
    image = plate / "B" / "03" / "2"
    follow_advice(["inspect", plate], f"Name it, such as {image}.", ["inspect", image])
    packed = shutil.make_archive(str(plate), "zip", plate)
    unzipped = tmp_path / "unzipped"
    shutil.unpack_archive(packed, unzipped)
    for wrong, advice in (
        (packed, "Unzip it, and name one, such as B/03/2 in it."),
        (f"{packed}/B/03/2", f"Unzip {packed}, and name B/03/2 in it."),
    ):
        follow_advice(["inspect", wrong], advice, ["inspect", unzipped / "B" / "03" / "2"])
    alone = tmp_path / "alone.zarr"
    write_zarr(alone)
    planes, stains = tmp_path / "planes.zarr", tmp_path / "stains.zarr"
    for path, shape, advice in (
        (planes, (1, 3, 2, 64, 64), "Export the plane to embed alone."),
        (stains, (1, 7, 1, 64, 64), "Export red, green and blue of a stained slide alone."),
    ):
        write_zarr(path)
        zarr.create_array(path / "0", shape=shape, dtype="u1", zarr_format=2, overwrite=True)
        follow_advice(["inspect", path], advice, ["inspect", alone])


def test_a_tag_that_denies_the_colours_of_jpeg_is_corrected_in_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trestle(tmp_path / "COPY", stored="RGB", tag=6)
    monkeypatch.chdir(tmp_path)
    advice = "Correct the tag in a copy: python -c \"import tifffile; f = tifffile.TiffFile('COPY'"
    command = expect_advice(["inspect", "COPY"], advice).partition("copy: ")[2]
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
    mil_ok("inspect", "COPY")


def test_a_bag_that_cannot_be_used_is_deleted_and_made_again(tmp_path: Path) -> None:
    bags, elsewhere = tmp_path / "bags", tmp_path / "elsewhere.h5"
    embed = shlex.split(EMBED.format(out=bags))
    mil_ok(*embed)
    whole = (bags / "000.h5").read_bytes()
    pack = ["bags", "pack", bags, "--out", tmp_path / "bags.zarr"]
    for spoil, advice in (
        (lambda file: file["features"].write_direct(np.full((1, 64), np.nan), dest_sel=0),
         "Delete the bag and run 'mil embed' again, or import it again from its source."),
        (lambda file: file.attrs.update(complete=False), "Delete it and run 'mil embed' again."),
        (lambda file: file.attrs.update(slide_id="other"),
         "Name the file after its slide, or move it away and embed the slide again."),
    ):  # fmt: skip
        with h5py.File(bags / "000.h5", "r+") as file:
            spoil(file)
        failed = mil(*pack)
        assert failed.exit_code == 1
        assert advice in failed.stderr.splitlines()[-1]
        (bags / "000.h5").rename(elsewhere)
        mil_ok(*embed)
        assert (bags / "000.h5").read_bytes() == whole
    mil_ok(*pack)
