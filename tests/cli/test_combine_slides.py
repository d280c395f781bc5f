"""Combined runs from slides: what is missing is embedded for each encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from features.bags.h5 import find_bags, read_bag
from mil.training.config import TrainConfig
from tests.cli.running import follow_advice, mil, mil_ok
from tests.cli.test_filter import tissue
from tests.studies import train_on

pytestmark = pytest.mark.ci
ENCODERS = {"small": "test_vit", "other": "test_resnet"}
N_TRAIN, N_NEW = 12, 3
QUICK = TrainConfig(head="mean", n_members=1, n_components=4, fixed_steps=2)


def embed(world: Path, name: str, *slides: Path, bags: Path) -> None:
    mil_ok("embed", *slides, "--bags", bags, "--backbone", ENCODERS[name], "--weights",
           world / f"{name}.safetensors", "--tile-px", 64, "--rules", "none", "--execution",
           "eager")  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides of fifteen patients, and runs of two encoders on twelve of them, combined."""
    folder = tmp_path_factory.mktemp("world")
    rows = []
    for number in range(N_TRAIN + N_NEW):
        part = folder / ("train" if number < N_TRAIN else "new")
        part.mkdir(exist_ok=True)
        pixels = np.full((256, 256, 3), 245, np.uint8)
        pixels[64:192, 32:224] = tissue(number, 192)[:128]
        Image.fromarray(pixels).save(part / f"{number:02d}_0.png")
        rows.append((f"{number:02d}_0", f"{number:02d}", "AB"[number % 2]))
    table = pd.DataFrame(rows, columns=["image_id", "patient_id", "label"])
    table[:N_TRAIN].to_csv(folder / "train.csv", index=False)
    table[N_TRAIN:].to_csv(folder / "new.csv", index=False)
    for seed, (name, encoder) in enumerate(ENCODERS.items()):
        torch.manual_seed(seed)
        state = timm.create_model(encoder, pretrained=False, num_classes=0).state_dict()
        save_file(state, folder / f"{name}.safetensors")
        embed(folder, name, folder / "train", bags=folder / "bags" / name)
        train_on(folder, folder / "train.csv", name, config=QUICK)
    mil_ok("combine", *(folder / "runs" / name for name in ENCODERS), "--run",
           folder / "runs" / "all")  # fmt: skip
    return folder


def infer(world: Path, bags: Path, *more: object):
    return mil("infer", "--run", world / "runs" / "all", "--patients", world / "new.csv", "--bags",
               bags, "--out", world / "out.csv", *more)  # fmt: skip


@pytest.mark.parametrize("kept", ["none", "one encoder", "a slide of each"])
def test_missing_bags_of_each_encoder_are_embedded_as_by_hand(
    world: Path, tmp_path: Path, kept: str
) -> None:
    bags, by_hand = tmp_path / "bags", tmp_path / "by-hand"
    for name in ENCODERS:
        embed(world, name, world / "new", bags=by_hand / name)
    if kept == "one encoder":
        shutil.copytree(by_hand / "small", bags / "given")
    elif kept == "a slide of each":
        for name in ENCODERS:
            (bags / name).mkdir(parents=True)
            shutil.copy(by_hand / name / "12_0.h5", bags / name)
    weights = [part for name in ENCODERS for part in ("--weights", world / f"{name}.safetensors")]
    result = infer(world, bags, "--slides", world / "new", *weights)
    assert result.exit_code == 0, result.output
    made = pd.read_csv(world / "out.csv")
    folders = {name: bags / name for name in ENCODERS}
    if kept == "one encoder":
        folders["small"] = bags / "given"
    for name, folder in folders.items():
        assert set(find_bags(folder)) == {"12_0", "13_0", "14_0"}
        for slide, path in find_bags(folder).items():
            expected = read_bag(by_hand / name / f"{slide}.h5").features
            np.testing.assert_allclose(read_bag(path).features, expected, atol=0.02)
    again = json.loads(infer(world, by_hand, "--json").stdout)
    assert again["bags"] == {name: str(by_hand / name) for name in ENCODERS}
    np.testing.assert_allclose(made.iloc[:, 1:], pd.read_csv(world / "out.csv").iloc[:, 1:],
                               atol=0.01)  # fmt: skip


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ((), 1, "no bags for the run 'small'"),
        (("--slides", "{world}/new", "--weights", "-"), 2, "one per backbone of test_vit, test_re"),
        (("--slides", "{world}/new", "--weights", "{world}/other.safetensors", "--weights",
          "{world}/small.safetensors"), 1, "weights that do not fit 'test_vit'"),
        (("--slides", "{world}/new", "--tta"), 2, "does not go with combined runs"),
    ],
)  # fmt: skip
def test_what_cannot_be_embedded_for_a_run_ends_in_one_line(
    world: Path, tmp_path: Path, more: tuple[str, ...], code: int, words: str
) -> None:
    (tmp_path / "bags").mkdir()
    (world / "out.csv").unlink(missing_ok=True)
    result = infer(world, tmp_path / "bags", *(word.format(world=world) for word in more))
    assert (result.exit_code, "Traceback" in result.output) == (code, False), result.output
    assert words in " ".join(result.output.replace("│", " ").split())
    assert not (world / "out.csv").exists()


def test_advice_on_slides_without_bags_leads_to_predictions(world: Path, tmp_path: Path) -> None:
    state = timm.create_model("test_vit", pretrained=False, num_classes=0).state_dict()
    save_file(state, tmp_path / "unlike.safetensors")
    one = f"infer --run {world}/runs/small --patients {world}/new.csv --out {tmp_path}/p.csv "
    all_of = one.replace("runs/small", "runs/all")
    small, other = (f"--weights {world}/{name}.safetensors" for name in ENCODERS)
    from_slides = f"--slides {world}/new --bags {tmp_path}"
    follow_advice(
        f"{one} {from_slides}/a --weights {tmp_path}/unlike.safetensors",
        "Name their checkpoint with --weights.",
        f"{one} {from_slides}/a {small}",
    )
    follow_advice(
        f"{all_of} {from_slides}/both {small}",
        "one per backbone of test_vit, test_resnet, in this order, `-` for installed weights",
        f"{all_of} {from_slides}/both {small} {other}",
        exit_code=2,
    )
    mil_ok("bags", "pack", world / "bags" / "small", "--out", tmp_path / "packed.zarr")
    follow_advice(
        f"{one} {from_slides}/packed.zarr {small}",
        "Name a folder of bags, or leave out --slides and --series.",
        f"{one} {from_slides}/b {small}",
    )
    follow_advice(
        f"{all_of} {from_slides}/c {small}",
        "one per backbone of test_vit, test_resnet, in this order",
        f"{all_of} {from_slides}/c {small} {other}",
        exit_code=2,
    )


def test_slides_of_a_run_on_imported_bags_are_imported_too(world: Path, tmp_path: Path) -> None:
    embed(world, "small", world / "new", bags=tmp_path / "new")
    for source, name in ((world / "bags" / "small", "train"), (tmp_path / "new", "infer")):
        mil_ok("bags", "export", source, "--to", "clam", "--out", tmp_path / f"of {name}")
        mil_ok("bags", "import", tmp_path / f"of {name}", "--from", "clam", "--bags",
               tmp_path / "bags" / name)  # fmt: skip
    shutil.copy(world / "train.csv", tmp_path)
    train_on(tmp_path, tmp_path / "train.csv", "train", config=QUICK)
    infer_ = ["infer", "--run", tmp_path / "runs" / "train", "--patients", world / "new.csv",
              "--out", tmp_path / "p.csv", "--bags"]  # fmt: skip
    follow_advice(
        [*infer_, tmp_path / "none", "--slides", world / "new"],
        "Import the bags of these slides as well, and leave --slides out.",
        [*infer_, tmp_path / "bags" / "infer"],
    )
