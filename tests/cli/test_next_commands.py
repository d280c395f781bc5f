"""Commands that others propose: they repeat what was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.slides.synthetic import write_slide
from tests.cli.running import mil


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
    assert next_of("inspect", *many) == ["mil preview slides/ --out previews"]


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
