"""Advice on slides: each message of inspect, preview, embed and filter is followed, and arrives."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.cli.running import follow_advice, mil, mil_ok
from tests.cli.test_filter import pen, tissue

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
    (folder / "train.csv").write_text("image_id,patient_id,label\n000,p0,CE\n001,p1,LAA\n")
    (folder / "paths.csv").write_text("path\nslides/000.png\nslides/001.png\n")
    (folder / "comma.csv").write_text('image_id,mpp\n000,"0,5"\n001,"0,5"\n')
    (folder / "mpp.csv").write_text("image_id,mpp\n000,0.5\n001,0.5\n")
    (folder / "odd.toml").write_text("[embedding]\nmpp = 0.5\n")
    (folder / "embed.toml").write_text("[embed]\nmpp = 0.5\n")
    rows = ["path,label,slide_id"]
    for number in range(3):
        for name, paint in (("keep", tissue), ("drop", pen)):
            Image.fromarray(paint(number, 128)).save(folder / f"{name}{number}.png")
            rows.append(f"{name}{number}.png,{name},s{number}")
    (folder / "examples.csv").write_text("\n".join(rows) + "\n")
    (folder / "few.csv").write_text("\n".join(rows[:3]) + "\n")
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
        (without("--slide-mpp 0.5") + " --mpp-table comma.csv", "Write it with a decimal point",
         without("--slide-mpp 0.5") + " --mpp-table mpp.csv"),
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
    follow_advice(other, advice, f"{other} --overwrite")
    fit = f"filter fit examples.csv --out {tmp_path}/f.filter --tile-px 64 {MODEL}"
    mil_ok(*shlex.split(fit))
    other = f"{EMBED.format(out=tmp_path / 'kept')} --filter {tmp_path}/f.filter --mpp 1"
    failed = mil(*shlex.split(other))
    assert failed.exit_code == 1
    assert "Fit it again with the same backbone, --mpp and --tile-px." in failed.output
    mil_ok(*shlex.split(f"{fit} --mpp 1"))
    mil_ok(*shlex.split(other))


def test_previews_replace_no_slide(tmp_path: Path) -> None:
    slide = tmp_path / "s.jpg"
    Image.fromarray(tissue(1, 160)).save(slide)
    before = slide.read_bytes()
    assert mil("preview", slide, "--out", tmp_path).exit_code == 2
    assert slide.read_bytes() == before
