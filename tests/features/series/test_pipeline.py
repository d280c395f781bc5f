"""Series into bags: order, what is left out, going on after a stop, and no name anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pydicom.dataset import Dataset
from safetensors.torch import save_file

from features.bags.bag import IMAGE
from features.bags.h5 import find_bags, read_bag
from features.bags.verify import verify_bags
from features.embedding.config import config_from_fingerprint
from features.embedding.results import SlideResult
from features.embedding.worker import WorkerInfo
from features.encoders.base import Encoder
from features.encoders.encoder import load_encoder
from features.errors import BagError
from features.series.config import (
    SeriesConfig,
    series_config_from_fingerprint,
)
from features.series.manifest import read_series
from features.series.pipeline import embed_series
from features.series.windowing import parse_windows
from tests.fakes import FINGERPRINT
from tests.scans import BIRTH_DATE, PLANTED, write_scan

SETTINGS = SeriesConfig(side_px=64, batch_tiles=4, n_workers=2)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), path)
    return load_encoder(
        "test_vit", weights_path=path, device=torch.device("cpu"), batch_tiles=4
    )  # fmt: skip


def run(source: Path, bags: Path, encoder: Encoder, **options: object) -> list[SlideResult]:
    config = replace(options.pop("config", SETTINGS), encoder=encoder, **options)
    return embed_series(read_series(source), bags, config)


def test_scans_become_bags_with_order_and_source(tmp_path: Path, encoder: Encoder) -> None:
    for number in range(2):
        write_scan(tmp_path / "scans" / f"scan{number}", n_slices=3 + number, seed=(number,))
    results = run(tmp_path / "scans", tmp_path / "bags", encoder)
    assert [(o.slide_id, o.status, o.n_tiles) for o in results] == [
        ("scan0", "done", 3), ("scan1", "done", 4),
    ]  # fmt: skip
    bag = read_bag(tmp_path / "bags" / "scan1.h5")
    assert bag.meta.kind == IMAGE
    assert bag.order is not None
    assert bag.order.tolist() == [0, 1, 2, 3]
    assert sorted(bag.source or ()) == [f"scan1/IM{i:04d}.dcm" for i in range(4)]
    assert (bag.coords_px0 == -1).all()
    assert (bag.meta.mpp_x, bag.meta.mpp_source) == (500, "file")
    assert bag.features.shape == (4, encoder.dim)
    assert verify_bags(tmp_path / "bags", on_bag=lambda done, total: None).n_bad == 0


def test_patches_become_bags_of_their_groups_and_bags_of_one(
    tmp_path: Path, encoder: Encoder
) -> None:
    rng = np.random.default_rng(0)
    rows = ["bag_id,path"]
    for number, group in enumerate("aab"):
        pixels = rng.integers(0, 256, (96, 96, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{group},{number}.png")
    (tmp_path / "patches.csv").write_text("\n".join(rows))
    run(tmp_path / "patches.csv", tmp_path / "bags", encoder)
    bags = {name: read_bag(path) for name, path in find_bags(tmp_path / "bags").items()}
    assert {name: bag.source for name, bag in bags.items()} == {
        "a": ("0.png", "1.png"), "b": ("2.png",),
    }  # fmt: skip


def test_a_bad_image_stops_no_series_and_a_bad_series_no_other(
    tmp_path: Path, encoder: Encoder
) -> None:
    for number in range(3):
        write_scan(tmp_path / "scans" / f"s{number}", n_slices=6, seed=(number,))
    (tmp_path / "scans" / "s0" / "IM0003.dcm").write_bytes(b"broken")
    for file in sorted((tmp_path / "scans" / "s1").iterdir())[:3]:
        file.write_bytes(b"broken")
    results = {o.slide_id: o for o in run(tmp_path / "scans", tmp_path / "bags", encoder)}
    assert {name: o.status for name, o in results.items()} == {
        "s0": "done", "s1": "failed", "s2": "done",
    }  # fmt: skip
    assert results["s0"].n_failed == 1
    assert "IM0003.dcm: no DICOM file" in results["s0"].message
    assert "3 of 6 images cannot be read" in results["s1"].message
    table = (tmp_path / "bags" / "embed.csv").read_text()
    assert "IM0003.dcm" in table
    assert list(find_bags(tmp_path / "bags")) == ["s0", "s2"]


def test_what_is_left_out_is_counted_and_leaves_no_gap(tmp_path: Path, encoder: Encoder) -> None:
    def mix(index: int, header: Dataset) -> None:
        if index == 0:
            header.ImageType = ["DERIVED", "SECONDARY", "LOCALIZER"]
        if index == 2:
            header.SeriesInstanceUID = "9.9"

    write_scan(tmp_path / "scans" / "s", n_slices=5, alter=mix)
    (result,) = run(tmp_path / "scans", tmp_path / "bags", encoder)
    bag = read_bag(tmp_path / "bags" / "s.h5")
    assert json.loads(bag.meta.left_out) == {"another series": 1, "scout view": 1}
    assert bag.order is not None
    assert bag.order.tolist() == [0, 1, 2]
    assert result.n_tiles == 3
    assert verify_bags(tmp_path / "bags", on_bag=lambda done, total: None).n_bad == 0


def test_finished_series_are_skipped_and_other_settings_refused(
    tmp_path: Path, encoder: Encoder
) -> None:
    write_scan(tmp_path / "scans" / "s", n_slices=2)
    run(tmp_path / "scans", tmp_path / "bags", encoder)
    before = (tmp_path / "bags" / "s.h5").read_bytes()
    (again,) = run(tmp_path / "scans", tmp_path / "bags", encoder)
    assert again.status == "skipped"
    other = SeriesConfig(side_px=64, windows=parse_windows("brain,subdural,bone"))
    with pytest.raises(BagError, match="made with --windows"):
        run(tmp_path / "scans", tmp_path / "bags", encoder, config=other)
    run(tmp_path / "scans", tmp_path / "bags", encoder, overwrite=True)
    assert (tmp_path / "bags" / "s.h5").read_bytes() == before


def test_workers_on_other_machines_receive_absolute_paths_and_the_largest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    class PathExecutor:
        info = WorkerInfo(fingerprint=SETTINGS.make_fingerprint(encoder), runtime="eager")

        def run(self, payloads: Sequence[Any], listener: object, *, stop: object) -> None:
            self.paths = [payload.path for payload in payloads]

    for name, n_slices in (("s", 1), ("t", 3)):
        write_scan(tmp_path / "scans" / name, n_slices=n_slices)
    monkeypatch.chdir(tmp_path)
    executor = PathExecutor()
    config = replace(SETTINGS, engine="ray")
    embed_series(read_series(Path("scans")), "bags", config, executor=executor)
    assert executor.paths == [tmp_path / "scans" / name for name in ("t", "s")]


def test_no_name_and_no_birth_date_reaches_what_is_written_or_printed(
    tmp_path: Path, encoder: Encoder, capfd: pytest.CaptureFixture[str]
) -> None:
    def spoil(index: int, header: Dataset) -> None:
        if index == 1:
            header.Rows = 60000
        if index == 2:
            header.RescaleSlope = 0

    write_scan(tmp_path / "scans" / "good", n_slices=4)
    write_scan(tmp_path / "scans" / "bad", n_slices=5, alter=spoil)
    results = run(tmp_path / "scans", tmp_path / "bags", encoder)
    assert {o.slide_id: o.status for o in results} == {"bad": "failed", "good": "done"}
    printed = capfd.readouterr()
    written = b"".join(p.read_bytes() for p in (tmp_path / "bags").rglob("*") if p.is_file())
    for secret in (PLANTED, BIRTH_DATE):
        assert any(secret.encode() in p.read_bytes() for p in (tmp_path / "scans").rglob("*.dcm"))
        assert secret.encode() not in written
        assert secret not in printed.out + printed.err + repr(results)


def test_settings_are_found_again_in_the_fingerprint(encoder: Encoder) -> None:
    settings = SeriesConfig(
        encoder="test_vit", side_px=96, windows=parse_windows("bone,soft,10/20")
    )
    made = settings.make_fingerprint(encoder)
    assert series_config_from_fingerprint(made) == settings
    with pytest.raises(BagError, match="series of images, not slides"):
        config_from_fingerprint(made, batch_tiles=4, n_workers=1)
    with pytest.raises(BagError, match="Name them with --slides instead of --series"):
        series_config_from_fingerprint(FINGERPRINT)


def test_copies_of_a_series_are_told_by_content(tmp_path: Path, encoder: Encoder) -> None:
    for name in ("a", "b"):
        folder = write_scan(tmp_path / "scans" / name, n_slices=2, seed=(1,))
        for file in sorted(folder.iterdir()) if name == "b" else ():
            file.rename(file.with_name(f"renamed{file.name}"))
    for file in (tmp_path / "scans" / "a").iterdir():  # the ids in the headers are drawn anew
        (tmp_path / "scans" / "b" / f"renamed{file.name}").write_bytes(file.read_bytes())
    run(tmp_path / "scans", tmp_path / "bags", encoder)
    first, second = (read_bag(tmp_path / "bags" / f"{name}.h5") for name in "ab")
    assert first.meta.slide_content_id == second.meta.slide_content_id
    assert first.features_sha256 == second.features_sha256
