"""DICOM slides that leave out frames: sparse ones, and full ones with fewer than stated."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

from features.errors import TileError
from features.slides.reader import open_slide
from features.slides.search import find_slides
from features.tiling.grid import TileSettings
from features.tiling.slide_tiles import open_slide_tiles
from features.tiling.tissue import TissueSettings
from tests.features.slides.slide_files import whole
from tests.features.slides.test_absent_pixels import HALF, PIXELS

FRAME = 64
SERIES = generate_uid(entropy_srcs=["series"])
Keeps = Callable[[int, int], bool]


def sequence_item(**values: object) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def write_level(
    path: Path, pixels: np.ndarray, *, mpp: float, sparse: bool = False, keeps: Keeps | None = None
) -> Path:
    """Write one level in frames of 64 px; ``keeps`` says by row and column which are stored."""
    height, width = pixels.shape[:2]
    places = [(row, column) for row in range(height // FRAME) for column in range(width // FRAME)]
    stored = [place for place in places if keeps is None or keeps(*place)]
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    level = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    spacing = sequence_item(PixelSpacing=[mpp / 1000, mpp / 1000])
    values: dict[str, object] = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": SERIES, "Modality": "SM",
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        "TotalPixelMatrixColumns": width, "TotalPixelMatrixRows": height,
        "Columns": FRAME, "Rows": FRAME, "NumberOfFrames": len(stored), "SamplesPerPixel": 3,
        "PhotometricInterpretation": "YBR_FULL_422", "PlanarConfiguration": 0,
        "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
        "DimensionOrganizationType": "TILED_SPARSE" if sparse else "TILED_FULL",
        "SharedFunctionalGroupsSequence": [sequence_item(PixelMeasuresSequence=[spacing])],
    }  # fmt: skip
    if sparse:
        values["PerFrameFunctionalGroupsSequence"] = [
            sequence_item(PlanePositionSlideSequence=[sequence_item(
                ColumnPositionInTotalImagePixelMatrix=column * FRAME + 1,
                RowPositionInTotalImagePixelMatrix=row * FRAME + 1,
                XOffsetInSlideCoordinateSystem=0, YOffsetInSlideCoordinateSystem=0,
                ZOffsetInSlideCoordinateSystem=0,
            )])
            for row, column in stored
        ]  # fmt: skip
    frames = [
        imagecodecs.jpeg_encode(
            np.ascontiguousarray(
                pixels[r * FRAME : (r + 1) * FRAME, c * FRAME : (c + 1) * FRAME]
            ), level=98, subsampling="422",
        )
        for r, c in stored
    ]  # fmt: skip
    for name, value in values.items():
        setattr(level, name, value)
    level.PixelData = encapsulate(frames)
    level["PixelData"].is_undefined_length = True
    level.save_as(path, enforce_file_format=True)
    return path


def without_hole(row: int, column: int) -> bool:
    return not (4 <= row < 8 and 4 <= column < 8)


def first_rows(row: int, column: int) -> bool:
    del column
    return row < 6


def without_corner(row: int, column: int) -> bool:
    return row > 1 or column > 1


ABSENT = pytest.mark.parametrize(
    ("sparse", "keeps"), [(True, without_hole), (False, first_rows)], ids=["sparse", "fewer"]
)


@ABSENT
def test_tissue_in_frames_that_are_not_stored_is_lost_and_counted(
    tmp_path: Path, sparse: bool, keeps: Keeps
) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5, sparse=sparse, keeps=keeps)
    with open_slide_tiles(
        path, tiles=TileSettings(tile_px=32, rules=()), tissue=TissueSettings(), given_mpp=None
    ) as tiles:
        assert any("frames of level 0 are not stored" in text for text in tiles.slide.warnings)
        read = [tiles.read(index) for index in range(tiles.n_tiles)]
        failed = np.array([isinstance(tile, TileError) for tile in read])
        assert failed.sum() >= 36  # a hole of 4 x 4 frames of 2 x 2 tiles, or half the tissue
        row, column = np.array(tiles.grid.coords_px0).T[::-1] // FRAME
        kept = np.array([keeps(*place) for place in zip(row, column, strict=True)])
        assert (failed == ~kept).all()


@ABSENT
def test_frames_that_a_coarser_level_lacks_come_from_the_finer(
    tmp_path: Path, sparse: bool, keeps: Keeps
) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5)
    write_level(tmp_path / "b.dcm", HALF, mpp=1.0, sparse=sparse,
                keeps=lambda row, column: keeps(2 * row, 2 * column))  # fmt: skip
    with closing(open_slide(path)) as slide:
        assert [level.width_px for level in slide.levels] == [768, 384]
        result = slide.read(level=1, x_px=0, y_px=0, width_px=384, height_px=384)
    assert np.abs(result.astype(int) - HALF).mean() < 3  # JPEG


def test_glass_that_a_sparse_slide_leaves_out_is_glass(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5, sparse=True, keeps=without_corner)
    with closing(open_slide(path)) as slide:
        assert slide.read(level=0, x_px=0, y_px=0, width_px=128, height_px=128).min() >= 240


@pytest.mark.parametrize("organization", [None, "TILED_FULL", "3D"])
def test_places_of_frames_hold_whatever_the_organization_says(
    tmp_path: Path, organization: str | None
) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5, sparse=True, keeps=without_hole)
    header = dcmread(path)
    del header.DimensionOrganizationType
    if organization is not None:
        header.DimensionOrganizationType = organization
    header.save_as(path, enforce_file_format=True)
    with closing(open_slide(path)) as slide:
        with pytest.raises(
            TileError, match=r"frame in row 4, column 4 .* at \(256, 256\) px0 is not stored"
        ):
            slide.read(level=0, x_px=0, y_px=0, width_px=768, height_px=768)
        assert slide.read(level=0, x_px=0, y_px=0, width_px=64, height_px=64).shape == (64, 64, 3)


def split_level(path: Path, *, names: tuple[str, ...], gap: bool = False) -> list[Path]:
    """Write a level as a concatenation, one file per name; with ``gap``, one frame is left out."""
    whole = dcmread(path)
    n_frames = int(whole.NumberOfFrames)
    frames = list(generate_frames(whole.PixelData, number_of_frames=n_frames))
    groups = list(whole.get("PerFrameFunctionalGroupsSequence", ()))
    bounds = np.linspace(0, n_frames, len(names) + 1).astype(int)
    paths = []
    for number, (name, first, end) in enumerate(zip(names, bounds, bounds[1:], strict=False), 1):
        part = dcmread(path)
        last = int(end) - (gap and number == len(names))
        part.NumberOfFrames = last - int(first)
        part.PixelData = encapsulate(frames[first:last])
        part["PixelData"].is_undefined_length = True
        if groups:
            part.PerFrameFunctionalGroupsSequence = groups[first:last]
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        part.ConcatenationUID, part.SOPInstanceUIDOfConcatenationSource = "1.2.7", "1.2.8"
        part.InConcatenationNumber, part.InConcatenationTotalNumber = number, len(names)
        part.ConcatenationFrameOffsetNumber = int(first)
        part.save_as(path.parent / name, enforce_file_format=True)
        paths.append(path.parent / name)
    path.unlink()
    return paths


@pytest.mark.parametrize("sparse", [False, True], ids=["full", "sparse"])
@pytest.mark.parametrize("names", [("b.dcm", "c.dcm"), ("c", "b", "d")], ids=["two", "three"])
def test_parts_of_a_concatenation_are_one_level(
    tmp_path: Path, sparse: bool, names: tuple[str, ...]
) -> None:
    whole = write_level(tmp_path / "w.dcm", PIXELS, mpp=0.5, sparse=sparse)
    parts = split_level(whole, names=names)
    write_level(tmp_path / "half.dcm", HALF, mpp=1.0)
    for paths in ([tmp_path], [*parts, tmp_path / "half.dcm"]):
        (path,) = find_slides(paths)
        with closing(open_slide(path)) as slide:
            assert [level.width_px for level in slide.levels] == [768, 384]
            assert not slide.warnings
            result = slide.read(level=0, x_px=0, y_px=0, width_px=768, height_px=768)
        assert np.abs(result.astype(int) - PIXELS).mean() < 3  # JPEG


def test_a_frame_that_a_concatenation_lacks_is_counted(tmp_path: Path) -> None:
    whole = write_level(tmp_path / "w.dcm", PIXELS, mpp=0.5)
    first, _ = split_level(whole, names=("b.dcm", "c.dcm"), gap=True)
    with closing(open_slide(first)) as slide:
        assert slide.warnings == ("1 of 144 frames of level 0 are not stored",)


def test_a_copy_of_a_file_beside_it_does_not_stand_for_its_missing_frames(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5, sparse=True, keeps=without_hole)
    (tmp_path / "a (1).dcm").write_bytes(path.read_bytes())
    with closing(open_slide(path)) as slide:
        assert slide.warnings == ("16 of 144 frames of level 0 are not stored",)


def test_a_place_stated_twice_fails_as_the_one_without_a_frame_does(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5, sparse=True)
    header = dcmread(path)
    groups = header.PerFrameFunctionalGroupsSequence
    place = groups[5 * 12 + 5].PlanePositionSlideSequence[0]
    place.ColumnPositionInTotalImagePixelMatrix += FRAME  # that of the next frame
    header.save_as(path)
    with closing(open_slide(path)) as slide:
        assert slide.warnings == ("2 of 144 frames of level 0 are not stored",)
        for column in (5, 6):
            with pytest.raises(TileError, match=f"row 5, column {column} of level 0"):
                slide.read(level=0, x_px=column * 64, y_px=320, width_px=64, height_px=64)
        slide.read(level=0, x_px=4 * 64, y_px=320, width_px=64, height_px=64)


def test_a_place_outside_the_level_leaves_a_hole(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5, sparse=True)
    header = dcmread(path)
    place = header.PerFrameFunctionalGroupsSequence[5 * 12 + 5].PlanePositionSlideSequence[0]
    place.RowPositionInTotalImagePixelMatrix += 100 * FRAME
    header.save_as(path)
    with closing(open_slide(path)) as slide, pytest.raises(TileError, match="row 5, column 5"):
        slide.read(level=0, x_px=320, y_px=320, width_px=64, height_px=64)


def test_a_hole_in_a_coarser_level_by_a_place_stated_twice_comes_from_the_finer(
    tmp_path: Path,
) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5)
    half = write_level(tmp_path / "b.dcm", HALF, mpp=1.0, sparse=True)
    header = dcmread(half)
    place = header.PerFrameFunctionalGroupsSequence[2 * 6 + 2].PlanePositionSlideSequence[0]
    place.ColumnPositionInTotalImagePixelMatrix += FRAME
    header.save_as(half)
    result = whole(path, 1)
    assert np.abs(result.astype(int) - HALF).mean() < 3  # JPEG
