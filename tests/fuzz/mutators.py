"""Ways to spoil a healthy file: its bytes, or what a format's own structure says.

Every change is drawn from one generator, so a case comes again from its seed alone.
"""

from __future__ import annotations

import csv
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

__all__ = ["mutate"]

Mutator = Callable[[bytes, random.Random, Sequence[bytes]], bytes]

_ODD_NUMBERS = [
    0, 1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 255, 256, 511, 65_535, 65_536, 10**6, 10**9,
    2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**63 - 1, 2**63, 2**64 - 1,
]  # fmt: skip
_HOSTILE_CELLS = [
    "", " ", "NaN", "inf", "-inf", "1e309", "-1", "0", "1", "0.5", "1e-400", "9" * 400, "-0",
    "x" * 300, "../../x", "/etc/passwd", "con", ".", "..", "a\nb", "a\rb", "a\0b", "\ufeff", "é",
    "=1+1", "@SUM(A1)", "<b>", '"', '""', "'", ",", ";", "\t", "049194", "588e11", "2e3078",
    "1.0", "True", "None", "keep", "drop", "٣", "²", "\u202e", "💥",
]  # fmt: skip
_HOSTILE_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", "x" * 300, "../../x", "\0", "\ud800", [], {}, [[]],
    [None], [1, 2, 3], {"a": 1}, "NaN", "1e400",
]  # fmt: skip


def mutate(name: str, data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """A spoilt copy of a file.

    Parameters
    ----------
    name
        Its name; the suffix says what else than bytes can be changed.
    data
        What is in it.
    rng
        Decides everything.
    others
        Other healthy files of the kind, to splice with.
    """
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        own = _OF_KIND.get(_kind(name), ())
        ways = own if own and rng.random() < 0.7 else _BYTES
        data = rng.choice(ways)(data, rng, others)
    return data


def _kind(name: str) -> str:
    """Suffix of a name; the whole name of hidden files without one."""
    path = PurePath(name)
    return path.suffix.lower() or path.name


def _flip_bits(data: bytes, rng: random.Random, _others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if changed else 0):
        changed[_place(changed, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_bytes(data: bytes, rng: random.Random, _others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if changed else 0):
        changed[_place(changed, rng)] = rng.randrange(256)
    return bytes(changed)


def _odd_number(data: bytes, rng: random.Random, _others: Sequence[bytes]) -> bytes:
    """Put a number near a border in the place of another, in either byte order."""
    n_bytes = rng.choice([1, 2, 4, 8])
    number = rng.choice(_ODD_NUMBERS) % 2 ** (8 * n_bytes)
    start = _place(data, rng) // n_bytes * n_bytes
    word = number.to_bytes(n_bytes, rng.choice(["little", "big"]))
    return data[:start] + word + data[start + n_bytes :]


def _copy_word(data: bytes, rng: random.Random, _others: Sequence[bytes]) -> bytes:
    """Copy an aligned number to another place: an offset that leads where another does."""
    n_bytes = rng.choice([2, 4, 8])
    source, target = (_place(data, rng) // n_bytes * n_bytes for _ in range(2))
    return data[:target] + data[source : source + n_bytes] + data[target + n_bytes :]


def _truncate(data: bytes, rng: random.Random, _others: Sequence[bytes]) -> bytes:
    return data[: _place(data, rng)]


def _cut_out(data: bytes, rng: random.Random, _others: Sequence[bytes]) -> bytes:
    start = _place(data, rng)
    return data[:start] + data[start + rng.randint(1, 64) :]


def _repeat(data: bytes, rng: random.Random, _others: Sequence[bytes]) -> bytes:
    start = _place(data, rng)
    part = data[start : start + rng.randint(1, 64)]
    return data[:start] + part * rng.randint(1, 16) + data[start:]


def _fill(data: bytes, rng: random.Random, _others: Sequence[bytes]) -> bytes:
    start, n_bytes = _place(data, rng), rng.randint(1, 256)
    return data[:start] + rng.choice([b"\0", b"\xff"]) * n_bytes + data[start + n_bytes :]


def _splice(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others) if others else data
    return data[: _place(data, rng)] + other[_place(other, rng) :]


def _place(data: bytes | bytearray, rng: random.Random) -> int:
    """A place in a file; half of all lie at its beginning or end, where formats keep structure."""
    if not data:
        return 0
    near = min(len(data), 1024)
    return rng.choice([
        rng.randrange(len(data)), rng.randrange(len(data)), rng.randrange(near),
        len(data) - 1 - rng.randrange(near),
    ])  # fmt: skip


def _spoil_tag(data: bytes, rng: random.Random, _others: Sequence[bytes]) -> bytes:
    """Change one entry of one directory of a TIFF, or where a directory leads."""
    tags, ends = _tiff_places(data)
    order, big = ">" if data[:2] == b"MM" else "<", 43 in data[2:4]
    offset, n_value = order + ("Q" if big else "I"), 8 if big else 4
    if not tags or rng.random() < 0.1:
        return _put(data, rng.choice(ends), offset, rng, within=len(data))
    start, part = rng.choice(tags), rng.random()
    if part < 0.1:
        return _put(data, start, order + "H", rng, within=65_535)
    if part < 0.3:
        return data[: start + 2] + struct.pack(order + "H", rng.randrange(20)) + data[start + 4 :]
    if part < 0.5:
        return _put(data, start + 4, offset, rng, within=len(data))
    form = order + rng.choice("BHIQ" if big else "BHI")
    return _put(data, start + 4 + n_value, form, rng, within=len(data))


def _tiff_places(data: bytes) -> tuple[list[int], list[int]]:
    """Where the entries of all directories lie, and where each tells the next one."""
    order = ">" if data[:2] == b"MM" else "<"
    big = 43 in data[2:4]
    offset_kind, count_kind, size = ("Q", "Q", 20) if big else ("I", "H", 12)
    head = 8 if big else 4
    tags: list[int] = []
    ends = [head]
    try:
        (offset,) = struct.unpack_from(order + offset_kind, data, head)
        while 0 < offset < len(data) and len(ends) < 64:
            (n_tags,) = struct.unpack_from(order + count_kind, data, offset)
            first = offset + struct.calcsize(count_kind)
            if n_tags > 200:
                break
            tags += range(first, first + n_tags * size, size)
            ends.append(first + n_tags * size)
            (offset,) = struct.unpack_from(order + offset_kind, data, ends[-1])
    except struct.error:
        pass
    return [tag for tag in tags if tag + size <= len(data)], ends


def _put(data: bytes, start: int, form: str, rng: random.Random, *, within: int) -> bytes:
    """Write an odd number, or one up to ``within``, at a place."""
    n_bytes = struct.calcsize(form)
    number = rng.choice([rng.choice(_ODD_NUMBERS), rng.randrange(max(1, within))])
    return data[:start] + struct.pack(form, number % 2 ** (8 * n_bytes)) + data[start + n_bytes :]


def _spoil_cells(data: bytes, rng: random.Random, _others: Sequence[bytes]) -> bytes:
    """Change cells, rows, columns, separators or the code of a CSV table."""
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8"))))
    except (UnicodeDecodeError, csv.Error):
        return data
    if not rows or not rows[0]:
        return data
    row, column = rng.choice(rows), rng.randrange(len(rows[0]))
    way = rng.randrange(8)
    if way < 3 and column < len(row):
        row[column] = rng.choice([*_HOSTILE_CELLS, (rng.choice(rows) or [""])[0]])
    elif way == 3:
        rows.insert(rng.randrange(len(rows) + 1), list(row))
    elif way == 4:
        rows.remove(row)
    elif way == 5:
        rows = [[*each[:column], *each[column + 1 :]] for each in rows]
    elif way == 6:
        row.append(rng.choice(_HOSTILE_CELLS))
    else:
        rows = [[*each, rng.choice(each) if each else ""] for each in rows]
    text = io.StringIO()
    writer = csv.writer(
        text, delimiter=rng.choice(",,,;\t|"), lineterminator=rng.choice(["\n", "\r\n", "\r"]),
        quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    )  # fmt: skip
    writer.writerows(rows)
    code = rng.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])
    return text.getvalue().encode(code, "replace")


def _spoil_json(data: bytes, rng: random.Random, _others: Sequence[bytes]) -> bytes:
    """Change, leave out or nest one value of a JSON text."""
    try:
        root = {"root": json.loads(data)}
    except (ValueError, RecursionError):
        return data
    holders: list[Any] = []

    def walk(node: Any) -> None:
        holders.append(node)
        for child in node.values() if isinstance(node, dict) else node:
            if isinstance(child, (dict, list)) and child:
                walk(child)

    walk(root)
    holder = rng.choice(holders)
    key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    way = rng.random()
    if way < 0.15 and holder is not root:
        del holder[key]
    elif way < 0.2:
        deep = json.dumps("deep")
        holder[key] = deep
        text = json.dumps(root["root"]).replace(json.dumps(deep), "[" * 20_000 + "]" * 20_000)
        return text.encode("utf-8", "replace")
    elif way < 0.3:
        holder[key] = [holder[key]]
    elif way < 0.4 and isinstance(holder[key], (int, float)):
        holder[key] = rng.choice(_ODD_NUMBERS)
    else:
        holder[key] = rng.choice(_HOSTILE_VALUES)
    return json.dumps(root["root"]).encode("utf-8", "replace")


def _spoil_tensors(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Change the JSON header of a safetensors file, with its length right, or its JSON within."""
    if len(data) < 8:
        return data
    n_header = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + n_header]
    if rng.random() < 0.6:
        header = _spoil_inner_json(header, rng, others)
    else:
        header = _spoil_json(header, rng, others)
    return len(header).to_bytes(8, "little") + header + data[8 + n_header :]


def _spoil_inner_json(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Change JSON that lies as text in the metadata of a safetensors file."""
    try:
        header = json.loads(data)
        metadata = header["__metadata__"]
        name = rng.choice(list(metadata))
        metadata[name] = _spoil_json(metadata[name].encode(), rng, others).decode()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError):
        return _spoil_json(data, rng, others)
    return json.dumps(header).encode("utf-8", "replace")


def _spoil_chunk(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Change one chunk of a PNG, with its checksum right."""
    chunks = []
    place = 8
    while place + 12 <= len(data):
        n_bytes = int.from_bytes(data[place : place + 4], "big")
        chunks.append((place, n_bytes))
        place += 12 + n_bytes
    if not chunks:
        return data
    start, n_bytes = rng.choice([chunks[0], rng.choice(chunks)])
    way = rng.choice([_flip_bits, _set_bytes, _odd_number])
    body = data[start + 4 : start + 8] + way(data[start + 8 : start + 8 + n_bytes], rng, others)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:start] + chunk + data[start + 12 + n_bytes :]


def _spoil_member(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Change one file of a zip, with its checksum right."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # noqa: BLE001 - spoilt before
        return data
    if not parts:
        return data
    name = rng.choice(list(parts))
    parts[name] = mutate(name, parts[name], rng, others)
    packed = io.BytesIO()
    way = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(packed, "w", way) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    return packed.getvalue()


_BYTES: Sequence[Mutator] = (
    _flip_bits, _set_bytes, _odd_number, _odd_number, _copy_word, _truncate, _cut_out, _repeat,
    _fill, _splice,
)  # fmt: skip
_OF_KIND: dict[str, Sequence[Mutator]] = {
    **dict.fromkeys([".tif", ".tiff", ".svs"], (_spoil_tag,)),
    ".csv": (_spoil_cells,),
    **dict.fromkeys([".json", ".zattrs", ".zarray", ".zgroup"], (_spoil_json,)),
    ".safetensors": (_spoil_tensors,),
    ".png": (_spoil_chunk,),
    **dict.fromkeys([".zip", ".pt", ".pth", ".npz", ".ozx"], (_spoil_member,)),
}
