"""Slides of vendors written from pixels, as far as OpenSlide reads them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

__all__ = [
    "write_bif",
    "write_mrxs",
    "write_ndpi",
    "write_philips",
    "write_scn",
    "write_trestle",
    "write_vms",
]

_SLIDE_ID = "0" * 32
_LONG, _SHORT, _TEXT, _RATIONAL, _SIGNED, _FLOAT = 4, 3, 2, 5, 9, 11


def _encode(pixels: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    jpeg = {"quality": 90, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(pixels).save(stream, kind, **jpeg, **options)
    return stream.getvalue()


def write_ndpi(path: Path, levels: Sequence[np.ndarray], *, interval: int) -> list[list[int]]:
    """Write levels at 20x, finest first, and return the offsets of their restart intervals.

    ``interval`` is in blocks of 8 px, and has to divide the width of all levels of shape
    (height, width, 3).
    """
    data = bytearray(struct.pack("<4sQ", b"II*\0", 0))
    pointer_at, found = 4, []

    def put(content: bytes) -> int:
        data.extend(bytes(len(data) % 2))
        data.extend(content)
        return len(data) - len(content)

    for pixels in levels:
        height, width = pixels.shape[:2]
        stream = _encode(pixels, restart_marker_blocks=interval)
        starts = _interval_starts(stream)
        offset = put(stream)
        found.append([offset + start for start in starts])
        lens = 20 * width / levels[0].shape[1]
        (lens_bits,) = struct.unpack("<I", struct.pack("<f", lens))
        resolution = put(struct.pack("<II", round(1000 * lens), 1))
        entries = [
            (256, _LONG, 1, width), (257, _LONG, 1, height), (259, _SHORT, 1, 7),
            (262, _SHORT, 1, 6), (271, _TEXT, 10, put(b"Hamamatsu\0")), (273, _LONG, 1, offset),
            (277, _SHORT, 1, 3), (278, _LONG, 1, height), (279, _LONG, 1, len(stream)),
            (282, _RATIONAL, 1, resolution), (283, _RATIONAL, 1, resolution), (296, _SHORT, 1, 3),
            (65420, _LONG, 1, 1), (65421, _FLOAT, 1, lens_bits), (65422, _SIGNED, 1, 0),
            (65423, _SIGNED, 1, 0), (65424, _SIGNED, 1, 0),
            (65426, _LONG, len(starts), put(struct.pack(f"<{len(starts)}I", *starts))),
        ]  # fmt: skip
        directory = struct.pack("<H", len(entries)) + b"".join(
            struct.pack("<HHII", *entry) for entry in entries
        )
        # The next pointer and the upper halves of all values are behind the directory.
        at = put(directory + bytes(8 + 4 * len(entries)))
        struct.pack_into("<Q", data, pointer_at, at)
        pointer_at = at + len(directory)
    path.write_bytes(data)
    return found


def _interval_starts(stream: bytes) -> list[int]:
    """Where the restart intervals of a JPEG begin, bytes."""
    first = stream.find(b"\xff\xda")
    starts = [first + 2 + int.from_bytes(stream[first + 2 : first + 4], "big")]
    for position in range(starts[0], len(stream) - 2):
        if stream[position] == 0xFF and 0xD0 <= stream[position + 1] <= 0xD7:
            starts.append(position + 2)
    return starts


def write_vms(path: Path, pixels: np.ndarray, *, columns: int, interval: int) -> list[list[int]]:
    """Write a picture at 20x in two rows of so many files, and a map of an eighth of its side.

    Parameters
    ----------
    path
        The ``.vms`` file.
    pixels
        The picture, shape (height, width, 3) in px.
    columns, interval
        Files side by side, and blocks of 8 px in a restart interval, which divide the width.

    Returns
    -------
    list of list of int
        Where the restart intervals of each file begin, bytes, row after row of files.
    """
    parts = [part for row in np.split(pixels, 2) for part in np.split(row, columns, axis=1)]
    lines = [
        "[Virtual Microscope Specimen]", "NoLayers=1", f"NoJpegColumns={columns}", "NoJpegRows=2",
        f"MapFile={path.stem}_map.jpg", f"OptimisationFile={path.stem}.opt", "SourceLens=20",
        f"PhysicalWidth={500 * pixels.shape[1]}", f"PhysicalHeight={500 * pixels.shape[0]}",
    ]  # fmt: skip
    found, rows = [], []
    for number, part in enumerate([*parts, pixels[::8, ::8]]):
        place = f"({number % columns},{number // columns})" if number else ""
        name = f"{path.stem}{place}.jpg" if number < len(parts) else f"{path.stem}_map.jpg"
        if number < len(parts):
            lines.append(f"ImageFile{place}={name}")
        stream = _encode(np.ascontiguousarray(part), restart_marker_blocks=interval)
        path.with_name(name).write_bytes(stream)
        found.append(_interval_starts(stream))
        rows += found[-1][:: part.shape[1] // (8 * interval)]
    path.with_suffix(".opt").write_bytes(b"".join(struct.pack("<q32x", row) for row in rows[:-1]))
    path.write_text("\n".join(lines) + "\n")
    return found


def write_mrxs(
    path: Path,
    pixels: np.ndarray,
    *,
    positions: str,
    divisions: int = 2,
    overlap: int = 8,
    n_levels: int = 3,
    kind: str = "JPEG",
    tile: int = 64,
) -> list[list[tuple[list[tuple[float, float]], int, int]]]:
    """Write photographs of pixels of shape (height, width, 3), divided into images of tiles.

    Parameters
    ----------
    path
        The ``.mrxs`` file; the others are in the folder of that name.
    pixels
        The picture, shape (height, width, 3) in px.
    positions
        ``"raw"``, ``"packed"`` or ``"none"``: how places of photographs are stored.
    divisions, overlap
        Images to a side of a photograph, and px that photographs overlap.
    n_levels, kind, tile
        Number of levels, format of images (``"JPEG"`` or ``"BMP"``), and their side in px.

    Returns
    -------
    list of list of tuple
        Of each image of each level: left and top of its tiles, each of tile / 2^level px of the
        level, and its offset and bytes in the data file.
    """
    folder = path.with_suffix("")
    folder.mkdir()
    path.write_bytes(_encode(pixels[::8, ::8]))  # the scanner's preview
    step = tile * divisions - overlap
    down, across = ((side - tile * divisions) // step + 1 for side in pixels.shape[:2])
    rng = np.random.default_rng(0)
    shift = 0 if positions == "none" else 3
    places = [
        (x * step + int(rng.integers(shift + 1)), y * step + int(rng.integers(shift + 1)))
        for y in range(down) for x in range(across)
    ]  # fmt: skip
    rows, columns = down * divisions, across * divisions
    data, levels, tables = bytearray(64), [], []
    for level in range(n_levels):
        factor, images, records = 2**level, [], []
        for y in range(0, rows, factor):
            for x in range(0, columns, factor):
                corners = []
                joined = np.full((tile * factor, tile * factor, 3), 255, np.uint8)
                for row in range(y, min(y + factor, rows)):
                    for column in range(x, min(x + factor, columns)):
                        left, top = places[row // divisions * across + column // divisions]
                        left, top = left + column % divisions * tile, top + row % divisions * tile
                        corners.append((left / factor, top / factor))
                        part = pixels[top : top + tile, left : left + tile]
                        into = joined[(row - y) * tile :, (column - x) * tile :]
                        into[: part.shape[0], : part.shape[1]] = part
                means = joined.reshape(tile, factor, tile, factor, 3).mean((1, 3))
                stream = _encode(means.round().astype(np.uint8), kind)
                images.append((corners, len(data), len(stream)))
                records.append((y * columns + x, len(data), len(stream), 0))
                data += stream
        levels.append(images)
        tables.append(records)
    stored = b"".join(struct.pack("<Bii", 1, *place) for place in places)
    if positions == "packed":
        stored = zlib.compress(stored)
    index = _index(tables, (len(data), len(stored), 0))
    data += stored
    name = "StitchingIntensityLayer" if positions == "packed" else "VIMSLIDE_POSITION_BUFFER"
    names = ["Other"] if positions == "none" else ["Other", name]
    sections = {
        "GENERAL": {
            "SLIDE_VERSION": "01.02", "SLIDE_ID": _SLIDE_ID, "IMAGENUMBER_X": columns,
            "IMAGENUMBER_Y": rows, "OBJECTIVE_MAGNIFICATION": 20,
            "CameraImageDivisionsPerSide": divisions,
        },
        "HIERARCHICAL": {
            "INDEXFILE": "Index.dat", "HIER_COUNT": 1, "HIER_0_NAME": "Slide zoom level",
            "HIER_0_COUNT": n_levels, "NONHIER_COUNT": len(names),
            **{f"HIER_0_VAL_{level}_SECTION": f"LEVEL_{level}" for level in range(n_levels)},
            **{f"NONHIER_{number}_NAME": each for number, each in enumerate(names)},
            **{f"NONHIER_{number}_COUNT": 1 for number in range(len(names))},
        },
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
        **{
            f"LEVEL_{level}": {
                "OVERLAP_X": overlap / 2**level, "OVERLAP_Y": overlap / 2**level,
                "MICROMETER_PER_PIXEL_X": 0.5 * 2**level, "IMAGE_CONCAT_FACTOR": min(level, 1),
                "MICROMETER_PER_PIXEL_Y": 0.5 * 2**level, "IMAGE_FILL_COLOR_BGR": 0xFFFFFF,
                "DIGITIZER_WIDTH": tile, "DIGITIZER_HEIGHT": tile,
                "IMAGE_FORMAT": {"BMP": "BMP24"}.get(kind, kind),
            }
            for level in range(n_levels)
        },
    }  # fmt: skip
    lines = [f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
             for section, values in sections.items()]  # fmt: skip
    (folder / "Slidedat.ini").write_text("".join(lines))
    (folder / "Data0000.dat").write_bytes(data)
    (folder / "Index.dat").write_bytes(index)
    return levels


def write_scn(
    path: Path,
    areas: Sequence[tuple[int, int, Sequence[np.ndarray]]],
    *,
    side_px: int,
    tile: int,
    nm_per_px: int = 500,
) -> None:
    """Write scanned areas without resolution tags: left, top and levels of each, finest first.

    Left and top are in px of the slide, of which a side has ``side_px``; a macro image is page 0.
    """
    brightfield = (
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>"
        "<illuminationSettings><numericalAperture>0.4</numericalAperture>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>"
    )
    macro = areas[0][2][0][::8, ::8]
    images, pages = "", [macro]
    for left, top, levels in [(0, 0, [macro]), *areas]:
        extent = side_px if levels[0] is macro else levels[0].shape[1]
        down = side_px if levels[0] is macro else levels[0].shape[0]
        sizes = ""
        for number, level in enumerate(levels):
            pages += [] if level is macro else [level]
            sizes += (
                f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{number}" '
                f'ifd="{len(pages) - 1}"/>'
            )
        images += (
            f'<image><device model="Leica SCN400" version="1"/><pixels>{sizes}</pixels>'
            f'<view sizeX="{nm_per_px * extent}" sizeY="{nm_per_px * down}" '
            f'offsetX="{nm_per_px * left}" offsetY="{nm_per_px * top}"/>{brightfield}</image>'
        )
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection sizeX="{nm_per_px * side_px}" sizeY="{nm_per_px * side_px}">{images}'
        "</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, page in enumerate(pages):
            file.write(
                page, photometric="rgb", tile=(tile, tile), compression="jpeg",
                compressionargs={"level": 90}, subsampling=(1, 1), metadata=None, software=None,
                description=None if number else text,
            )  # fmt: skip


def write_trestle(
    path: Path, levels: Sequence[np.ndarray], *, overlaps: Sequence[int], tile: int
) -> None:
    """Write levels of 0.5 µm per px, finest first, from joined tiles as they are stored.

    ``overlaps`` are the px that tiles side by side have in common, one number a level.
    """
    stated = " ".join(f"{overlap} {overlap}" for overlap in overlaps)
    text = f"Background Color=E6E6E6;Objective Power=20;JPEG Quality=80;OverlapsXY= {stated}"
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            file.write(
                level, photometric="rgb", tile=(tile, tile), compression="jpeg", metadata=None,
                compressionargs={"level": 90}, subsampling=(1, 1), software="MedScan",
                resolution=(0.5, 0.5), description=None if number else text,
            )  # fmt: skip


def write_bif(
    path: Path,
    levels: Sequence[np.ndarray],
    *,
    overlaps: tuple[float, float],
    tile: int,
    areas: Sequence[tuple[int, int, int, int, float, float]] = (),
) -> None:
    """Write levels of 0.5 µm per px, each of half the size of the one before.

    Pixels are those of joined tiles as they are stored, a whole number of them in level 0;
    ``overlaps`` are the px that tiles beside and below each other have in common. ``areas`` are the
    first row and column, numbers of rows and columns, and position (x from the left, y of the lower
    edge upwards, px) of each scanned area; without them, all tiles are one at 0, 0.
    """
    whole = (0, 0, levels[0].shape[0] // tile, levels[0].shape[1] // tile, 0, 0)
    infos = origins = ""
    for index, (row, column, rows, columns, x, y) in enumerate(areas or [whole]):
        infos += (
            f'<ImageInfo AOIScanned="1" AOIIndex="{index}" NumRows="{rows}" NumCols="{columns}" '
            f'Width="{tile}" Height="{tile}" Pos-X="{x}" Pos-Y="{y}">'
            f"{_bif_joints(rows, columns, overlaps)}</ImageInfo>"
        )
        origins += f'<AOI{index} OriginX="{column * tile}" OriginY="{row * tile}"/>'
    xml = (
        f'<?xml version="1.0"?><EncodeInfo Ver="2"><SlideStitchInfo>{infos}</SlideStitchInfo>'
        f"<AoiOrigin>{origins}</AoiOrigin></EncodeInfo>"
    )
    scan = '<iScan Magnification="20" ScanRes="0.5" Z-layers="1"/>'
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        pages = [("Label Image", scan, levels[-1])]
        pages += [
            (f"level={level} mag={20 / 2**level:g} quality=90", "" if level else xml, pixels)
            for level, pixels in enumerate(levels)
        ]
        for text, packet, pixels in pages:
            file.write(
                pixels, photometric="rgb", tile=(tile, tile), compression="jpeg", metadata=None,
                compressionargs={"level": 90}, subsampling=(1, 1), software=None, description=text,
                extratags=[(700, 1, len(packet), packet.encode(), True)] if packet else [],
            )  # fmt: skip


def _bif_joints(rows: int, columns: int, overlaps: tuple[float, float]) -> str:
    """Elements on the tiles beside and below each other in an area."""

    def number(row: int, column: int) -> int:
        """Number of a tile: from the bottom up, every second row from right to left."""
        up = rows - 1 - row
        return up * columns + (columns - column if up % 2 else column + 1)

    joints = [("RIGHT", (row, column), (row, column + 1))
              for row in range(rows) for column in range(columns - 1)]  # fmt: skip
    joints += [("UP", (row + 1, column), (row, column))
               for row in range(rows - 1) for column in range(columns)]  # fmt: skip
    return "".join(
        f'<TileJointInfo FlagJoined="1" Confidence="90" Direction="{direction}" '
        f'Tile1="{number(*first)}" Tile2="{number(*second)}" '
        f'OverlapX="{overlaps[0] if direction == "RIGHT" else 0}" '
        f'OverlapY="{overlaps[1] if direction == "UP" else 0}"/>'
        for direction, first, second in joints
    )


def write_philips(path: Path, levels: Sequence[np.ndarray], *, tile: int) -> None:
    """Write levels of 500 nm per px, finest first, each of half the size of the one before."""

    def attribute(name: str, kind: str, value: str) -> str:
        return f'<Attribute Name="{name}" PMSVR="{kind}">{value}</Attribute>'

    def spacing(level: int) -> str:
        number = f"&quot;{0.0005 * 2**level}&quot;"
        return attribute("DICOM_PIXEL_SPACING", "IDoubleArray", f"{number} {number}")

    sizes = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing(level)}'
        f"{attribute('PIIM_PIXEL_DATA_REPRESENTATION_NUMBER', 'IUInt16', str(level))}</DataObject>"
        for level in range(len(levels))
    )
    image = attribute("PIM_DP_IMAGE_TYPE", "IString", "WSI") + spacing(0)
    image += attribute(
        "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", "IDataObjectArray", f"<Array>{sizes}</Array>"
    )
    images = f'<Array><DataObject ObjectType="DPScannedImage">{image}</DataObject></Array>'
    text = (
        '<?xml version="1.0" encoding="UTF-8" ?>\n<DataObject ObjectType="DPUfsImport">'
        f"{attribute('DICOM_MANUFACTURER', 'IString', 'PHILIPS')}"
        f"{attribute('PIM_DP_SCANNED_IMAGES', 'IDataObjectArray', images)}</DataObject>"
    )
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            file.write(
                level, photometric="rgb", tile=(tile, tile), compression="jpeg", metadata=None,
                compressionargs={"level": 95}, subsampling=(1, 1), subfiletype=min(number, 1),
                description=None if number else text, software=None if number else "Philips DP",
            )  # fmt: skip


def _index(
    tables: Sequence[Sequence[tuple[int, int, int, int]]], places: tuple[int, int, int]
) -> bytes:
    """``Index.dat``: number, offset, bytes and file of images by level; the latter of places."""
    index = bytearray(f"01.02{_SLIDE_ID}".encode())
    roots = len(index)
    index += bytes(8 + 4 * len(tables))
    struct.pack_into("<I", index, roots, roots + 8)
    for level, records in enumerate(tables):
        struct.pack_into("<I", index, roots + 8 + 4 * level, len(index))
        index += struct.pack("<II", 0, len(index) + 8)
        half = len(records) // 2  # two pages
        index += struct.pack("<II", half, len(index) + 8 + 16 * half)
        for number, record in enumerate(records):
            if number == half:
                index += struct.pack("<II", len(records) - half, 0)
            index += struct.pack("<IIII", *record)
    # Two records: one of no interest, and the places. Each points to a list of one page.
    record_at = len(index)
    struct.pack_into("<I", index, roots + 4, record_at)
    index += struct.pack("<4I", 0, record_at + 8, 0, record_at + 16)
    index += struct.pack("<7I", 1, 0, 0, 0, *places)
    return bytes(index)
