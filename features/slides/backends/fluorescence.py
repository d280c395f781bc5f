"""Channels of fluorescence, which are not the red, green and blue of a stained slide."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from features.errors import UnsupportedFormatError

__all__ = ["check_names", "check_ome_channels", "fluorophores_in"]

_FLUOROPHORE = re.compile(
    r"(?<![a-z0-9])(?:dapi|hoechst|fitc|tritc|cy[-_ ]?[2357](?:\.5)?|alexa(?:[-_ ]?fluor)?"
    r"[-_ ]?\d{3}|af[-_ ]?\d{3}|opal[-_ ]?(?:polaris[-_ ]?)?\d{3}|texas[-_ ]?red|rhodamine|m?cherry"
    r"|e?[cgry]fp|draq[57]|syto[-_ ]?\d+|sybr\w*|propidium[-_ ]?iodide|atto[-_ ]?\d{3}"
    r"|dylight[-_ ]?\d{3}|spectrum[-_ ]?(?:orange|green|aqua|gold|red)|qdot\w*|bodipy\w*"
    r"|cd\d{1,3}[a-z]?|ki[-_ ]?67|foxp3|pan[-_ ]?(?:ck|cytokeratin)|pd[-_ ]?l?1"
    r"|(?:auto|immuno)?fluorescen(?:ce|t)|epifluorescence)(?![a-z0-9])",
    re.IGNORECASE,
)
"""Fluorophores, markers that they label, and the word itself."""
_MAX_NAMED = 5


def fluorophores_in(text: str) -> list[str]:
    """Return the names of fluorophores and labelled markers in a text, each once and in order."""
    return list(dict.fromkeys(match[0] for match in _FLUOROPHORE.finditer(text)))


def check_names(names: Iterable[str], *, where: object) -> None:
    """Raise UnsupportedFormatError if any of the names of channels is one of fluorescence."""
    shown = list(dict.fromkeys(filter(None, names)))
    if any(fluorophores_in(name) for name in shown):
        more = [f"{len(shown) - _MAX_NAMED} more"] if len(shown) > _MAX_NAMED else []
        raise UnsupportedFormatError(
            where, actual=f"channels of fluorescence ({', '.join(shown[:_MAX_NAMED] + more)})",
            expected="red, green and blue of a stained slide in transmitted light",
            hint="Give the scan of a stained section, such as one in haematoxylin and eosin.",
        )  # fmt: skip


def check_ome_channels(channels: Iterable[Mapping[str, str]], *, where: object) -> None:
    """Raise UnsupportedFormatError if attributes of ``Channel`` in an OME-XML are of fluorescence.

    Their names, the fluorophore, the contrast method and the illumination are looked at.
    """
    fields = ("Name", "Fluor", "ContrastMethod", "IlluminationType")
    found = [" ".join(filter(None, map(channel.get, fields))) for channel in channels]
    check_names(found, where=where)
