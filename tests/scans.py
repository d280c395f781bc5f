"""Synthetic head scans as DICOM: skull, brain, and a bleed on some slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PLANTED = "PLANTEDNAME"
"""Part of every name in every header; no output may contain it."""
BIRTH_DATE = "19010203"
SIDE_PX = 96


def paint_slice(
    rng: np.random.Generator, *, bleed: bool = False, side_px: int = SIDE_PX, hu: float = 75.0
) -> np.ndarray:
    """Return HU of one slice, shape (side_px, side_px): air, bone, brain, optional blood."""
    y, x = np.mgrid[:side_px, :side_px] / side_px - 0.5
    turn = rng.uniform(-0.3, 0.3)
    across = (x * np.cos(turn) + y * np.sin(turn)) / rng.uniform(0.36, 0.44)
    along = (y * np.cos(turn) - x * np.sin(turn)) / rng.uniform(0.40, 0.47)
    radius = np.hypot(across, along)
    values = np.full((side_px, side_px), -1000.0)
    values[radius < 1.0] = 900.0
    values[radius < 0.88] = 34.0
    values += rng.normal(0, 4, values.shape) * (radius < 1.0)
    if bleed:
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.5)
        at_x, at_y = 0.4 * far * np.cos(angle), 0.4 * far * np.sin(angle)
        size = rng.uniform(0.07, 0.11)
        values[np.hypot(x - at_x, y - at_y) < size] = hu
    return values


def dataset(values_hu: np.ndarray, **tags: Any) -> FileDataset:
    """Build a DICOM slice of these values; ``tags`` override the defaults, None removes a tag."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = tags.get("SOPInstanceUID") or generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    defaults: dict[str, Any] = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "Modality": "CT",
        "PatientName": f"{PLANTED}^Jane", "PatientBirthDate": BIRTH_DATE, "PatientID": PLANTED,
        "ReferringPhysicianName": f"{PLANTED}^Doctor", "OtherPatientNames": f"{PLANTED}^Old",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "PixelSpacing": [0.5, 0.5],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 0],
        "Rows": values_hu.shape[0], "Columns": values_hu.shape[1], "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16,
        "HighBit": 15, "PixelRepresentation": 1, "RescaleSlope": 1, "RescaleIntercept": -1024,
        "InstanceNumber": 1,
        "PixelData": (np.rint(values_hu) + 1024).astype("<i2").tobytes(),
    }  # fmt: skip
    for name, value in (defaults | tags).items():
        if value is not None:
            setattr(header, name, value)
    return header


def write_slice(path: Path, values_hu: np.ndarray, **tags: Any) -> Path:
    """Write :func:`dataset` as a file."""
    header = dataset(values_hu, **tags)
    header.save_as(path, enforce_file_format=True)
    return path


def write_frames(
    path: Path, slices: Sequence[np.ndarray], *, positions: Sequence[float] | None, **tags: Any
) -> Path:
    """Write a scan as frames of one file.

    Parameters
    ----------
    path
        The file.
    slices
        HU of each frame.
    positions
        Along z, mm; each frame then has its own intercept. None writes no groups of frames.
    tags
        As for :func:`dataset`.
    """
    intercepts = [-1024.0 - number if positions else -1024.0 for number in range(len(slices))]
    stored = [
        np.rint(values) - intercept for values, intercept in zip(slices, intercepts, strict=True)
    ]
    header = dataset(
        slices[0],
        **{
            "PixelData": np.stack(stored).astype("<i2").tobytes(),
            "NumberOfFrames": len(slices),
            **tags,
        },
    )
    if positions:
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            delattr(header, tag)
        header.RescaleIntercept = 0  # wrong unless the groups of each frame take precedence
        shared = Dataset()
        shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
        shared.PixelMeasuresSequence = [_item(PixelSpacing=[0.5, 0.5])]
        header.SharedFunctionalGroupsSequence = [shared]
        each = []
        for position, intercept in zip(positions, intercepts, strict=True):
            about = Dataset()
            about.PlanePositionSequence = [_item(ImagePositionPatient=[0, 0, position])]
            about.PixelValueTransformationSequence = [
                _item(RescaleSlope=1, RescaleIntercept=intercept)
            ]
            about.FrameContentSequence = [_item(FrameComments=f"{PLANTED} {BIRTH_DATE}")]
            each.append(about)
        header.PerFrameFunctionalGroupsSequence = each
    header.save_as(path, enforce_file_format=True)
    return path


def _item(**tags: Any) -> Dataset:
    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return item


def write_scan(
    folder: Path,
    *,
    n_slices: int,
    seed: Sequence[int] = (0,),
    bleeding: Sequence[int] = (),
    side_px: int = SIDE_PX,
    alter: Callable[[int, Dataset], None] = lambda number, header: None,
) -> Path:
    """Write a scan whose slices are ordered by position and not by file name.

    Parameters
    ----------
    folder
        Folder of the files.
    n_slices
        Slices, 5 mm apart.
    seed
        Seed of the random numbers.
    bleeding
        Indices of the slices, from 0, that hold blood.
    side_px
        Side of a slice, px.
    alter
        Called with index and header of each slice before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    names = rng.permutation(n_slices)
    study = "1.2." + ".".join(map(str, (*seed, 7)))
    for index in range(n_slices):
        header = dataset(
            paint_slice(rng, bleed=index in bleeding, side_px=side_px),
            ImagePositionPatient=[0, 0, 5 * index], InstanceNumber=n_slices - index,
            StudyInstanceUID=study, SeriesInstanceUID=f"{study}.1",
        )  # fmt: skip
        alter(index, header)
        header.save_as(folder / f"IM{names[index]:04d}.dcm", enforce_file_format=True)
    return folder


def z_position_mm(path: Path) -> float:
    """Return the position of a slice along z, mm."""
    return float(pydicom.dcmread(path).ImagePositionPatient[2])
