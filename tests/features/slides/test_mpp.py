from __future__ import annotations

import ast
import json
import re
import struct
import unicodedata
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
import zarr
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from features.slides.backends import mpp_text
from features.slides.backends.mpp_text import mpp_in_ome, mpp_in_text, read_ome_image
from features.slides.backends.openslide_properties import mpp_in_properties
from features.slides.base import StatedMpp
from features.slides.length_units import um_per_unit
from features.slides.reader import open_slide
from features.slides.resolution import choose_mpp, resolve_mpp

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 420, 3), np.uint8)
APERIO = "Aperio Image Library v11.2.1 \r\n420x300 [0,0 420x300] (128x128) JPEG/RGB Q=70"


def write(path: Path, **options: object) -> Path:
    tile = {"photometric": "rgb", "tile": (128, 128), "metadata": None}
    tifffile.imwrite(path, PIXELS, **{**tile, **options})
    return path


def stated(path: Path) -> tuple[tuple[float, float] | None, str]:
    """Resolution that is used, and its source."""
    with closing(open_slide(path)) as slide:
        result = resolve_mpp(slide.stated_mpp, given_mpp=None, where=path)
        return (result.mpp_x, result.mpp_y), result.source


def philips(*, wsi: str = '"0.00025" "0.00024"', macro: str = '"0.01" "0.01"') -> str:
    images = "".join(
        f'<DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE">{kind}'
        f'</Attribute><Attribute Name="DICOM_PIXEL_SPACING" PMSVR="IDoubleArray">'
        f"{spacing.replace(chr(34), '&quot;')}</Attribute></DataObject>"
        for kind, spacing in (("MACROIMAGE", macro), ("WSI", wsi))
    )
    return f'<DataObject ObjectType="DPUfsImport">{images}</DataObject>'


TEXTS = {
    "Aperio": (f"{APERIO}|AppMag = 20|MPP = 0.4990", (0.499, 0.499), "stated"),
    "decimal comma": (f"{APERIO}|AppMag = 20|MPP = 0,499000", (0.499, 0.499), "stated"),
    "exponent": ("|MPP = 4.99e-1", (0.499, 0.499), "stated"),
    "of the original": ("|OriginalMPP = 0.25|Original MPP = 0.1|MPP = 0.5", (0.5, 0.5), "stated"),
    "MPPX and MPPY": ("MPPX=0.25|MPPY=0.26", (0.25, 0.26), "stated"),
    "Philips": (philips(), (0.24, 0.25), "stated"),
    "Ventana": ('<iScan Magnification="40" ScanRes="0.2325">', (0.2325, 0.2325), "stated"),
    "libvips": (
        ("<property><name>openslide.mpp-x</name><value type='string'>0.23</value></property>"
        "<property><name>openslide.mpp-y</name><value type='string'>0.24</value></property>"),
        (0.23, 0.24), "stated",
    ),
    "Akoya": ("<PixelSizeMicrons>0.4979</PixelSizeMicrons>", (0.4979, 0.4979), "stated"),
    "Micro-Manager": ('{"PixelSizeUm": 0.65}', (0.65, 0.65), "stated"),
    "Huron": ("Resolution = 0.4 um\nObjective = 20", (0.4, 0.4), "stated"),
    "nm": ("Pixel size: 250 nm", (0.25, 0.25), "stated"),
    "entity": ("pixel size x = 0.3 &#181;m", (0.3, 0.3), "stated"),
    "entity escaped twice": ("pixel size x = 0.3 &amp;#181;m", (0.3, 0.3), "stated"),
    "unit of both axes": (
        '<Image PixelSizeX="0.3" PixelSizeY="0.4" PixelSizeUnit="um"/>', (0.3, 0.4), "stated",
    ),
    "unit in JSON": ('{"pixel_size": 250, "pixel_size_unit": "nm"}', (0.25, 0.25), "stated"),
    "JSON": (json.dumps({"shape": [3], "mpp_x": 0.5, "mpp_y": 0.4}), (0.5, 0.4), "stated"),
    "list in JSON": (json.dumps({"mpp": [0.35, 0.35]}), (0.35, 0.35), "stated"),
    "pair": ("mpp = (0.35, 0.35)", (0.35, 0.35), "stated"),
    "product": ("Pixel Size = 250 x 250 nm", (0.25, 0.25), "stated"),
    "pair with its unit": ("pixelsize: (0,25, 0,25) um", (0.25, 0.25), "stated"),
    "microns/pixel": ("microns/pixel: 0.25", (0.25, 0.25), "stated"),
    "um_per_px": ("um_per_px=0.35", (0.35, 0.35), "stated"),
    "micrometres per pixel": ("Micrometres per pixel: 0,35", (0.35, 0.35), "stated"),
    "PhysicalSizeX of tifffile": (
        json.dumps({"shape": [3], "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm"}),
        (0.25, 0.25), "stated",
    ),
    "PhysicalSizeX in px": ('{"PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "pixel"}', None, ""),
    "PhysicalSizeX without a unit": ('{"PhysicalSizeX": 0.25}', (0.25, 0.25), "stated"),
    "µm/px under any name": ("Scale: 0.5 µm/pixel; field 3 mm", (0.5, 0.5), "stated"),
    "µm/px of the macro": ("Macro 8 µm/px, Original 0.1 um/px, 0.5 µm/px", (0.5, 0.5), "stated"),
    "µm/px of the macro alone": ("label: 8 µm/px", None, ""),
    "nm per px": ("250 nm per px", (0.25, 0.25), "stated"),
    "Mirax": ("A.MICROMETER_PER_PIXEL_X = 0.23\nA.MICROMETER_PER_PIXEL_Y = 0.24", (0.23, 0.24),
              "stated"),
    "finest of several": ("L1.MPP = 1.0\nL0.MPP = 0.25", (0.25, 0.25), "stated"),
    "Zeiss": ('<Distance Id="X"><Value>2.2e-07</Value></Distance>', (0.22, 0.22), "stated"),
    "MetaXpress": (
        ('<prop id="spatial-calibration-x" type="float" value="0.5"/>'
        '<prop id="spatial-calibration-units" type="string" value="um"/>'),
        (0.5, 0.5), "stated",
    ),
    "20x": (f"{APERIO}|AppMag = 20", (0.5, 0.5), "derived"),
    "40x": ("Objective Power=40;JPEG Quality=80", (0.25, 0.25), "derived"),
    "10x": ("<Objective>10x</Objective>", (1.0, 1.0), "derived"),
    "20,0": ("|AppMag = 20,0|", (0.5, 0.5), "derived"),
    "objective by name": ("Objective = Plan-Apochromat 20x/0.8 M27", (0.5, 0.5), "derived"),
    "no objective": ("|Objective = none|", None, ""),
    "no objective, but a magnification": ("|Objective = none|AppMag = 20", (0.5, 0.5), "derived"),
    "name of the objective": ("ObjectiveName=Plan Apo\nMagnification=20", (0.5, 0.5), "derived"),
    "magnification of 0": ("Magnification = 0;Objective = 20", (0.5, 0.5), "derived"),
    "scanned at": ("H&E, scanned at 20x, 2019", (0.5, 0.5), "derived"),
    "20x objective": ("Macro scanned at 1x; slide with a 20x objective", (0.5, 0.5), "derived"),
    "magnification without a sign": ("Magnification 40X", (0.25, 0.25), "derived"),
    "adapter": ("Camera adapter 0.63x lens; scanned at 40x", (0.25, 0.25), "derived"),
    "adapter by objective": ("0.63x objective", None, ""),
    "number of scans": ("3 x scan of each, 2 x objectives", None, ""),
    "aim": ("Objetivo: 20 pacientes", None, ""),
    "increase": ("Aumento: 20 células", None, ""),
    "objective without a sign": ("Objetivo: 20", (0.5, 0.5), "derived"),
    "several in words": ("Scanned at 40x; read with a 20x objective", None, ""),
    "one in words twice": ("Scanned at 20x with a 20x objective", (0.5, 0.5), "derived"),
    "products": ("scan at 20x20 fields, a 20 x 20 scan", None, ""),
    "speed": ("0.5 mm/s, 20 frames/pixel", None, ""),
    "px per µm": ("Resolution: 4 pixels per um", (0.25, 0.25), "stated"),
    "px/µm": ("4 px/µm", (0.25, 0.25), "stated"),
    "1 µm is": ("1 µm = 4 px", (0.25, 0.25), "stated"),
    "0.1 µm is": ("0.1 µm = 4 px, 0.1 px = 5 µm", None, ""),
    "unit in the tag": ('<PixelSizeX Unit="nm">250</PixelSizeX>', (0.25, 0.25), "stated"),
    "unit in braces": ('{"pixelSize": {"value": 0.25, "unit": "um"}}', (0.25, 0.25), "stated"),
    "axes and unit in braces": (
        '{"resolution": {"x": 250, "y": 250, "unit": "nm"}}', (0.25, 0.25), "stated",
    ),
    "unit behind": ("pixelWidth=0.25 unit=um", (0.25, 0.25), "stated"),
    "bits, and a unit of others": ("Resolution = 8 bit, stage unit = um", None, ""),
    "px per inch with a unit": ('{"resolution": 300, "unit": "inch"}', None, ""),
    "large_image": ('{"magnification": 20, "mm_x": 0.0005, "mm_y": 5e-4}', (0.5, 0.5), "stated"),
    "large_image with a resolution": ('{"mm_x": 0.00025, "mm_y": 2.5e-4, "mpp": 0.5}', (0.5, 0.5),
                                      "stated"),
    "large_image of the macro": ('{"macro": {"mm_x": 0.008, "mm_y": 0.008}}', None, ""),
    "place of the stage": ('{"stage_mm_x": 0.005, "stage_mm_y": 0.005}', None, ""),
    "ScanResolution": ("ScanResolution: 0.2325 um", (0.2325, 0.2325), "stated"),
    "camera with a colon": ("Camera: pixel size 6.5 um", None, ""),
    "camera in German": ("Kamera-Pixelgröße: 3,45 µm; Objektiv: 20x", (0.5, 0.5), "derived"),
    "overview in German": ("Übersicht: MPP = 8,0; MPP = 0,5", (0.5, 0.5), "stated"),
    "label in French": ("Étiquette : 8 µm/px", None, ""),
    "thumbnail in Chinese": ("缩略图：像素大小：8 微米", None, ""),
    "camera with a colon and equals": (
        "Camera: pixel size = 6.5 um; Objective: 20x", (0.5, 0.5), "derived",
    ),
    "px per cm": ("40000 pixels per cm", (0.25, 0.25), "stated"),
    "PixelsPerMicron": ("PixelsPerMicron=4", (0.25, 0.25), "stated"),
    "px per line": ("46000 pixels per line, 24 px per row", None, ""),
    "no px per µm": ("0 px/um", None, ""),
    "um per px before a magnification": ("0.35 um per px 40x", (0.35, 0.35), "stated"),
    "unit first": ("um/px = 0.35", (0.35, 0.35), "stated"),
    "unit in the name": ("Resolution (µm/pixel): 0,35", (0.35, 0.35), "stated"),
    "unit first, without a sign": ("microns per pixel 0.35", (0.35, 0.35), "stated"),
    "1 px is": ("1 pixel = 0.35 µm", (0.35, 0.35), "stated"),
    "to the power of -1": ("0.35 µm·px⁻¹", (0.35, 0.35), "stated"),
    "to the power of -1 in ASCII": ("0.35 um px^-1", (0.35, 0.35), "stated"),
    "both axes": ("0.35 x 0.36 um/px", (0.35, 0.36), "stated"),
    "pixel size in words": ("The pixel size is 0.35 um.", (0.35, 0.35), "stated"),
    "of the macro only": ("macro image: 12 um/px", None, ""),
    "of macro and slide": ("macro 0.3 um/px; 0.5 um/px", (0.5, 0.5), "stated"),
    "no px": ("sections of 4 um, 256 um per row", None, ""),
    "without a unit": ("Resolution = 300", None, ""),
    "aim in English": ("Objective: 20 patients", None, ""),
    "aim in words": ("Study objective: predict recurrence in 20 patients", None, ""),
    "aim in years": ("Objective: 5-year survival; Objective lens: 40x", (0.25, 0.25), "derived"),
    "aims with numbers behind words": ("Objective: grade 4, stage 5", None, ""),
    "aim with a grade": ("Objetivo: estadio 10", None, ""),
    "position in the turret": ("Objective: position 5", None, ""),
    "kind of lens before the number": ("Objective: N PLAN 20", (0.5, 0.5), "derived"),
    "maker of the lens": ("Objective = Nikon Plan Apo 20/0.75", (0.5, 0.5), "derived"),
    "share": ("Objective: 40% of tumours", None, ""),
    "field of view": ("Magnification: 20 mm field", None, ""),
    "range": ("Magnification: 20-40", None, ""),
    "several in a field": ("Objective: compare 20x and 40x", None, ""),
    "place in the turret": ("Objective: 2", None, ""),
    "aperture": ("Objective: NA 0.75", None, ""),
    "aperture beside": ("Objective = 20/0.75", (0.5, 0.5), "derived"),
    "medium": ("Objective: 40 oil", (0.25, 0.25), "derived"),
    "kind of lens": ("Objective: 20 Plan Apo", (0.5, 0.5), "derived"),
    "through the eyepieces": ("Magnification: 200x (20x objective)", (0.5, 0.5), "derived"),
    "sign first": ("Objective: x40", (0.25, 0.25), "derived"),
    "sign first in words": ("at x20 magnification", (0.5, 0.5), "derived"),
    "short names": ("Obj. 20x, H&E", (0.5, 0.5), "derived"),
    "of the camera": ("Camera pixel size: 6.5 um; Objective: 20x", (0.5, 0.5), "derived"),
    "of the sensor": ("Sensor pixel size 5.5 um; Pixel size: 0.25 um", (0.25, 0.25), "stated"),
    "of the detector": ("detector pixels 6.5 um/px", None, ""),
    "parted by one blank": ("Camera: CCD MPP=0.25", None, ""),
    "parted by one blank from a mode": ("Mode: tile MPP=0.25", None, ""),
    "parted by one blank from a patch": ("Level: patch MPP=1.0", None, ""),
    "pixels of a chip after one blank": ("Camera: CCD pixel size=6.5 um", None, ""),
    "of the thumbnail": ("thumb_mpp=8|preview mpp = 16", None, ""),
    "of sections": ("section spacing: 4 um; axial resolution: 2 um", None, ""),
    "between sections": ("spacing: 5 um between sections|z-spacing: 1 um", None, ""),
    "apart": ("spacing: 4 µm (apart); spacing: 0.5 um", (0.5, 0.5), "stated"),
    "of the optics": ("lateral resolution: 0.3 um, Optical resolution = 0.4 um", None, ""),
    "of the optics in px": ("optical resolution: 0.5 um/px", (0.5, 0.5), "stated"),
    "lateral size of pixels": ("lateral pixel size: 0.5 um", (0.5, 0.5), "stated"),
    "of the stage": ("XY stage resolution: 0.1 um; resolution: 0.5 um", (0.5, 0.5), "stated"),
    "of patches": ("patch_mpp=1.0|target mpp: 0.2|mpp = 0.5", (0.5, 0.5), "stated"),
    "of a mask": ("mask resolution: 8 um", None, ""),
    "of the scan": ("scan resolution: 0.5 um", (0.5, 0.5), "stated"),
    "of the macro in JSON": ('{"macro": {"mpp": 8.0}, "mpp": 0.5}', (0.5, 0.5), "stated"),
    "axes in JSON": ('{"mpp": {"x": 0.5, "y": 0.5}}', (0.5, 0.5), "stated"),
    "each px": ("each pixel is 0.35 um", (0.35, 0.35), "stated"),
    "other words": ("Lamp = 5|Stamp = 0.5|compressor: 3", None, ""),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected", "kind"), TEXTS.values(), ids=TEXTS)
def test_descriptions_of_scanners_and_converters_are_understood(
    text: str, expected: tuple[float, float] | None, kind: str
) -> None:
    result, _ = choose_mpp(mpp_in_text(text))
    assert (result and (result.x, result.y)) == (expected and pytest.approx(expected))
    assert (result.kind if result else "") == kind


@pytest.mark.parametrize(
    "part", ['<Item Resolution="12"/>', "a 20x objective, "], ids=["sizes", "words"]
)
def test_a_text_with_many_fields_is_searched_once(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched_chars: list[int] = []

    def watch(function: Callable[..., Any], text: str, *rest: str) -> Any:
        searched_chars.append(len(text))
        return function(text, *rest)

    for name in ("_unit_beside", "_is_of_other_image"):
        monkeypatch.setattr(mpp_text, name, partial(watch, getattr(mpp_text, name)))
    text = 500 * part
    assert len(list(mpp_in_text(text))) <= 1
    assert 0 < sum(searched_chars) < 10 * len(text) + 500 * 200


@pytest.mark.parametrize("value", ["0", "0.0", "-0.5", "nan", "1e9", "inf", "0,00"])
def test_an_absurd_value_gives_way_to_the_next_place_with_a_warning(value: str) -> None:
    result, warnings = choose_mpp(mpp_in_text(f"|MPP = {value}|AppMag = 20"))
    assert result is not None
    assert (result.x, result.kind) == (0.5, "derived")
    assert len(warnings) == 1
    assert "in MPP is not used: expected 0.05 to 20" in warnings[0]


@pytest.mark.parametrize(
    ("text", "field"),
    [("resolution: 15 um; pixel size: 0.5 um", "pixel size"), ("um/px = 1|MPP = 0.5", "MPP"),
     ("MPP = 0|mpp = 0.5", "mpp"), ("Pixel size: 0.5 um, spacing: 4 um", "Pixel size")],
)  # fmt: skip
def test_the_name_is_that_of_the_value_that_is_used(text: str, field: str) -> None:
    result, warnings = choose_mpp(mpp_in_text(text))
    assert result is not None
    assert (result.x, result.field, warnings) == (0.5, field, ())


def test_a_resolution_that_contradicts_the_magnification_is_warned_of() -> None:
    _, warnings = choose_mpp(mpp_in_text("|MPP = 1.0|AppMag = 20"))
    assert warnings == ("1 µm/px in MPP does not fit AppMag, 20x: expected about 0.5",)
    for magnification in (20, 0):  # no magnification is 0, and contradicts nothing
        assert choose_mpp(mpp_in_text(f"|MPP = 0.5|AppMag = {magnification}"))[1] == ()


UNITS = {
    "nm": 1e-3, "NM": 1e-3, "µm": 1, "μm": 1, "um": 1, "micron": 1, "microns": 1,
    "\\u00B5m": 1, "Âµm": 1, "�m": 1, "Î¼m": 1, "micrometer": 1, "micrometre": 1, "mm": 1e3,
    "cm": 1e4, "millimeter": 1e3, "m": 1e6, "Å": 1e-4, "angstrom": 1e-4, "inch": 25_400,
    "in": 25_400, "pt": 25_400 / 72, "pixel": None, "reference frame": None, "": None,
    "parsec": None, None: None,
}  # fmt: skip


@pytest.mark.parametrize(("name", "um"), UNITS.items())
def test_units_of_length_in_all_spellings(name: str | None, um: float | None) -> None:
    assert um_per_unit(name) == (um and pytest.approx(um))


OME = {
    "default unit": ('PhysicalSizeX="0.25" PhysicalSizeY="0.26"', (0.25, 0.26)),
    "nm": ('PhysicalSizeX="250" PhysicalSizeXUnit="nm"', (0.25, 0.25)),
    "mm and cm": (
        (
            'PhysicalSizeX="0.00025" PhysicalSizeXUnit="mm" '
            'PhysicalSizeY="0.00005" PhysicalSizeYUnit="cm"'
        ),
        (0.25, 0.5),
    ),
    "entity": ("PhysicalSizeX='0.5' PhysicalSizeXUnit='&#181;m'", (0.5, 0.5)),
    "hexadecimal entity": ('PhysicalSizeX="0.5" PhysicalSizeXUnit="&#xB5;m"', (0.5, 0.5)),
    "greek": ('PhysicalSizeX="0.5" PhysicalSizeXUnit="μm"', (0.5, 0.5)),
    "pixel": ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel"', None),
    "reference frame": ('PhysicalSizeX="1" PhysicalSizeXUnit="reference frame"', None),
    "none": ("", None),
}


@pytest.mark.parametrize(("attributes", "expected"), OME.values(), ids=OME)
def test_sizes_of_ome_xml_are_those_of_the_image_in_the_unit_stated(
    attributes: str, expected: tuple[float, float] | None
) -> None:
    ome = (
        '<OME><Image Name="macro"><Pixels SizeX="40" SizeY="30" PhysicalSizeX="6"/></Image>'
        f'<Image Name="slide"><Pixels SizeX="420" SizeY="300" {attributes}/></Image></OME>'
    )
    pixels, _ = read_ome_image(ome, width_px=420, height_px=300)
    assert pixels
    result, _ = choose_mpp(mpp_in_ome(pixels))
    assert (result and (result.x, result.y)) == (expected and pytest.approx(expected))
    assert read_ome_image(ome, width_px=421, height_px=300) == ({}, ())


def test_of_two_images_of_one_size_the_name_decides_and_its_objective_is_the_last_resort() -> None:
    ome = (
        '<OME><Instrument><Objective ID="O:0" NominalMagnification="40"/>'
        '<Objective ID="O:1" NominalMagnification="20"/></Instrument>'
        '<Image ID="I:0" Name="a"><Pixels SizeX="9" SizeY="9" PhysicalSizeX="0.1"/></Image>'
        '<Image ID="I:1" Name="b"><ObjectiveSettings ID="O:1"/><Pixels SizeX="9" SizeY="9"/>'
        "</Image></OME>"
    )
    result, _ = choose_mpp(mpp_in_ome(read_ome_image(ome, width_px=9, height_px=9, name="b")[0]))
    assert result is not None
    assert (result.x, result.kind) == (0.5, "derived")


@pytest.mark.parametrize(
    ("unit", "per_unit", "expected"),
    [
        ("um", 2, 0.5), ("micron", 2, 0.5), ("\\u00B5m", 2, 0.5), ("mm", 2000, 0.5),
        ("cm", 20_000, 0.5), ("inch", 50_800, 0.5), ("nm", 0.002, 0.5), ("pixel", 2, None),
    ],
)  # fmt: skip
def test_imagej_names_the_unit_of_the_resolution_tags(
    tmp_path: Path, unit: str, per_unit: float, expected: float | None
) -> None:
    tifffile.imwrite(
        tmp_path / "s.tif", PIXELS, imagej=True, resolution=(per_unit, per_unit),
        metadata={"unit": unit, "axes": "YXS"},
    )  # fmt: skip
    mpp, source = stated(tmp_path / "s.tif")
    assert (mpp[0], source) == (
        (pytest.approx(expected), "file") if expected else (0.25, "assumed")
    )


@pytest.mark.parametrize(
    ("kind", "packed"),
    [(4, struct.pack("<I", 20_000)), (11, struct.pack("<f", 2e4)), (12, struct.pack("<d", 2e4))],
)
def test_resolution_tags_may_be_plain_numbers(tmp_path: Path, kind: int, packed: bytes) -> None:
    path = write(tmp_path / "s.tif", resolution=(20_000, 20_000), resolutionunit=3)
    with tifffile.TiffFile(path) as file:
        tags = [file.pages[0].tags[f"{axis}Resolution"] for axis in "XY"]
    with path.open("r+b") as file:
        for tag in tags:
            file.seek(tag.offset + 2)
            file.write(struct.pack("<H", kind))
            file.seek(tag.valueoffset if kind == 12 else tag.offset + 8)
            file.write(packed)
    assert stated(path) == ((pytest.approx(0.5), pytest.approx(0.5)), "file")


def without_tag(path: Path, code: int) -> Path:
    """Remove a tag of the first directory of a classic little-endian TIFF."""
    data = bytearray(path.read_bytes())
    (offset,) = struct.unpack_from("<I", data, 4)
    (n_tags,) = struct.unpack_from("<H", data, offset)
    end = offset + 2 + 12 * n_tags
    tags = [bytes(data[at : at + 12]) for at in range(offset + 2, end, 12)]
    kept = [tag for tag in tags if struct.unpack_from("<H", tag)[0] != code]
    rest = struct.pack("<H", len(kept)) + b"".join(kept) + bytes(data[end : end + 4])
    data[offset : offset + len(rest)] = rest
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resolution": (20_000, 40_000), "resolutionunit": 3}, (0.5, 0.25)),
        ({"resolution": (50_800, 50_800), "resolutionunit": 2}, (0.5, 0.5)),
        ({"resolution": (2, 2), "resolutionunit": 1}, None),
        ({"resolution": (72, 72), "resolutionunit": 2}, None),
        ({"resolution": (96, 96), "resolutionunit": 2}, None),
        ({"resolution": (10, 10), "resolutionunit": 3}, None),
        ({"resolution": (2e9, 2e9), "resolutionunit": 3}, None),
    ],
)
def test_resolution_tags_are_used_where_plausible(
    tmp_path: Path, options: dict[str, object], expected: tuple[float, float] | None
) -> None:
    mpp, source = stated(write(tmp_path / "s.tif", **options))
    assert (mpp, source) == (
        (pytest.approx(expected), "file") if expected else ((0.25, 0.25), "assumed")
    )


def test_without_a_unit_resolution_tags_count_per_inch(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tif", resolution=(50_800, 50_800), resolutionunit=2)
    assert stated(without_tag(path, 296)) == ((pytest.approx(0.5), pytest.approx(0.5)), "file")
    path = write(tmp_path / "t.tif", resolution=(50_800, 25_400), resolutionunit=2)
    assert stated(without_tag(path, 283)) == ((pytest.approx(0.5), pytest.approx(0.5)), "file")


@pytest.mark.parametrize(
    ("text", "mpp", "source"),
    [
        ("|AppMag = 20|MPP = 0,4990", 0.499, "file"),
        ("|User = Jérôme|MPP = 0.4990", 0.499, "file"),
        ("|Prüfer = 7|MPP = 0.4990", 0.499, "file"),
        ("|AppMag = 40|MPP = 0", 0.25, "derived"),
        ("|AppMag = 10", 1.0, "derived"),
        ("|Filename = x", 0.25, "assumed"),
    ],
)
def test_a_vendors_slide_has_the_resolution_that_openslide_or_its_own_fields_state(
    tmp_path: Path, text: str, mpp: float, source: str
) -> None:
    path = write(tmp_path / "s.svs", description=(APERIO + text).encode("latin1"), software=None)
    assert openslide.OpenSlide.detect_format(path) == "aperio"
    result = stated(path)
    assert (result[0][0], result[1]) == (pytest.approx(mpp), source)
    with closing(open_slide(path)) as slide:
        assert slide.reader == "tiff"  # it agrees with OpenSlide, and is faster


def test_a_slide_whose_levels_openslide_places_otherwise_is_left_to_it(tmp_path: Path) -> None:
    text = "Background Color=E6E6E6;Objective Power=20;JPEG Quality=80;OverlapsXY= 64 64"
    path = write(
        tmp_path / "trestle.tif", software="MedScan", description=text, compression="jpeg",
    )  # fmt: skip
    with closing(open_slide(path)) as slide, openslide.OpenSlide(path) as handle:
        assert slide.reader == "openslide"
        sizes = tuple((level.width_px, level.height_px) for level in slide.levels)
        assert sizes == handle.level_dimensions


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"openslide.vendor": "x", "openslide.mpp-x": "0.23", "openslide.mpp-y": "0.24"},
         (0.23, 0.24, "stated")),
        ({"openslide.mpp-x": "0.23"}, (0.23, 0.23, "stated")),
        ({"openslide.mpp-x": "0", "openslide.mpp-y": "0", "aperio.MPP": "0,25"},
         (0.25, 0.25, "stated")),
        ({"dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[0]":
          "0.0005",
          "dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[1]":
          "0.00025"}, (0.25, 0.5, "stated")),
        ({"dicom.ImagedVolumeWidth": "10", "dicom.ImagedVolumeHeight": "5",
          "dicom.TotalPixelMatrixColumns": "40000", "dicom.TotalPixelMatrixRows": "10000"},
         (0.25, 0.5, "stated")),
        ({"ventana.ScanRes": "0.2325", "ventana.Magnification": "40"}, (0.2325, 0.2325, "stated")),
        ({"mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X": "0.23",
          "mirax.LAYER_0_LEVEL_1_SECTION.MICROMETER_PER_PIXEL_X": "0.46"}, (0.23, 0.23, "stated")),
        ({"hamamatsu.SourceLens": "20"}, (0.5, 0.5, "derived")),
        ({"dicom.OpticalPathSequence[0].ObjectiveLensPower": "40"}, (0.25, 0.25, "derived")),
        ({"openslide.objective-power": "40"}, (0.25, 0.25, "derived")),
    ],
)  # fmt: skip
def test_properties_of_openslide_are_searched_beyond_its_own_resolution(
    properties: dict[str, str], expected: tuple[float, float, str]
) -> None:
    result, _ = choose_mpp(mpp_in_properties(properties))
    assert result is not None
    assert (result.x, result.y, result.kind) == (*map(pytest.approx, expected[:2]), expected[2])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("s.png", {"dpi": (50_800, 50_800)}, ((0.5, 0.5), "file")),
        ("s.png", {"dpi": (72, 72)}, ((0.25, 0.25), "assumed")),
        ("s.jpg", {"dpi": (50_800, 25_400)}, ((0.5, 1.0), "file")),
        ("s.jpg", {}, ((0.25, 0.25), "assumed")),
        ("s.jpg", {"comment": b"MPP = 0.4"}, ((0.4, 0.4), "file")),
    ],
)
def test_plain_images_state_their_density_or_a_comment(
    tmp_path: Path, name: str, options: dict[str, object], expected: tuple[object, str]
) -> None:
    Image.fromarray(PIXELS).save(tmp_path / name, **options)
    mpp, source = stated(tmp_path / name)
    assert (mpp, source) == (pytest.approx(expected[0], rel=1e-3), expected[1])


def test_a_png_keeps_the_properties_that_libvips_copied(tmp_path: Path) -> None:
    notes = PngInfo()
    notes.add_text("openslide.mpp-x", "openslide.mpp-x = 0.23")
    Image.fromarray(PIXELS).save(tmp_path / "s.png", pnginfo=notes)
    assert stated(tmp_path / "s.png") == ((0.23, 0.23), "file")


def write_zarr(path: Path, image: dict[str, object], *, ome_xml: str = "") -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    array = group.create_array("0", shape=(3, 300, 420), chunks=(3, 128, 128), dtype="u1")
    array[:] = np.moveaxis(PIXELS, -1, 0)
    group.attrs["multiscales"] = [{"datasets": [{"path": "0"}], **image}]
    if ome_xml:
        (path / "OME").mkdir()
        (path / "OME" / "METADATA.ome.xml").write_text(ome_xml)
    return path


def axes(unit: str | None, other: str | None = None) -> list[dict[str, str]]:
    space = [{"name": name, "type": "space"} for name in "yx"]
    for axis, one in zip(space, (other or unit, unit), strict=True):
        if one is not None:
            axis["unit"] = one
    return [{"name": "c", "type": "channel"}, *space]


@pytest.mark.parametrize(
    ("unit", "other", "scale", "expected"),
    [
        ("micrometer", None, (0.5, 0.25), (0.25, 0.5)),
        ("nanometer", "millimeter", (0.0005, 250), (0.25, 0.5)),
        ("centimeter", None, (0.00005, 0.00005), (0.5, 0.5)),
        ("µm", None, (0.5, 0.5), (0.5, 0.5)),
        ("angstrom", None, (5000, 5000), (0.5, 0.5)),
        ("inch", None, (0.5 / 25_400, 0.5 / 25_400), (0.5, 0.5)),
        ("pixel", None, (1, 1), None),
        (None, None, (0.5, 0.5), None),
        ("micrometer", None, (0, 0), None),
    ],
)
def test_units_of_ngff_apply_to_the_product_of_both_kinds_of_scale(
    tmp_path: Path, unit: str | None, other: str | None, scale: tuple[float, float],
    expected: tuple[float, float] | None,
) -> None:  # fmt: skip
    image = {
        "axes": axes(unit, other),
        "coordinateTransformations": [{"type": "scale", "scale": [1, 0.5, 0.5]}],
        "datasets": [
            {
                "path": "0",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1, 2 * scale[0], 2 * scale[1]]},
                    {"type": "translation", "translation": [0, 9, 9]},
                ],
            }
        ],
    }
    mpp, source = stated(write_zarr(tmp_path / "s.zarr", image))
    assert (mpp, source) == (
        (pytest.approx(expected), "file") if expected else ((0.25, 0.25), "assumed")
    )


def test_where_multiscales_has_no_unit_the_ome_xml_beside_it_counts(tmp_path: Path) -> None:
    ome = '<OME><Image><Pixels SizeX="420" SizeY="300" PhysicalSizeX="0.23"/></Image></OME>'
    path = write_zarr(tmp_path / "s.zarr", {"axes": axes(None)}, ome_xml=ome)
    assert stated(path) == ((0.23, 0.23), "file")
    (path / "OME" / "METADATA.ome.xml").write_bytes(b"\xff<OME")
    assert stated(path)[1] == "assumed"


@pytest.mark.parametrize(
    ("text", "mpp"),
    [
        # of a zoom, a tube lens, an adapter or an eyepiece
        ("Digital Mag: 1.0\nObjective: 20", 0.5),
        ("Tube lens=1.6x\nObjective=20x", 0.5),
        ("C-mount mag = 0.5x; objective = 20x", 0.5),
        ("Digital mag = 2|Objective = 20", 0.5),
        ("Camera adapter magnification: 1.6; Objective magnification: 20", 0.5),
        ("Optovar Magnification: 1.6\nNominalMagnification: 10", 1.0),
        ('{"tube_lens_magnification": 1.6, "objective_magnification": 20}', 0.5),
        ("Objective: 20 Ocular magnification: 10", 0.5),
        ("Objective: 20x, eyepiece 10x", 0.5),
        ("Objective: 20 Exposure time: 30 ms", 0.5),
        ("Objective: Nikon Plan Apo, Mag: 20x, NA: 0.75", 0.5),
        ("Digital magnification 5x, objective 20x", 0.5),
        ("Axio Zoom objective: 20x", 0.5),
        ("Axio Zoom scanned at 20x", 0.5),
        ("Mode: digital AppMag = 20", 0.5),
        ("Camera: CCD Objective: 20", 0.5),
        ("Camera objective: 5x", None),
        ("Mag: 10|Objective: 20", 0.5),
        *((f"{of} {name}: 5x", None) for name in ("Mag", "Lens", "magnification") for of in (
            "Digital", "Zoom", "Tube", "Camera", "C-mount", "Adapter", "Eyepiece", "Ocular",
            "Intermediate", "Relay", "Optovar")),
        ("Zoom Mag: 5", None),
        ("Mag: 1.0x", None),
        ("Lens: 2x", None),
        ("Mag: 20x", 0.5),
        # of a word that ends the line, or the field, before
        ("ScanMode=Line\nMPP=0.25", 0.25),
        ("ScanMode: line\npixel size = 0.25 um", 0.25),
        ("Type: section\nPixelSize = 0.25 um", 0.25),
        ("Associated images: label, macro\nMPP = 0.25", 0.25),
        ("Scanned label\nMPP=0.25", 0.25),
        ("thumbnail\nmpp = 0.25", 0.25),
        ("thumbnail\r\nmpp = 0.25", 0.25),
        ("mode=line MPP=0.25", 0.25),
        ("optical\nresolution = 0.25 um", 0.25),
        ("digital\nmag = 40", 0.25),
        ('<image label="" mpp="0.25"/>', 0.25),
        ("label= mpp=0.25", 0.25),
        ('{"macro": {\n "mpp": 8.0}, "mpp": 0.25}', 0.25),
        ("line spacing: 4 um, step resolution: 2 um", None),
        # before numbers of other things
        ("Magnification=20,gain=5 dB", 0.5),
        ("Magnification: 20, Exposure: 30 ms", 0.5),
        ("magnification=20, tile=256 px", 0.5),
        ("Objective: 20/0.80, 5 um steps", 0.5),
        ("Magnification: 40 - 2019-04-05", 0.25),
        ("Magnification: 20 Scanned by X", 0.5),
        ("Objective: 20 Fluar", 0.5),
        ("Objective: Plan Apo 20 Lambda", 0.5),
        ("Objective: Nikon CFI 20 LWD", 0.5),
        ("Objective: UPLSAPO60XW", 10 / 60),
        ("Objective: XLUMPLFLN20XW", 0.5),
        ("Objective: 20XW", 0.5),
        ("Objective: Plan-Apochromat-20x", 0.5),
        # kinds of lenses before a number without a sign, and what is no lens
        *((f"{name}: {lens}", 10 / int(lens.split()[-1])) for name, lens in (
            *(("Objective", lens) for lens in (
                "Plan Apo Lambda 20", "CFI Plan Apo Lambda 20", "LMPLFLN 20", "LCPlanN 20",
                "MPlan 20", "LD A-Plan 20", "HI PLAN 20", "Zeiss LD 20", "Mitutoyo 20",
                "Pan Fluor 40", "Water dipping 40")),
            ("Lens", "Super Apochromat 20"), ("Objektiv", "Aperio 20"), ("Mag", "approx 20"))),
        *((f"Objective: {aim}", None) for aim in (
            "grade 4", "turret place 5", "no. 5", "survival after week 20", "Gleason score 6",
            "patients over the age of 40", "class 5", "clase 10")),
        # lengths that are none of the slide's pixels
        ("Scale bar 1 mm = 200 px; objective 20x", 0.5),
        ("Scale bar (length): 1 µm = 2 px; objective 20x", 0.5),
        ("Maßstab: 1 µm = 2 px; Objektiv: 20x", 0.5),
        ("Scale bar 50 µm; 4 px/µm", 0.25),
        ("1 mm = 2000 px; 1 inch = 72 px", None),
        ("macro: 3000 pixels per inch; label: 3000 dpi", None),
        ('{"mm_x": 0.015, "magnification": 20}', 0.5),
        ('{"mm_x": 15}', None),
        ('{"mm_x": 15, "mm_y": 20, "magnification": 20}', 0.5),
        ("Slide 25 mm_x = 10 mm", None),
        ("resolution: 1024, unit: um", None),
        # of the chip or a patch that is the value of a field
        ("Sensor = CCD mpp = 3.45", None),
        ("area = tile mpp=0.5", None),
        # ranges
        ("Objective: 20x-40x", None),
        ("Objective: 20x/40x", None),
        ("Magnification 20x - 40x", None),
        ("Magnification: 20x - 40x", None),
        ("Magnification: 20-40x", None),
        ("20x-40x objective", None),
        ("20-40x objective", None),
        ("Slide 3 - 20x objective", 0.5),
        ("scanned at 40x-2019", 0.25),
    ],
)  # fmt: skip
def test_words_and_numbers_beside_a_field_neither_hide_nor_replace_it(
    text: str, mpp: float | None
) -> None:
    result, warnings = choose_mpp(mpp_in_text(text))
    assert (result and result.x) == (mpp and pytest.approx(mpp))
    assert warnings == ()


ROOT = Path(__file__).parents[3]
DOCUMENTED = (ROOT / "docs/reference/slides.md").read_text(encoding="utf-8")
PLACES, FIELDS = (
    [
        [cell.strip().replace("\0", "|") for cell in row.replace("\\|", "\0").split("|")[1:-1]]
        for row in table.splitlines()[2:]
    ]
    for table in re.findall(
        r"^\| (?:place|field) \(`mil inspect` prints\).*(?:\n\|.*)+", DOCUMENTED, re.MULTILINE
    )
)


def names_in_code() -> set[str]:
    """Names of places that the readers give to a resolution; `…` for a vendor."""
    found = set()
    for path in (ROOT / "features/slides/backends").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            values: list[ast.expr] = []
            if node.func.id == "StatedMpp":
                values = [keyword.value for keyword in node.keywords if keyword.arg == "field"]
            elif node.func.id == "mpp_of_magnification":
                values = node.args[1:]
            for value in values:
                if isinstance(value, ast.JoinedStr):
                    found.add("".join(getattr(part, "value", "") if isinstance(part, ast.Constant)
                                      else "…" for part in value.values))  # fmt: skip
                elif isinstance(value, ast.Constant):
                    found.add(value.value)
    return found


def test_the_table_of_places_is_what_the_readers_look_at() -> None:
    documented = {row[0].strip("`") for row in [*PLACES, *FIELDS]}
    patterns = [
        re.compile(part, re.IGNORECASE)
        for pattern in (mpp_text._IN_UM, mpp_text._SIZE, mpp_text._OBJECTIVE)
        for part in re.split(r"\|(?![^(]*\))", pattern)
    ]
    by_pattern = {name for name in documented if any(p.fullmatch(name) for p in patterns)}
    assert documented - by_pattern == names_in_code() - by_pattern
    for part in patterns:
        assert any(part.fullmatch(name) for name in by_pattern), part.pattern


@pytest.mark.parametrize("row", FIELDS, ids=lambda row: row[0])
def test_the_example_of_each_documented_field_is_understood(row: list[str]) -> None:
    name, example = row[0].strip("`"), row[3].strip("`")
    found = [stated for stated in mpp_in_text(example) if (stated.x, stated.y) == (0.5, 0.5)]
    letters = re.sub("[^a-z]", "", name.lower())
    assert any(letters in re.sub("[^a-z]", "", stated.field.lower()) for stated in found), found


@pytest.mark.parametrize(
    "text",
    ["0,5 µm pro Pixel", "0,5 micromètres par pixel", "Mikrometer pro Pixel = 0,5",
     "Pixelgroesse = 0.5 µm", "Taille de pixel: 0,5 µm", "dpi: 50800", "Resolution = 50800 ppi",
     "50800 pixels per inch", "PixelsPerInch=50800",
     "Tamaño de los píxeles = 0.5 micras", "0,5 micras por píxel", "0,5 micrómetros por píxel",
     "2 píxeles por µm", "0,0005 milímetros por píxel", "Tamanho do pixel: 0,5 micrómetros",
     "0,5 micrômetros por pixel", "Dimensioni dei pixel: 0,5 x 0,5 µm", "Tamaño de píxel 0,5 µm",
     "micrometri per pixel = 0,5", "0,5 micrometri per pixel", "1 píxel = 0,5 µm",
     "tamanho_do_pixel_um: 0.5", "Pixelgrootte: 500 nanometer", "0,5 мкм на пиксель",
     "0.5 微米/像素", "画素サイズ：500 nm", "Pikselin koko: 0,5 µm", "픽셀 크기: 0.5 µm"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_notes_in_other_languages_and_px_per_inch_are_understood(text: str, form: str) -> None:
    text = unicodedata.normalize(form, text)
    assert next((stated.x, stated.y) for stated in mpp_in_text(text)) == (0.5, 0.5)


@pytest.mark.parametrize(
    "text", ["Resolution: 96 dpi", "dpi = 72", "300 ppi", "72 pixels per inch"]
)
def test_defaults_of_printing_are_neither_used_nor_warned_of(text: str) -> None:
    stated, warnings = choose_mpp(mpp_in_text(text))
    assert stated is not None
    assert resolve_mpp(stated, given_mpp=None, where="s.tif").source == "assumed"
    assert warnings == ()


@pytest.mark.parametrize(("unit", "value"), [(4, 96), (4, 72), (5, 1)])
def test_defaults_in_other_units_are_no_resolution(tmp_path: Path, unit: int, value: int) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(
        path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", metadata=None,
        resolution=(value, value), resolutionunit=2,
    )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["ResolutionUnit"].overwrite(unit)
    with closing(open_slide(path)) as slide:
        assert slide.stated_mpp is None


def test_px_that_are_no_squares_are_warned_of() -> None:
    def warned(x: float) -> bool:
        return bool(choose_mpp([StatedMpp(x=x, y=0.5, field="f")])[1])

    assert [warned(x) for x in (0.25, 0.49, 0.5, 0.51, 1.0)] == [True, False, False, False, True]
