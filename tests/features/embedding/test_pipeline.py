from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from uuid import uuid4

import fsspec
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from features.bags.bag import BagMeta
from features.bags.h5 import find_bags, read_bag, read_meta, write_bag
from features.embedding import finished, pipeline, worker
from features.embedding.config import EmbedConfig, config_from_fingerprint
from features.embedding.pipeline import NoProgress, embed_slide, embed_slides
from features.embedding.results import SlideResult
from features.embedding.sources import SlideSource, slide_sources
from features.encoders.base import AsyncResult, Encoder
from features.encoders.encoder import TimmEncoder
from features.errors import BagError, SlideError, TableError
from features.parallel.base import Job
from features.slides.file_info import content_hash
from features.slides.manifest import check_unique_ids, read_mpp_table, read_slide_table
from features.slides.search import find_slides
from features.tiling.augmentation import AugmentationConfig
from features.tiling.grid import TileSettings
from features.tiling.slide_tiles import SlideTiles
from features.tiling.tissue import TissueSettings
from features.utils.paths import parse_url
from features.utils.stage_times import StageTimes
from features.visualization.preview import PreviewWriter
from tests.fakes import make_bag
from tests.features.slides.slide_files import write_zarr

SETTINGS = EmbedConfig(
    tiles=TileSettings(tile_px=160), tissue=TissueSettings(), batch_tiles=8, n_workers=2
)


def run(slides: Path, bags: Path, encoder: Encoder, **options: object) -> list[SlideResult]:
    config = replace(options.pop("config", SETTINGS), encoder=encoder)
    config = replace(config, overwrite=options.pop("overwrite", False))
    return embed_slides([slides], bags, config, **options)


def test_a_run_says_how_long_each_stage_took(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    times = StageTimes()
    began = time.monotonic()
    run(slides, tmp_path / "bags", encoder, times=times)
    whole_s = time.monotonic() - began
    seconds = times.as_dict()
    assert min(seconds.values()) > 0
    assert seconds["wait"] + seconds["device"] <= whole_s
    assert began <= times.began_s <= began + whole_s
    before = dict(seconds)
    run(slides, tmp_path / "bags", encoder, times=times)  # The broken slide alone is opened.
    assert times.as_dict()["mask"] == before["mask"]


def test_a_folder_becomes_bags_and_a_bad_slide_stops_no_other(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    results = {o.slide_id: o for o in run(slides, tmp_path / "bags", encoder)}
    assert {name: o.status for name, o in results.items()} == {
        "s0": "done", "s1": "done", "blank": "empty", "broken": "failed",
    }  # fmt: skip
    assert list(find_bags(tmp_path / "bags")) == ["blank", "s0", "s1"]
    bag = read_bag(tmp_path / "bags" / "s0.h5")
    assert bag.features.shape == (results["s0"].n_tiles, encoder.dim)
    assert bag.meta.mpp_source == "assumed"
    assert bag.meta.n_tried == len(bag.features) > 0
    assert read_bag(tmp_path / "bags" / "blank.h5").meta.empty_reason == "no tissue found"
    table = pd.read_csv(tmp_path / "bags" / "embed.csv", dtype=str, keep_default_na=False)
    assert table.set_index("slide_id")["status"].to_dict()["broken"] == "failed"
    assert "no reader can open it" in table.set_index("slide_id")["message"]["broken"]


def test_a_slide_of_one_colour_fails_by_name(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    flat = np.full((900, 900, 3), 180, np.uint8)
    tifffile.imwrite(slides / "flat.tif", flat, tile=(256, 256), photometric="rgb")
    settings = replace(SETTINGS, tissue=TissueSettings(method="all"))
    settings = replace(settings, tiles=replace(SETTINGS.tiles, rules=()))
    results = {o.slide_id: o for o in run(slides, tmp_path / "bags", encoder, config=settings)}
    assert results["flat"].status == "failed"
    assert "embeddings are equal" in results["flat"].message
    assert not (tmp_path / "bags" / "flat.h5").exists()
    assert results["s0"].status == "done"


def test_finished_slides_are_skipped_and_the_same_bytes_come_again(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    run(slides, tmp_path / "bags", encoder)
    before = {p.name: p.read_bytes() for p in (tmp_path / "bags").glob("*.h5")}
    (tmp_path / "bags" / "s1.h5").write_bytes(before["s1.h5"][:5000])  # as if it had been cut off
    statuses = {o.slide_id: o.status for o in run(slides, tmp_path / "bags", encoder)}
    assert statuses == {"s0": "skipped", "s1": "done", "blank": "skipped", "broken": "failed"}
    assert {p.name: p.read_bytes() for p in (tmp_path / "bags").glob("*.h5")} == before
    again = run(slides, tmp_path / "bags", encoder, overwrite=True)
    assert {o.status for o in again} == {"done", "empty", "failed"}
    assert {p.name: p.read_bytes() for p in (tmp_path / "bags").glob("*.h5")} == before


def test_a_folder_of_other_settings_is_not_mixed(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    run(slides, tmp_path / "bags", encoder)
    other = EmbedConfig(tiles=TileSettings(tile_px=160, target_mpp=1.0), tissue=TissueSettings())
    with pytest.raises(BagError, match=r"made with --mpp 0\.5; expected --mpp 1.*--overwrite"):
        run(slides, tmp_path / "bags", encoder, config=other)


def fill(slides: Path, bags: Path, encoder: Encoder, n_bags: int) -> None:
    """Slides that nobody may open, each with a finished bag."""
    bags.mkdir()
    made = SETTINGS.make_fingerprint(encoder)
    for number in range(n_bags):
        name = f"finished{number:02d}"
        (slides / f"{name}.tif").write_bytes(b"not to be opened")
        bag = make_bag(name, dim=encoder.dim)
        write_bag(bags / f"{name}.h5", replace(bag, meta=replace(bag.meta, fingerprint=made)))


def test_work_begins_before_the_bags_that_are_there_are_opened(
    slides: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(slides, tmp_path / "bags", encoder, 40)
    opened: list[Path] = []
    opened_before: list[int] = []

    class Watching(NoProgress):
        def slide_started(self, slide_id: str, n_tiles: int) -> None:
            opened_before.append(len([path for path in opened if path.name.startswith("fin")]))

    def watch(path: Path) -> BagMeta:
        opened.append(path)
        return read_meta(path)

    monkeypatch.setattr(finished, "read_meta", watch)
    results = run(slides, tmp_path / "bags", encoder, progress=Watching())
    assert len(opened_before) == 3
    assert max(opened_before) <= pipeline._BAGS_CHECKED_FIRST < 40
    assert {path.stem for path in opened} >= {f"finished{number:02d}" for number in range(40)}
    assert [o.slide_id for o in results] == sorted(path.stem for path in slides.iterdir())
    assert sum(o.status == "skipped" for o in results) == 40


def test_the_largest_slide_comes_first_and_results_keep_the_order_of_names(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    started: list[str] = []

    class Watching(NoProgress):
        def slide_started(self, slide_id: str, n_tiles: int) -> None:
            started.append(slide_id)

    (slides / "s1.tif").rename(slides / "zz.tif")
    with (slides / "zz.tif").open("ab") as file:
        file.write(bytes((slides / "s0.tif").stat().st_size))
    (slides / "broken.tif").unlink()
    config = replace(SETTINGS, n_workers=1)
    results = run(slides, tmp_path / "bags", encoder, config=config, progress=Watching())
    assert started == ["zz", "s0", "blank"]
    assert [o.slide_id for o in results] == ["blank", "s0", "zz"]


def test_one_source_precedes_the_largest_and_those_of_unknown_size_are_not_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = Event()

    def of_size(name: str, measure: Callable[[], int]) -> SimpleNamespace:
        return SimpleNamespace(bag_id=name, n_bytes=measure)

    def refuse() -> int:
        raise PermissionError("no access")

    def hang() -> int:
        answer.wait()
        return 9

    monkeypatch.setattr("features.embedding.sources._SIZES_S", 0.5)
    sources = [
        of_size("url", lambda: 0), of_size("refused", refuse), of_size("small", lambda: 1),
        of_size("large", lambda: 3), of_size("hangs", hang), of_size("later", lambda: 2),
    ]  # fmt: skip
    try:
        ordered = pipeline._largest_first(sources)
    finally:
        answer.set()
    assert [source.bag_id for source in ordered] == [
        "small", "large", "url", "refused", "hangs", "later",
    ]  # fmt: skip


def test_a_slide_that_is_open_is_not_kept_waiting_by_one_that_opens_slowly(
    slides: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_begun = Event()
    open_source = SlideSource.open

    def open_slowly(source: SlideSource) -> AbstractContextManager[SlideTiles]:
        if source.bag_id == "s0":
            assert other_begun.wait(timeout=30)
        return open_source(source)

    class Watching(NoProgress):
        def slide_started(self, slide_id: str, n_tiles: int) -> None:
            if slide_id == "s1":
                other_begun.set()

    monkeypatch.setattr(SlideSource, "open", open_slowly)
    paths = [slides / f"{name}.tif" for name in ("s0", "s1")]
    results = embed_slides(
        paths, tmp_path / "bags", replace(SETTINGS, encoder=encoder), progress=Watching()
    )
    assert [result.status for result in results] == ["done", "done"]


def test_a_slide_at_which_reading_hangs_is_named(
    slides: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Event()
    warnings: list[str] = []
    open_source = SlideSource.open

    def hang(source: SlideSource) -> AbstractContextManager[SlideTiles]:
        assert answers.wait(timeout=30)
        return open_source(source)

    class Watching(NoProgress):
        def warn(self, text: str) -> None:
            warnings.append(text)
            answers.set()

    monkeypatch.setattr("features.embedding.worker.SILENT_S", 0.05)
    monkeypatch.setattr(SlideSource, "open", hang)
    (result,) = run(slides / "s0.tif", tmp_path / "bags", encoder, progress=Watching())
    assert result.status == "done"
    assert warnings[0].startswith(
        f"nothing was finished for 10 minutes; in work: {slides}/s0.tif. "
    )
    assert "watching" not in {thread.name for thread in threading.enumerate()}


def test_only_what_is_in_work_is_named_once_per_standstill(
    slides: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    warnings: list[str] = []
    queue = SimpleNamespace(
        send_message=lambda message: warnings.extend(getattr(message, "text", "").splitlines()),
        finish=lambda *_: None,
    )
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: now_s))
    paths = [slides / "s0.tif", slides / "s1.tif"]
    sources = slide_sources(paths, SETTINGS, given_mpp={}, scene=None)
    first, second = (Job(number, source) for number, source in enumerate(sources))
    with closing(worker.EmbeddingWorker(tmp_path, encoder, SETTINGS)) as owner:
        run = worker._WorkerRun(owner, queue)
        for job in (first, second):
            run._open(job).closing.close()

        def minutes() -> Iterator[bool]:
            nonlocal now_s
            for minute in range(1, 80):
                now_s += 60
                if minute in {5, 10, 15, 20, 60}:
                    run.count_tiles(1)
                elif minute == 25:
                    run._finish(first, None)
                yield False
                if minute in {35, 59, 70, 79}:
                    n_warnings.append(len(warnings))
            yield True

        n_warnings: list[int] = []
        ended = minutes()
        run._watch(SimpleNamespace(wait=lambda _: next(ended)))
    assert n_warnings == [0, 1, 1, 2]
    assert all("s1.tif" in text and "s0.tif" not in text for text in warnings)


def test_one_bag_of_other_settings_among_many_stops_the_run(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    fill(slides, tmp_path / "bags", encoder, 40)
    odd = read_bag(tmp_path / "bags" / "finished01.h5")
    made = replace(odd.meta.fingerprint, target_mpp=2.0)
    write_bag(
        tmp_path / "bags" / "finished01.h5", replace(odd, meta=replace(odd.meta, fingerprint=made))
    )
    with pytest.raises(BagError, match=r"finished01\.h5: made with --mpp 2; expected --mpp 0\.5"):
        run(slides, tmp_path / "bags", encoder)


@pytest.mark.ci
def test_views_are_added_and_leave_the_plain_tiles_as_they_were(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    with_views = replace(SETTINGS, views=AugmentationConfig(n_views=2, seed=3))
    run(slides, tmp_path / "plain", encoder)
    run(slides, tmp_path / "bags", encoder, config=with_views)
    plain, bag = (read_bag(tmp_path / name / "s0.h5") for name in ("plain", "bags"))
    np.testing.assert_array_equal(bag.features, plain.features)
    assert bag.views is not None
    assert bag.views.shape == (len(plain.features), 2, encoder.dim)
    assert json.loads(bag.meta.fingerprint.views)["seed"] == 3
    assert "torchvision" in json.loads(bag.meta.software)
    assert read_bag(tmp_path / "bags" / "blank.h5").views.shape == (0, 2, encoder.dim)
    before = {p.name: p.read_bytes() for p in (tmp_path / "bags").glob("*.h5")}
    other = replace(with_views, n_workers=1)
    run(slides, tmp_path / "bags", encoder, config=other, overwrite=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "bags").glob("*.h5")} == before
    with pytest.raises(BagError, match=r"made with --views 2; expected no --views"):
        run(slides, tmp_path / "bags", encoder)


@pytest.mark.parametrize("name", ["new", "2024", "2024/01"])
def test_names_that_differ_in_case_alone_are_refused_where_files_have_none(
    tmp_path: Path, name: str
) -> None:
    slides = [tmp_path / "a" / "S.TIF", tmp_path / "b" / "s.tif"]
    (tmp_path / "2024").mkdir()
    check_unique_ids(slides, option="--bags", results_dir=tmp_path / name)
    other = tmp_path.with_name(tmp_path.name.swapcase())  # what such a file system shows
    other.symlink_to(tmp_path)
    with pytest.raises(SlideError, match="slide 's': 2 files of that name"):
        check_unique_ids(slides, option="--bags", results_dir=tmp_path / name)


def test_two_slides_of_one_name_are_refused(slides: Path, tmp_path: Path, encoder: Encoder) -> None:
    (slides / "more").mkdir()
    (slides / "more" / "s0.tiff").write_bytes(b"x")
    with pytest.raises(SlideError, match="slide 's0': 2 files of that name"):
        run(slides, tmp_path / "bags", encoder)


def test_a_given_resolution_changes_the_tiles_and_is_recorded(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    run(slides, tmp_path / "a", encoder)
    run(slides, tmp_path / "b", encoder, given_mpp={"s0": 0.5})
    assumed, given = (read_bag(tmp_path / name / "s0.h5") for name in ("a", "b"))
    assert (given.meta.mpp_source, given.meta.mpp_x) == ("given", 0.5)
    assert given.meta.span_x_px0 == assumed.meta.span_x_px0 / 2
    assert len(given.features) > 2 * len(assumed.features)


def test_an_implausible_given_resolution_fails_that_slide_only(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    results = {o.slide_id: o for o in run(slides, tmp_path, encoder, given_mpp={"s0": 400.0})}
    assert results["s0"].status == "failed"
    assert "400 µm/px" in results["s0"].message
    assert results["s1"].status == "done"


def test_previews_show_what_became_of_each_slide(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    folder = PreviewWriter(tmp_path / "previews")
    results = {o.slide_id: o for o in run(slides, tmp_path / "bags", encoder, preview=folder)}
    rows = {row.slide_id: row for row in folder.rows()}
    assert {name: row.status for name, row in rows.items()} == {
        name: result.status for name, result in results.items()
    }
    assert {row.slide_id: row.n_kept or 0 for row in folder.rows()} == {
        name: result.n_tiles for name, result in results.items()
    }
    assert rows["broken"].message == results["broken"].message
    assert "Preview of 4 slides" in folder.index_path.read_text()
    assert {p.stem for p in folder.folder.glob("*.jpg")} == {"s0", "s1", "blank"}


def test_a_slide_with_many_broken_tiles_fails(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    path = slides / "s0.tif"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle - len(data) // 4 : middle + len(data) // 4] = b"\xff" * (len(data) // 4 * 2)
    path.write_bytes(data)
    result = {o.slide_id: o for o in run(slides, tmp_path / "bags", encoder)}["s0"]
    assert result.status == "failed"
    assert "s0.h5" not in {p.name for p in (tmp_path / "bags").iterdir()}


@pytest.mark.parametrize("n_views", [0, 3])
def test_settings_come_back_from_a_fingerprint(encoder: Encoder, n_views: int) -> None:
    views = AugmentationConfig(n_views=n_views, hue=0.01)
    config = replace(SETTINGS, encoder="test_vit", views=views)
    made = config.make_fingerprint(encoder)
    again = config_from_fingerprint(made, batch_tiles=8, n_workers=2)
    assert again == (config if n_views else replace(config, views=AugmentationConfig()))
    assert again.make_fingerprint(encoder) == made


def test_tables_of_slides_and_resolutions_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a.tif").touch()
    table = tmp_path / "t.csv"
    table.write_text("path\na.tif\n")
    assert read_slide_table(table) == [tmp_path / "a.tif"]
    table.write_text("path\na.tif\ns3://bucket/b.zarr\n")
    assert list(map(parse_url, read_slide_table(table))) == [None, "s3://bucket/b.zarr"]
    table.write_text("path\ngone.tif\n")
    with pytest.raises(TableError, match="row 2: no file"):
        read_slide_table(table)
    table.write_text("slide_id,mpp\n049194,0.25\nb.tif,0.5\n")
    assert read_mpp_table(table) == {"049194": 0.25, "b": 0.5}
    table.write_text("slide_id,mpp\na,fine\n")
    with pytest.raises(TableError, match="mpp 'fine'"):
        read_mpp_table(table)


def test_an_ome_zarr_is_embedded_from_a_folder_and_from_a_url_alike(
    slides: Path, tmp_path: Path, encoder: Encoder
) -> None:
    with tifffile.TiffFile(slides / "s0.tif") as tiff:
        pixels = tiff.asarray()
    url = f"memory://{uuid4().hex}/s.ome.zarr"
    bags = []
    for path in (tmp_path / "s.ome.zarr", url):
        write_zarr(path, [pixels], mpp=(0.25, 0.25), chunk_px=512)
        (slide,) = find_slides([path])
        bag = embed_slide(slide, replace(SETTINGS, encoder=encoder))
        write_bag(tmp_path / "s.h5", bag)
        bags.append(read_bag(tmp_path / "s.h5"))
    fsspec.filesystem("memory").rm(url.rpartition("/")[0], recursive=True)
    assert bags[0].meta == bags[1].meta
    assert (bags[0].meta.slide_id, bags[0].meta.mpp_source) == ("s", "file")
    assert len(bags[0].features) > 0
    np.testing.assert_array_equal(bags[0].features, bags[1].features)
    assert json.loads(bags[0].meta.software)["zarr"][0].isdigit()
    assert bags[0].meta.slide_content_id == content_hash(tmp_path / "s.ome.zarr")


def test_a_device_out_of_memory_goes_on_with_half_the_batch_and_says_so(
    slides: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Warnings(NoProgress):
        def __init__(self) -> None:
            self.texts: list[str] = []

        def warn(self, text: str) -> None:
            self.texts.append(text)

    run(slides, tmp_path / "whole", encoder)
    assert isinstance(encoder, TimmEncoder)
    monkeypatch.setattr(encoder, "batch_tiles", encoder.batch_tiles)  # set back in the end
    monkeypatch.setattr(encoder, "_input", encoder._input)
    forward = encoder._embed_batch

    def short_of_memory(tiles: np.ndarray) -> AsyncResult:
        if encoder.batch_tiles > 16:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(tiles)

    monkeypatch.setattr(encoder, "_embed_batch", short_of_memory)
    progress = Warnings()
    results = run(slides, tmp_path / "bags", encoder, progress=progress)
    assert progress.texts == [
        "cpu ran out of memory; the encoder continues as 'eager float32 batch 16'"
    ]
    assert sum(result.status == "failed" for result in results) == 1  # the one that is no slide
    bag, same = (read_bag(tmp_path / name / "s0.h5") for name in ("bags", "whole"))
    np.testing.assert_allclose(bag.features, same.features, rtol=2e-3, atol=1e-3)
    assert json.loads(bag.meta.software)["execution"] == "eager float32 batch 16"
