"""Settings of two fingerprints that differ, in the words of the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from features.errors import CONTENT_ERRORS
from features.utils.text import pluralize

__all__ = ["UNKNOWN", "describe_difference"]

UNKNOWN = "unknown"
_MOST_SETTINGS = 3
_MOST_CHARACTERS = 60
_HASH_DIGITS = 12
_OF_ENCODER = ("weights_sha256", "transform", "dim")
"""Fields that follow from the encoder, and are not named where it differs."""


def describe_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str]:
    """Return how bags of two fingerprints were made, without the settings that they share.

    The mappings hold the fields of :class:`features.bags.bag.Fingerprint`, sides in px and
    resolutions in µm per px, or some of them. Of more than three settings, the rest is counted.

    Examples
    --------
    >>> describe_difference({"tile_px": 224, "dim": 8}, {"tile_px": 256, "dim": 8})
    ('--tile-px 224', '--tile-px 256')
    """
    kinds = [_source_of(fields) for fields in (one, other)]
    if kinds[0] != kinds[1]:
        return kinds[0], kinds[1]
    pairs: list[tuple[str, str]] = []
    for name, own in one.items():
        if own == other[name] or (name in _OF_ENCODER and one["encoder"] != other["encoder"]):
            continue
        if name in _PARTS:
            pairs += _describe_parts(name, own, other[name])
        else:
            pairs.append((_WORDS[name](own), _WORDS[name](other[name])))
    pairs.sort(key=lambda pair: "--" not in "".join(pair))  # what the user states comes first
    own_words, other_words = zip(*pairs, strict=True) if pairs else ((), ())
    return _join(own_words), _join(other_words)


def _source_of(fields: Mapping[str, Any]) -> str:
    """What bags were made from, whose settings have nothing in common."""
    return "--series" if '"images"' in fields.get("tissue", "") else "slides instead of --series"


def _join(words: tuple[str, ...]) -> str:
    short = [
        word if len(word) <= _MOST_CHARACTERS else f"{word[: _MOST_CHARACTERS - 1]}…"
        for word in words[:_MOST_SETTINGS]
    ]
    n_more = len(words) - _MOST_SETTINGS
    return ", ".join(short) + (f" and {pluralize(n_more, 'more settings')}" if n_more > 0 else "")


def _describe_parts(field: str, own: object, other: object) -> list[tuple[str, str]]:
    """Words for the differing settings of a field that holds JSON; for all of it if it does not."""
    try:
        ours, theirs = json.loads(str(own) or "{}"), json.loads(str(other) or "{}")
        kinds = [_kind_of(field, parts) for parts in (ours, theirs)]
        if kinds[0] != kinds[1]:
            return [(kinds[0], kinds[1])]
        keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        words = [
            (_describe_part(field, ours, key), _describe_part(field, theirs, key)) for key in keys
        ]
    except CONTENT_ERRORS:
        words = []
    return words or [(f"{_PARTS[field]} {own}", f"{_PARTS[field]} {other}")]


def _kind_of(field: str, parts: Mapping[str, Any]) -> str:
    """What the settings of a field are of, where settings of another kind have no common words."""
    if parts.get(UNKNOWN):
        return f"unknown settings of the {_PARTS[field]}"
    match field:
        case "views":
            return f"--views {parts['n_views']}" if parts else "no --views"
        case "stain_norm":
            return f"--stain-norm {parts['method']}" if parts else "no --stain-norm"
        case _:
            return ""


def _describe_part(field: str, parts: Mapping[str, Any], key: str) -> str:
    value = parts.get(key)
    if key == "mask_version":
        return f"version {value or 1} of the tissue mask"
    if field == "tissue" and key == "rules":
        return f"--rules {','.join(value) if value else 'none'}"
    if field == "tissue" and key == "windows" and value:
        return "--windows " + ",".join(f"{w['centre_hu']:g}/{w['width_hu']:g}" for w in value)
    option = _OPTIONS.get((field, key))
    words = option or f"{_PARTS[field]} {key.replace('_', ' ')}"
    if value is None:
        return f"no {words}"
    if option is None:
        return f"{words} {json.dumps(value)}"
    return f"{option} {f'{value:g}' if isinstance(value, float) else value}"


def _hash_word(what: str) -> Callable[[Any], str]:
    def describe(value: str) -> str:
        return f"unknown {what}" if value == UNKNOWN else f"{what} {value[:_HASH_DIGITS]}"

    return describe


def _mpp_word(value: float) -> str:
    return f"--mpp {value:g}" if value > 0 and math.isfinite(value) else "unknown --mpp"


_WORDS: Mapping[str, Callable[[Any], str]] = {
    "encoder": lambda name: "unknown --backbone" if name == UNKNOWN else f"--backbone {name}",
    "weights_sha256": _hash_word("weights"),
    "dim": lambda dim: f"embeddings of {dim:,} numbers",
    "tile_px": lambda side: f"--tile-px {side}" if side else "unknown --tile-px",
    "target_mpp": _mpp_word,
    "overlap_px": lambda overlap: f"--overlap {overlap}",
    "filter_sha256": lambda sha: (
        f"--filter with hash {sha[:_HASH_DIGITS]}" if sha else "no --filter"
    ),
}
_PARTS: Mapping[str, str] = {
    "transform": "preprocessing", "tissue": "tissue", "stain_norm": "stain normalisation",
    "views": "views",
}  # fmt: skip
"""What the fields of several settings, as JSON, are about."""
_OPTIONS: Mapping[tuple[str, str], str] = {
    ("tissue", "min_tissue"): "--min-tissue",
    ("tissue", "max_tiles"): "--max-tiles",
    ("tissue", "method"): "--tissue",
    ("views", "seed"): "--views-seed",
}
