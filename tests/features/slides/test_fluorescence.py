"""Channels of fluorescence are refused, in every reader and with their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from features.errors import SlideError, UnsupportedFormatError
from features.slides.backends.fluorescence import (
    channel_names_in,
    check_names,
    check_ome_channels,
)
from features.slides.backends.openslide_properties import illumination_in
from features.slides.reader import open_slide
from tests.features.slides.slide_files import whole, write_zarr

PLANES = np.random.default_rng(0).integers(0, 256, (4, 256, 256), np.uint8)
REFUSED = r"channels of fluorescence \(.*{}.*expected red, green and blue of a stained slide"


def write_ome(path: Path, names: list[str], **channel: Any) -> Path:
    tifffile.imwrite(
        path, PLANES[: len(names)], photometric="minisblack", tile=(128, 128), ome=True,
        metadata={"axes": "CYX", "Channel": {"Name": names, **channel}},
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    "names",
    [["DAPI", "FITC", "Cy3"], ["Hoechst 33342", "AF488", "Alexa Fluor 647"], ["DAPI"],
     ["DAPI", "Opal 520", "CD8", "Opal Polaris 780"], ["x", "eGFP", "mCherry"],
     ["Spectrum Green", "Texas Red", "DAPI"]],
)  # fmt: skip
def test_an_ome_tiff_of_fluorescence_is_refused_by_its_names(
    tmp_path: Path, names: list[str]
) -> None:
    path = write_ome(tmp_path / "s.ome.tif", names, Color=[0xFF, 0xFF00, 0xFF0000, 0][: len(names)])
    with pytest.raises(UnsupportedFormatError, match=REFUSED.format(names[-1])):
        open_slide(path)


@pytest.mark.parametrize(
    "attributes",
    [
        {"Fluor": "FITC"},
        {"ContrastMethod": "Fluorescence"},
        {"IlluminationType": "Epifluorescence"},
    ],
)
def test_other_attributes_of_channels_say_fluorescence(attributes: dict[str, str]) -> None:
    with pytest.raises(UnsupportedFormatError, match="channels of fluorescence"):
        check_ome_channels([{"Name": "a"}, {"Name": "b", **attributes}], where="s.tif")


@pytest.mark.parametrize("n_channels", [1, 3, 5])
def test_pages_of_an_akoya_slide_of_fluorescence_are_refused(
    tmp_path: Path, n_channels: int
) -> None:
    names = ["DAPI", "Opal 520", "Opal 570", "Opal 620", "Autofluorescence"][:n_channels]
    path = tmp_path / "s.qptiff"
    with tifffile.TiffWriter(path) as file:
        for number, name in enumerate(names):
            file.write(
                PLANES[number % 4], photometric="minisblack", tile=(128, 128), metadata=None,
                software="PerkinElmer-QPI", description="<?xml version='1.0'?><PerkinElmer-QPI-"
                "ImageDescription><ImageType>FullResolution</ImageType>"
                f"<Name>{name}</Name></PerkinElmer-QPI-ImageDescription>",
            )  # fmt: skip
    with pytest.raises(SlideError, match=REFUSED.format(names[-1])):
        open_slide(path)


@pytest.mark.parametrize("n_channels", [1, 3, 4, 5])
def test_an_ome_zarr_of_fluorescence_is_refused_by_its_labels(
    tmp_path: Path, n_channels: int
) -> None:
    names = ["DAPI", "FITC", "Cy3", "Cy5", "CD45RO"][:n_channels]
    pixels = np.moveaxis(PLANES[[0] * n_channels], 0, -1)
    omero = {"channels": [{"label": name, "color": "00FF00"} for name in names]}
    write_zarr(tmp_path / "s.zarr", [pixels], axes="cyx", about={"omero": omero})
    with pytest.raises(UnsupportedFormatError, match=REFUSED.format(names[-1])):
        open_slide(tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("name", "text"),
    [("mirax.GENERAL.SLIDE_TYPE", "SLIDE_TYPE_FLUORESCENCE"), ("aperio.Dye", "DAPI"),
     ("leica.illumination-source", "fluorescence"), ("hamamatsu.FilterSet.Name", "FITC"),
     ("dicom.OpticalPathSequence[0].OpticalPathDescription", "DAPI"),
     ("dicom.OpticalPathSequence[0].IlluminationTypeCodeSequence[0].CodeMeaning",
      "Epifluorescence illumination")],
)  # fmt: skip
def test_vendors_properties_that_say_fluorescence_are_looked_at(name: str, text: str) -> None:
    with pytest.raises(UnsupportedFormatError, match="channels of fluorescence"):
        check_names(illumination_in({name: text, "mirax.x": "y"}), where="s.mrxs")
    others = {"leica.illumination-source": "brightfield", "aperio.Title": "no DAPI",
              "dicom.OpticalPathSequence[0].IlluminationTypeCodeSequence[0].CodeMeaning":
              "Brightfield illumination",
              "mirax.GENERAL.SLIDE_TYPE": "SLIDE_TYPE_BRIGHTFIELD"}  # fmt: skip
    check_names(illumination_in(others), where="s.mrxs")


@pytest.mark.parametrize(
    "names",
    [["Red", "Green", "Blue"], ["H&E"], ["TL Brightfield"], ["Channel 0", "Channel 1", ""],
     ["Haematoxylin"], ["R", "G", "B"], ["Dapictured", "Copal 520", "Cyan 3"], ["CDX"],
     ["CD8 Brightfield"], ["Ki-67 DAB", "CD163 DAB"], ["PD-L1 (22C3)"], ["Non-fluorescent"],
     ["no fluorescence"], ["Autofluorescence removed"], ["without any DAPI"],
     ["Fluorescence: none"], ["not_fluorescent", "fluorescence = no"]],
)  # fmt: skip
def test_other_names_of_channels_are_no_fluorescence(names: list[str]) -> None:
    check_names(names, where="s.tif")


@pytest.mark.parametrize(
    "name", ["DAPI, autofluorescence removed", "no DAPI, but FITC", "Opal 520 without DAPI",
             "Fluorescence no. 2", "Knot fluorescence", "fluorescence notch filter"],
)  # fmt: skip
def test_what_else_a_name_denies_takes_no_fluorophore_away(name: str) -> None:
    with pytest.raises(UnsupportedFormatError, match="channels of fluorescence"):
        check_names([name], where="s.tif")


def test_markers_in_several_channels_are_of_fluorescence() -> None:
    check_names(["CD8"], where="s.tif")
    with pytest.raises(UnsupportedFormatError, match=r"fluorescence \(CD8, CD45RO\)"):
        check_names(["CD8", "CD45RO"], where="s.tif")


@pytest.mark.parametrize("channel", [{"Name": "CD8", "ContrastMethod": "Brightfield"},
                                     {"Name": "Ki-67 DAB"}, {"Name": "af 488.svs"}])  # fmt: skip
def test_a_picture_in_colours_is_read_whatever_marker_names_it(
    tmp_path: Path, channel: dict[str, str]
) -> None:
    path, pixels = tmp_path / "s.ome.tif", np.moveaxis(PLANES[:3], 0, -1)
    tifffile.imwrite(
        path, pixels, photometric="rgb", tile=(128, 128), ome=True,
        metadata={"axes": "YXS", "Channel": {key: [text] for key, text in channel.items()}},
    )  # fmt: skip
    np.testing.assert_array_equal(whole(path), pixels)


@pytest.mark.parametrize(
    "text",
    ["grey scan of transmitted light", "D:\\CD1\\scan.tif", "AF_123", "Channel: no DAPI",
     "cherry hemangioma", "non-fluorescent", "Ki-67 of the DAPI laboratory, brightfield",
     "Filename = DAPI 3.tif", "Sample name: GFP mouse"],
)  # fmt: skip
def test_a_grey_slide_with_no_fluorophore_in_a_field_of_channels_is_read(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, PLANES[0], photometric="minisblack", tile=(128, 128), metadata=None,
                     description=text)  # fmt: skip
    np.testing.assert_array_equal(whole(path), np.repeat(PLANES[0, ..., None], 3, axis=2))


@pytest.mark.parametrize(
    "text",
    ["DAPI", '{"ChNames": ["Cy5", "GFP"]}', "Channel: FITC\nExposure: 3", "{'Labels': ['TRITC']}"],
)
def test_other_writers_fields_of_channels_are_looked_at(text: str) -> None:
    with pytest.raises(UnsupportedFormatError, match="channels of fluorescence"):
        check_names([channel_names_in(text)], where="s.tif")
