"""Commands that others propose: they repeat what was given."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from cli.shared.next_slides import source_option
from cli.viewer.server import ViewServer
from features.slides.synthetic import write_slide
from mil.comparison.differences import compare_models
from mil.validation.external import validate
from mil.validation.recalibration import recalibrate
from tests.cli.running import mil
from tests.cli.test_filter import pen, tissue
from tests.fakes import FINGERPRINT


def next_of(*arguments: object) -> list[str]:
    """Commands that another one proposes, without the first word of the line."""
    lines = mil(*arguments).stderr.splitlines()
    return [line[6:] for line in lines if line.startswith(("Next: ", "or:   "))]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    paths = [folder / "a.tif", folder / "b c.tif", folder / "broken.tif"]
    pixels = np.random.default_rng(0).integers(90, 190, (300, 300, 3), np.uint8)
    for path in paths[:2]:
        write_slide(path, pixels)
    paths[2].write_bytes(b"II*\x00 no more")
    return paths


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--mpp 1.0 --tile-px 128 --tissue all --max-tiles 9 --rules dark,ink",
        "--slide-mpp 0.5 --overlap 8 --min-tissue 0.2",
    ],
)
def test_embed_is_proposed_with_the_options_of_the_preview(
    slides: list[Path], tmp_path: Path, options: str
) -> None:
    proposed = next_of("preview", slides[0], "--out", tmp_path, *options.split())
    embed = f"mil embed {slides[0]} --bags bags {options}".rstrip()
    assert proposed[0] == f"open {tmp_path}/index.html"
    assert sorted(proposed[1].split()) == sorted(embed.split())


def test_a_path_that_begins_as_an_option_does_is_proposed_as_a_path(
    slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-a.tif").write_bytes(slides[0].read_bytes())
    assert next_of("inspect", "./-a.tif") == ["mil preview ./-a.tif --out previews"]


def test_slides_are_named_again(slides: list[Path], tmp_path: Path) -> None:
    assert next_of("preview", *slides[:2], "--rules", "none", "--out", tmp_path)[1] == (
        f"mil embed {slides[0]} '{slides[1]}' --bags bags --rules none"
    )
    assert next_of("inspect", slides[0], "--slide-mpp", 0.5) == [
        f"mil preview {slides[0]} --out previews --slide-mpp 0.5"
    ]
    many = [slides[0].parent / f"{number}.tif" for number in range(6)]
    for path in many:
        path.symlink_to(slides[0])
    assert next_of("inspect", *many) == [f"mil preview {many[0].parent} --out previews"]


@pytest.mark.parametrize(
    ("slide_ids", "proposed"),
    [(["a"], "train"), (["a", "b"], "."), (["c"], "."), ([], "SLIDES"), (["gone"], "SLIDES")],
)
def test_slides_are_proposed_by_the_folder_of_those_in_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slide_ids: list[str], proposed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bags").mkdir()
    rows = ["slide_id,path", "a,train/a.tif", "b,other/b.tif", "c,c.tif", "gone,gone/gone.tif"]
    Path("bags", "embed.csv").write_text("\n".join(rows))
    for path in map(Path, ("train/a.tif", "other/b.tif", "c.tif")):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert source_option(FINGERPRINT, Path("bags"), slide_ids) == ["--slides", proposed]


def test_nothing_is_proposed_for_slides_that_cannot_be_read(
    slides: list[Path], tmp_path: Path
) -> None:
    assert next_of("preview", slides[2], "--out", tmp_path) == [f"open {tmp_path}/index.html"]
    assert next_of("inspect", slides[2]) == []


def test_columns_are_named_again(tmp_path: Path) -> None:
    table = tmp_path / "train.csv"
    rows = [f"s{n},p{n},{'AB'[n % 2]}" for n in range(30)]
    table.write_text("\n".join(["image_id,patient_id,diagnosis", *rows]))
    assert next_of("audit", table, "--column", "label=diagnosis", "--seed", 3) == [
        f"mil train --cohort {table} --bags bags --column label=diagnosis --seed 3"
    ]
    page = tmp_path / "page.html"
    for given in (["--column", "label=diagnosis"], ["--label", "diagnosis"]):
        assert next_of("describe", table, "--out", page, *given) == [
            f"open {page}", f"mil audit {table} --column label=diagnosis"
        ]  # fmt: skip


PLACEHOLDERS = {"SLIDES": "slides", "RUN": "runs/run-1", "BAGS": "bags", "BAGS_OF_EACH": "bags"}
"""What a user puts for them; the tables that commands propose are there under these names."""
ENCODER = "--backbone test_vit --weights w.safetensors --tile-px 64"
MORE = {
    "embed": "--execution eager --device cpu --rules none --slide-mpp 1",
    "train": "--head mean --folds 2 --set n_members=1 --set fixed_steps=2 --device cpu",
    "view": "--no-browser",
}
"""What a user adds here, as the cohort and its slides are small."""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slides of many patients in the folder of the test, tables of them, and an encoder."""
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ViewServer, "serve_forever", lambda server: None)
    for with_intervals in (validate, recalibrate, compare_models):
        monkeypatch.setitem(with_intervals.__kwdefaults__, "n_resamples", 50)
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), "w.safetensors")
    Path("slides").mkdir()
    rows = []
    for number in range(42):
        pixels = np.full((64, 96, 3), 245, np.uint8)
        pixels[8:56, 8:88] = tissue(number, 80)[:48]
        Image.fromarray(pixels).save(f"slides/{number:02d}.png")
        rows.append(f"{number:02d},p{number},{'AB'[number % 2]}")
    examples = ["path,label,slide_id"]
    for number in range(3):
        for name, paint in (("keep", tissue), ("drop", pen)):
            Image.fromarray(paint(number, 64)).save(f"{name}{number}.png")
            examples.append(f"{name}{number}.png,{name},s{number}")
    Path("examples.csv").write_text("\n".join(examples))
    for name, some in (("train", rows[:12]), ("test", rows[12:32]), ("labels", rows[12:32]),
                       ("others", rows[12:])):  # fmt: skip
        Path(f"{name}.csv").write_text("\n".join(["image_id,patient_id,label", *some]))


def type_next(command: str) -> list[str]:
    """Type a command as proposed, which must work, and return what it proposes itself."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]
    if words[0] == "open":
        assert Path(words[1].replace("RUN", PLACEHOLDERS["RUN"])).is_file(), command
        return []
    if words[1] == "embed" and "--backbone" not in words:
        words += ENCODER.split()
    result = mil(*words[1:], *MORE.get(words[1], "").split())
    assert result.exit_code == 0, (words, result.output)
    return [
        line[6:] for line in result.stderr.splitlines() if line.startswith(("Next: ", "or:   "))
    ]


@pytest.mark.ci
@pytest.mark.usefixtures("study")
def test_what_commands_propose_can_be_typed_until_the_end() -> None:
    typed, waiting = set[frozenset[str]](), ["mil inspect slides"]
    while waiting:
        words = (command := waiting.pop(0)).split()
        kind = frozenset([*words[:2], *(word for word in words if word.startswith("--"))])
        if words[0] == "open" or kind not in typed:
            typed.add(kind)
            waiting += type_next(command)
    assert set[str]().union(*typed) >= {
        "inspect", "preview", "embed", "train", "view", "infer", "score", "explain", "report",
        "evaluate", "recalibrate",
    }  # fmt: skip
    # A recalibrated run is not calibrated again, and no run is proposed for a folder in use.
    assert type_next("mil evaluate runs/recalibrated --cohort others.csv")[1:] == [
        "mil infer --run runs/recalibrated --patients test.csv"
    ]
    type_next("mil train --cohort train.csv --bags bags --run runs/same")
    for command in (
        f"mil filter fit examples.csv {ENCODER}",
        "mil describe train.csv",
        "mil compare runs/run-1 runs/same",
    ):
        for proposed in type_next(command):
            if not proposed.startswith("mil train"):
                type_next(proposed)
    assert type_next("mil bags pack bags") == ["mil train --cohort train.csv --bags bags.zarr"]
    assert type_next("mil compare runs/run-1 runs/same")[1:] == [
        "mil combine runs/run-1 runs/same --run runs/combined-2"
    ]
    assert type_next("mil backbones test_vit") == [
        "mil embed SLIDES --bags bags-new --backbone test_vit",
        "mil embed SLIDES --bags bags-new --backbone test_vit --weights FILE",
    ]
