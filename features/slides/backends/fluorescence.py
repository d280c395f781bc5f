"""Channels of fluorescence, which are not the red, green and blue of a stained slide."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from features.errors import UnsupportedFormatError

__all__ = ["channel_names_in", "check_names", "check_ome_channels"]

_FLUOROPHORE = re.compile(
    r"(?<![a-z0-9])(?:dapi|hoechst|fitc|tritc|cy[-_ ]?[2357](?:\.5)?|alexa(?:[-_ ]?fluor)?"
    r"[-_ ]?\d{3}|af[-_ ]?[3-7]\d\d|opal[-_ ]?(?:polaris[-_ ]?)?\d{3}|texas[-_ ]?red|rhodamine"
    r"|mcherry|e?[cgry]fp|draq[57]|syto[-_ ]?\d+|sybr\w*|propidium[-_ ]?iodide|atto[-_ ]?\d{3}"
    r"|dylight[-_ ]?\d{3}|spectrum[-_ ]?(?:orange|green|aqua|gold|red)|qdot\w*|bodipy\w*"
    r"|(?:auto|immuno)?fluorescen(?:ce|t)|epifluorescence)(?![a-z0-9])",
    re.IGNORECASE,
)
"""Fluorophores, and the word itself."""
_NEGATED = re.compile(
    rf"(?<![a-z0-9])(?:no|non|not|without)[-_ ]+(?:any[-_ ]+)?{_FLUOROPHORE.pattern}"
    r"|(?:auto)?fluorescence(?:[-_ :=]+(?:none|not|off|removed|absent|disabled)"
    r"|\s*[:=]\s*(?:no|false))(?![a-z0-9])",
    re.IGNORECASE,
)
_MARKER = re.compile(
    r"(?<![a-z0-9])(?:cd\d{1,3}[a-z]{0,2}|ki[-_ ]?67|foxp3|pan[-_ ]?(?:ck|cytokeratin)"
    r"|pd[-_ ]?l?1)(?![a-z0-9])",
    re.IGNORECASE,
)
"""What antibodies label, in fluorescence as in transmitted light."""
_TRANSMITTED = re.compile(
    r"(?<![a-z0-9])(?:bright[-_ ]?field|transmitted|h ?& ?e|ha?ematoxylin|dab)(?![a-z0-9])",
    re.IGNORECASE,
)
_CHANNEL_FIELD = re.compile(
    r"""(?:<name|(?<![a-z])(?:biomarker|labels|ch(?:annel)?s?(?:[-_ ]?names?)?"""
    r"""|fluor(?:ophore|ochrome)?|dye))["']?\s*[:=>]\s*([^<>;|\r\n]{1,200})""",
    re.IGNORECASE,
)
"""A field that names channels, in XML, JSON or ImageJ's and others' texts."""
_MAX_NAMED = 5


def channel_names_in(text: str) -> str:
    """Return the fluorophores that fields of channels in a text name, or that are all of it."""
    fields = _CHANNEL_FIELD.findall(text)
    if _FLUOROPHORE.fullmatch(text.strip()):
        fields.append(text)
    return " ".join(dict.fromkeys(name for field in fields for name in _fluorophores_in(field)))


def _fluorophores_in(text: str) -> list[str]:
    return _FLUOROPHORE.findall(_NEGATED.sub(" ", text))


def check_names(names: Iterable[str], *, where: object) -> None:
    """Raise UnsupportedFormatError if the names of channels are those of fluorescence.

    One fluorophore is enough. Markers are stained for transmitted light too: only several, each in
    a channel of its own, are of fluorescence.
    """
    shown = list(dict.fromkeys(filter(None, names)))
    others = [name for name in shown if not _TRANSMITTED.search(name)]
    n_marked = sum(_MARKER.search(name) is not None for name in others)
    if n_marked > 1 or any(map(_fluorophores_in, others)):
        more = [f"{len(shown) - _MAX_NAMED} more"] if len(shown) > _MAX_NAMED else []
        raise UnsupportedFormatError(
            where, actual=f"channels of fluorescence ({', '.join(shown[:_MAX_NAMED] + more)})",
            expected="red, green and blue of a stained slide in transmitted light",
            hint="Give the scan of a stained section, such as one in haematoxylin and eosin.",
        )  # fmt: skip


def check_ome_channels(channels: Iterable[Mapping[str, str]], *, where: object) -> None:
    """Raise UnsupportedFormatError if attributes of ``Channel`` in an OME-XML are of fluorescence.

    Their fluorophore, contrast method and illumination are looked at; their name only if the
    channel is not a picture in colours by itself.
    """
    found = []
    for channel in channels:
        is_colours = channel.get("SamplesPerPixel") in {"3", "4"}
        fields = ("Name", "Fluor", "ContrastMethod", "IlluminationType")[is_colours:]
        found.append(" ".join(filter(None, map(channel.get, fields))))
    check_names(found, where=where)
