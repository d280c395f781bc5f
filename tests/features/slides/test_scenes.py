"""Which picture of a file is the slide."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from contextlib import closing
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from features.errors import MultiImageError, SceneError, SlideError
from features.slides.backends.scenes import Picture, choose_scene, companion_name
from features.slides.reader import open_slide
from tests.features.slides.slide_files import whole, write_zarr

RNG = np.random.default_rng(0)
SLIDE = RNG.integers(0, 256, (768, 1024, 3), np.uint8)
SECTION = RNG.integers(0, 256, (640, 512, 3), np.uint8)
PHOTO = RNG.integers(0, 256, (300, 420, 3), np.uint8)
TILED = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
PLAIN = {"photometric": "rgb", "metadata": None}
Page = tuple[np.ndarray, dict[str, object]]


def write_pages(path: Path, *pages: Page) -> Path:
    with tifffile.TiffWriter(path) as file:
        for pixels, options in pages:
            file.write(pixels, **options)
    return path


def write_ome(path: Path, *images: tuple[np.ndarray, str, float, bool]) -> Path:
    """Images of an OME-TIFF: pixels, name, µm per px, and whether tiled."""
    with tifffile.TiffWriter(path, ome=True) as file:
        for pixels, name, mpp, is_tiled in images:
            size = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp, "PhysicalSizeXUnit": "µm"}
            file.write(
                pixels, photometric="rgb", tile=(128, 128) if is_tiled else None,
                metadata={"axes": "YXS", "Name": name, **(size if mpp else {})},
            )  # fmt: skip
    return path


def shown(path: Path, scene: int | None = None) -> np.ndarray:
    with closing(open_slide(path, scene=scene)) as slide:
        return whole(slide)


THUMBNAIL = SLIDE[::8, ::8]
HALF, QUARTER = SLIDE[::2, ::2], SLIDE[::4, ::4]
THIRD, SIXTH = SLIDE[::3, ::3], SLIDE[::6, ::6]
LARGE = SLIDE.repeat(2, axis=0).repeat(2, axis=1)
DOUBLE = SLIDE[::-1].repeat(2, axis=0).repeat(2, axis=1)


def qpi(options: dict[str, object], kind: str) -> dict[str, object]:
    """Options of a page of a PerkinElmer QPTIFF."""
    root = "PerkinElmer-QPI-ImageDescription"
    text = f"<{root}><ImageType>{kind}</ImageType></{root}>"
    return {**options, "description": text, "software": "PerkinElmer-QPI"}


FILES: dict[str, list[Page]] = {
    "thumbnail first": [(THUMBNAIL, PLAIN), (SLIDE, TILED), (HALF, {**TILED, "subfiletype": 1})],
    "thumbnail first, flagged": [(THUMBNAIL, {**PLAIN, "subfiletype": 1}), (SLIDE, TILED)],
    "thumbnail in tiles": [(THUMBNAIL, TILED), (SLIDE, TILED)],
    "photograph of the glass first": [(PHOTO, PLAIN), (SLIDE, TILED)],
    "label between the levels": [
        (SLIDE, TILED), (PHOTO, {**TILED, "description": "Label Image"}),
        (HALF, {**TILED, "subfiletype": 1}),
    ],
    "Aperio's label": [
        (PHOTO, {**TILED, "description": "Aperio Image Library v11\r\nlabel 420x300"}),
        (SLIDE, TILED),
    ],
    "named page": [(PHOTO, {**TILED, "extratags": [(285, 2, 0, "macro_1", True)]}), (SLIDE, TILED)],
    "old flag": [(PHOTO, {**TILED, "extratags": [(255, 3, 1, 2, True)]}), (SLIDE, TILED)],
    "mask of the same size": [
        (SLIDE, TILED),
        (SLIDE[..., 0] > 9, {**TILED, "photometric": "minisblack", "subfiletype": 4}),
    ],
    "small to large": [
        (QUARTER, {**TILED, "subfiletype": 1}), (HALF, {**TILED, "subfiletype": 1}), (SLIDE, TILED)
    ],
    "macro of twice the size first": [(DOUBLE, {**TILED, "description": "macro"}), (SLIDE, TILED)],
    "label of half the size behind": [(SLIDE, TILED), (HALF, {**TILED, "description": "label"})],
    "photograph of twice the size, untiled": [
        (DOUBLE, {**PLAIN, "rowsperstrip": 64}), (SLIDE, TILED)
    ],
    "photograph of 6 megapixels first, untiled": [
        (np.full((3000, 2000, 3), 200, np.uint8), PLAIN), (LARGE, TILED)
    ],
    "small to large, not flagged": [(QUARTER, TILED), (HALF, TILED), (SLIDE, TILED)][1:],
    "QPTIFF, thumbnail first": [
        (THUMBNAIL, qpi(PLAIN, "Thumbnail")),
        (SLIDE, qpi(TILED, "FullResolution")),
        (PHOTO, qpi(PLAIN, "Overview")),
    ],
    "all in strips": [(THUMBNAIL, PLAIN), (SLIDE, {**PLAIN, "rowsperstrip": 64})],
}  # fmt: skip


@pytest.mark.parametrize("pages", FILES.values(), ids=FILES)
def test_the_largest_picture_that_is_no_companion_is_the_slide(
    tmp_path: Path, pages: list[Page]
) -> None:
    path = write_pages(tmp_path / "s.tif", *pages)
    largest_tiled = LARGE if any(pixels is LARGE for pixels, _ in pages) else SLIDE
    np.testing.assert_array_equal(shown(path), largest_tiled)


@pytest.mark.parametrize("compression", [None, "lzw", "jpeg"])
@pytest.mark.parametrize("shape", [(900, 1200), (1900, 1900), (2600, 3000)])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_slide_in_strips_is_not_lost_to_its_tiled_thumbnail(
    tmp_path: Path, compression: str | None, shape: tuple[int, int], is_first: bool
) -> None:
    slide = Image.fromarray(RNG.integers(0, 256, (9, 12, 3), np.uint8)).resize(shape[::-1])
    thumbnail = slide.resize((round(shape[1] / 2.7), round(shape[0] / 2.7)))
    turned = thumbnail.transpose(Image.Transpose.ROTATE_180)
    for small, size in ((thumbnail, slide.size), (turned, thumbnail.size)):
        pages: list[Page] = [
            (np.asarray(small), {**TILED, "compression": compression}),
            (np.asarray(slide), {**PLAIN, "rowsperstrip": 64, "compression": compression}),
        ]
        path = write_pages(tmp_path / "s.tif", *(pages if is_first else pages[::-1]))
        with closing(open_slide(path)) as opened:
            found = opened.levels[0].width_px, opened.levels[0].height_px
            if shape != (2600, 3000) or small is thumbnail:
                assert found == size
            assert len(opened.associated_images) + len(opened.other_scenes) == 1


@pytest.mark.parametrize("name", ["macro of twice the size first", "label of half the size behind"])
def test_a_companion_of_the_proportions_of_the_slide_is_no_level(tmp_path: Path, name: str) -> None:
    path = write_pages(tmp_path / "s.tif", *FILES[name])
    with closing(open_slide(path)) as slide:
        assert [level.width_px for level in slide.levels] == [1024]
        assert len(slide.associated_images) == 1


@pytest.mark.parametrize("name", ["small to large", "label between the levels"])
def test_reduced_pages_anywhere_in_the_file_are_levels_of_the_slide(
    tmp_path: Path, name: str
) -> None:
    path = write_pages(tmp_path / "s.tif", *FILES[name])
    with closing(open_slide(path)) as slide:
        assert [level.width_px for level in slide.levels] == [1024, 512, 256][
            : len(FILES[name]) - (name != "small to large")
        ]
        assert slide.other_scenes == ()
        assert len(slide.associated_images) == (name != "small to large")


@pytest.mark.parametrize(
    "order", [*permutations((SLIDE, HALF, QUARTER)), (QUARTER, SLIDE), (THIRD, SLIDE)]
)
def test_pages_smaller_by_one_factor_without_a_flag_are_a_pyramid(
    tmp_path: Path, order: tuple[np.ndarray, ...]
) -> None:
    path = write_pages(tmp_path / "s.tif", *((page, TILED) for page in order))
    with closing(open_slide(path)) as slide:
        widths = sorted((page.shape[1] for page in order), reverse=True)
        assert [level.width_px for level in slide.levels] == widths
        assert slide.other_scenes == ()


@pytest.mark.parametrize(
    ("pages", "section", "number"),
    [((SLIDE, HALF, THIRD, SIXTH), THIRD, 2), ((THIRD, SIXTH, SLIDE, HALF), THIRD, 1),
     ((THIRD, SIXTH, SLIDE), THIRD, 1), ((HALF, 255 - HALF, SLIDE), HALF, 1),
     ((SLIDE, QUARTER, THIRD), THIRD, 2)],
)  # fmt: skip
def test_a_smaller_section_of_the_proportions_of_the_slide_is_a_scene(
    tmp_path: Path, pages: tuple[np.ndarray, ...], section: np.ndarray, number: int
) -> None:
    path = write_pages(tmp_path / "s.tif", *((page, TILED) for page in pages))
    with closing(open_slide(path)) as slide:
        assert slide.levels[0].width_px == 1024
        assert section.shape[1] not in [level.width_px for level in slide.levels]
        assert number in [scene.number for scene in slide.other_scenes]
    np.testing.assert_array_equal(shown(path, number), section)


@pytest.mark.parametrize("number", [1, 2])
def test_a_section_half_as_large_of_the_same_resolution_is_no_level(
    tmp_path: Path, number: int
) -> None:
    at = {**TILED, "resolution": (20_000, 20_000), "resolutionunit": 3}
    pages = [(SLIDE, at)]
    pages.insert(number - 1, (255 - HALF, at))
    path = write_pages(tmp_path / "s.tif", *pages)
    with closing(open_slide(path)) as slide:
        assert len(slide.levels) == 1
        assert [scene.number for scene in slide.other_scenes] == [number]
    np.testing.assert_array_equal(shown(path, number), 255 - HALF)


OME_COMPANIONS = ["macro image", "Label", "label_image", "Thumbnail", "overview", "Macro #1",
                  "localizer", "slide preview"]  # fmt: skip


@pytest.mark.parametrize("is_tiled", [True, False], ids=["tiled", "in strips"])
@pytest.mark.parametrize("name", OME_COMPANIONS)
def test_companions_of_an_ome_tiff_are_known_by_name(
    tmp_path: Path, name: str, is_tiled: bool
) -> None:
    path = write_ome(tmp_path / "s.ome.tif", (SECTION, name, 6.0, is_tiled), (SLIDE, "", 0.5, True))
    with closing(open_slide(path)) as slide:
        assert (slide.levels[0].width_px, slide.other_scenes) == (1024, ())
        assert slide.associated_images == (f"{name}, 512 × 640 px",)


def two_scenes_tiff(folder: Path) -> Path:
    return write_pages(folder / "s.tif", (SECTION, TILED), (SLIDE, TILED))


def two_scenes_ome(folder: Path) -> Path:
    return write_ome(
        folder / "s.ome.tif", (PHOTO, "macro", 9.0, False), (SECTION, "left", 0.5, True),
        (SLIDE, "right", 0.5, True),
    )  # fmt: skip


def two_scenes_zarr(folder: Path) -> Path:
    path = folder / "s.zarr"
    zarr.open_group(path, mode="w", zarr_format=2, attributes={"bioformats2raw.layout": 3})
    images = [(PHOTO, "macro image", 9.0), (SECTION, "left", 0.5), (SLIDE, "right", 0.5)]
    for number, (pixels, name, mpp) in enumerate(images):
        write_zarr(path, [pixels], group=str(number), name=name, axes="cyx", mpp=(mpp, mpp))
    return path


def two_scenes_zarr_by_group(folder: Path) -> Path:
    path = folder / "s.zarr"
    for name, pixels in (("a-macro", PHOTO), ("left", SECTION), ("right", SLIDE)):
        write_zarr(path, [pixels], group=name, axes="cyx", mpp=(0.5, 0.5))
    return path


TWO_SCENES = [two_scenes_tiff, two_scenes_ome, two_scenes_zarr, two_scenes_zarr_by_group]


@pytest.mark.parametrize("write", TWO_SCENES)
def test_the_largest_of_two_scenes_is_the_slide_and_the_other_can_be_chosen(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path)
    with closing(open_slide(path)) as slide:
        assert (slide.scene, slide.levels[0].width_px) == (2, 1024)
        (other,) = slide.other_scenes
        assert (other.number, other.width_px, other.height_px) == (1, 512, 640)
    np.testing.assert_array_equal(shown(path, 1), SECTION)
    np.testing.assert_array_equal(shown(path, 2), SLIDE)
    for number in (0, 3):
        with pytest.raises(SceneError, match=f"no scene {number}; expected 1 to 2 .*1: 512 × 640"):
            open_slide(path, scene=number)


def test_scenes_of_one_size_have_to_be_chosen_as_the_message_says(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "s.tif", (SLIDE, TILED), (255 - SLIDE, TILED))
    with pytest.raises(MultiImageError, match=r"2 images of one size.*--scene 1 to --scene 2"):
        open_slide(path)
    np.testing.assert_array_equal(shown(path, 2), 255 - SLIDE)


def test_a_file_of_one_picture_has_no_second_scene(tmp_path: Path) -> None:
    for path in (write_pages(tmp_path / "s.tif", (SLIDE, TILED)), tmp_path / "s.png"):
        if path.suffix == ".png":
            from PIL import Image

            Image.fromarray(SLIDE).save(path)
        np.testing.assert_array_equal(shown(path, 1), SLIDE)
        with pytest.raises(SceneError, match="no scene 2; expected 1, the only one"):
            open_slide(path, scene=2)


@pytest.mark.parametrize(
    "text",
    ["Etikett", "Etikette 2", "Übersichtsbild 1", "image étiquette", "Makro", "Aperçu", "Miniatur",
     "Vista previa", "Миниатюра", "Макро", "标签", "概览"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_companions_are_known_in_other_languages(text: str, form: str) -> None:
    assert companion_name(unicodedata.normalize(form, text))


@pytest.mark.parametrize(
    "text",
    ["Macrophages CD68", "mapped", "unlabelled", "labels of nerves", "KRAS", "", "Makrophagen",
     "Макрофаги"],
)  # fmt: skip
def test_words_that_only_contain_a_companion_s_name_are_none(text: str) -> None:
    assert not companion_name(text)


def test_what_is_set_aside_is_never_everything() -> None:
    overview = Picture(name="Overview", width_px=4000, height_px=3000)
    flagged = Picture(name="", width_px=100, height_px=100, is_companion=True)
    for pictures in ([overview], [flagged], [flagged, overview]):
        choice = choose_scene(pictures, scene=None, where="s")
        assert choice.index == len(pictures) - 1


def test_an_untiled_picture_of_more_than_four_times_the_area_is_the_slide() -> None:
    untiled = Picture(name="", width_px=8_000, height_px=8_000, is_tiled=False)
    for side, expected in ((3_900, 0), (4_100, 1)):
        tiled = Picture(name="", width_px=side, height_px=side)
        choice = choose_scene([untiled, tiled], scene=None, where="s")
        assert choice.index == expected
        assert len(choice.other_scenes) == 1


def test_a_copy_of_fewer_and_larger_pixels_is_no_scene() -> None:
    slide = Picture(name="a #1", width_px=40_001, height_px=30_001, mpp=0.25)
    copy = Picture(name="a #2", width_px=10_000, height_px=7_500, mpp=1.0)
    other = Picture(name="b", width_px=10_000, height_px=9_000, mpp=1.0)
    choice = choose_scene([copy, slide, other], scene=None, where="s")
    assert choice.index == 1
    assert [scene.name for scene in choice.other_scenes] == ["b"]
    assert choice.associated_images == (str(copy),)


def test_a_photograph_of_the_glass_is_known_by_its_resolution() -> None:
    slide = Picture(name="", width_px=40_000, height_px=30_000, mpp=0.25)
    photo = Picture(name="", width_px=4_000, height_px=2_000, mpp=16.0)
    low_power = Picture(name="", width_px=20_000, height_px=9_000, mpp=0.5)
    choice = choose_scene([photo, slide, low_power], scene=None, where="s")
    assert (choice.index, choice.scene) == (1, 1)
    assert json.dumps([scene.number for scene in choice.other_scenes]) == "[2]"
    assert choice.associated_images == ("4,000 × 2,000 px",)


@pytest.mark.parametrize("flag", [0, 1])
def test_levels_of_an_aperio_slide_without_its_companions_are_levels(
    tmp_path: Path, flag: int
) -> None:
    path = tmp_path / "s.svs"
    text = f"Aperio Image Library v12 \r\n{SLIDE.shape[1]}x{SLIDE.shape[0]} (64x64) |MPP = 0.5"
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate((SLIDE, HALF, QUARTER)):
            file.write(
                level, photometric="rgb", tile=(64, 64), compression="jpeg", metadata=None,
                description=text, software=None, subfiletype=flag * (number > 0),
            )  # fmt: skip
    with closing(open_slide(path)) as slide:
        assert slide.reader == "tiff"
        sizes = [(level.height_px, level.width_px) for level in slide.levels]
        assert sizes == [level.shape[:2] for level in (SLIDE, HALF, QUARTER)]
        assert slide.other_scenes == ()
        assert slide.associated_images == ()


def write_ome_set(folder: Path, pictures: list[np.ndarray], *, as_channels: bool) -> list[Path]:
    """Write pictures in a file each, and in all of them the OME-XML of the whole set."""
    ids = [f"urn:uuid:00000000-0000-0000-0000-00000000000{n}" for n in range(len(pictures))]
    data = [
        f'<TiffData IFD="0" PlaneCount="1" FirstC="{n * as_channels}">'
        f'<UUID FileName="{n}.ome.tif">{ids[n]}</UUID></TiffData>'
        for n in range(len(pictures))
    ]
    samples = 1 if as_channels else 3
    images = [(pictures[0], "".join(data))] if as_channels else zip(pictures, data, strict=True)
    text = "".join(
        f'<Image ID="Image:{n}" Name="s{n}"><Pixels ID="Pixels:{n}" DimensionOrder="XYCZT" '
        f'Type="uint8" SizeX="{pixels.shape[1]}" SizeY="{pixels.shape[0]}" SizeC="3" SizeZ="1" '
        f'SizeT="1"><Channel ID="Channel:{n}:0" SamplesPerPixel="{samples}"/>{places}'
        "</Pixels></Image>"
        for n, (pixels, places) in enumerate(images)
    )
    space = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    paths = [folder / f"{n}.ome.tif" for n in range(len(pictures))]
    for path, pixels, own in zip(paths, pictures, ids, strict=True):
        tifffile.imwrite(
            path, pixels, photometric="minisblack" if as_channels else "rgb", tile=(64, 64),
            metadata=None,
            description=f'<?xml version="1.0"?><OME xmlns="{space}" UUID="{own}">{text}</OME>',
        )  # fmt: skip
    return paths


def test_channels_in_several_files_are_refused_and_not_read_from_one(tmp_path: Path) -> None:
    planes = [np.ascontiguousarray(SLIDE[..., channel]) for channel in range(3)]
    for path in write_ome_set(tmp_path, planes, as_channels=True):
        with pytest.raises(SlideError, match=r"other channels are in .\.ome\.tif, .*bfconvert"):
            open_slide(path)


def test_each_slide_of_a_set_of_ome_tiffs_is_its_own(tmp_path: Path) -> None:
    pictures = [SLIDE, np.tile(SLIDE, (2, 1, 1)), SLIDE[::2, ::2]]
    for path, pixels in zip(
        write_ome_set(tmp_path, pictures, as_channels=False), pictures, strict=True
    ):
        with closing(open_slide(path)) as slide:
            assert slide.other_scenes == ()
            assert slide.associated_images == ()
            height, width = pixels.shape[:2]
            result = slide.read(level=0, x_px=0, y_px=0, width_px=width, height_px=height)
        np.testing.assert_array_equal(result, pixels)
