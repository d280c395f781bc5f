"""Resolution in the descriptions that scanners and converters write: text, XML or JSON."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import product
from operator import itemgetter

from features.slides.base import StatedMpp
from features.slides.companion_words import CAMERA, COMPANION
from features.slides.length_units import NUMBER, parse_number, um_per_unit
from features.slides.resolution import is_plausible_mpp, mpp_of_magnification

__all__ = ["mpp_in_ome", "mpp_in_text", "read_ome_image"]

_IS = r"""["']?(?:\s*[=:>]\s*["']?|\s*</name>\s*<value[^>]*>\s*)"""
"""Between a name and its value, as text, JSON, XML or a property of libvips."""
_NOT_OURS = r"(?<![A-Za-z])"
_WIDE_SIGNS = str.maketrans("：＝／", ":=/")
"""Signs as Chinese and Japanese write them."""
_OTHER_IMAGE = re.compile(rf"original|{COMPANION}", re.IGNORECASE)
_OTHER_THING = re.compile(
    rf"(?:(?:original|{COMPANION})"
    r"(?:[ \t_.-]*|[\"']?[ \t]*(?::[ \t]*|[:=][ \t]*\{\s*[\"']?))"
    rf"|(?:{CAMERA})[ _-]*:?[ \t]*"
    r"|(?:(?P<chip>ccd|cmos|sensor|detector|chip|axial)"
    r"|target|patch|mask|model|heatmap|annotation|requested|desired|downsampled)[ _-]*)"
    r"(?:(?:pixels?|px)[ \t_:-]*)?\Z",
    re.IGNORECASE,
)
"""What a name right behind it is of: a companion, the camera, the third dimension, or a method."""
_OF_NO_PX = re.compile(
    r"(?:lateral|optical|diffraction[ -]limited|theoretical|rayleigh|depth|\bz|focus|stage|motor"
    r"|encoder|grid|spot|array|tile)[ _-]*\Z",
    re.IGNORECASE,
)
"""What a resolution or spacing right behind it is of, but no size of pixels."""
_OF_SECTION = re.compile(r"(?:section|slice|\bline|\bstep)[ _-]*\Z", re.IGNORECASE)
"""What a spacing right behind it is of, but no µm per px."""
_OF_SECTIONS = re.compile(r"[ \t,(]*(?:between|apart|zwischen|entre|tra|tussen)\b", re.IGNORECASE)
_UNIT = r"[a-zA-Zµμåý\\\x80-\uffff][\w\\]{0,20}"
_LONG_UM = r"mi[ck]r(?:[oóô]m[eèé]t(?:er|re|ro|ri)|[oó]n|a)s?|мкм|微米|ミクロン"
_PER_WORD = r"(?:per|pro|par|por|na|на)"
_IN_UM = rf"mpp|ScanRes|(?:{_LONG_UM}|um)(?:[-_ ]?{_PER_WORD}[-_ ]?|/)(?:p[ií]xel|px)"
_NAMED_PX = (
    r"(?:pixel|voxel|physical)[-_ ]?(?:size|spacing|width)"
    r"|pixel(?:abstand|größe|grösse|groesse|grootte)|taille (?:du |de |des )?pixels?"
    r"|размер пикселя|rozmiar piksela|(?:pixelst(?:orlek|ørrelse)|pikselin koko|velikost pixelu)"
    r"|(?:像素(?:大小|尺寸)|画素サイズ|ピクセルサイズ|픽셀 크기)"
    r"|(?:tama[ñn]h?o|dimension[ei])[-_ ](?:(?:d[eio][lis]?|los)[-_ ]){0,2}p[ií]xe[eils]{1,3}"
)
_SIZE = (
    rf"{_NAMED_PX}|(?:scan)?r[eé]solution|aufl(?:ö|oe)sung|resoluci[oó]n|risoluzione|resolu[çc][aã]o"
    r"|resolutie|разрешение|rozdzielczość|(?:分辨率|解像度|해상도)|spacing"
)
_PAIR = rf"[\[(]?\s*({NUMBER})(?:\s*[x×]\s*(?:{NUMBER})|,\s*(?:{NUMBER})(?=\s*[\])]))?[\])]?"
"""A number, or the first of two: 0.5 x 0.5, (0.5, 0.5)."""
_MPP = re.compile(
    rf"{_NOT_OURS}({_IN_UM})[-_ ]?([xy]?){_IS}(?:\{{\s*[\"']?x{_IS})?{_PAIR}[ \t]*({_UNIT})?",
    re.IGNORECASE,
)
_PIXEL_SIZE = re.compile(
    rf"{_NOT_OURS}({_SIZE})"
    rf"[-_ ]?([xy]?)[-_ ]?[\[(]?(microns?|um|[µμ]m|nm|mm)?[\])]?"
    rf"(?:\s+unit=[\"']({_UNIT})[\"'])?{_IS}(?:\{{\s*[\"']?(?:x|value){_IS})?"
    rf"{_PAIR}[ \t]*({_UNIT})?",
    re.IGNORECASE,
)
_LARGE_IMAGE = re.compile(
    rf"""(?<!\w)mm_x{_IS}({NUMBER})[\s,;|"']*mm_y{_IS}({NUMBER})""", re.IGNORECASE
)
_OBJECTIVE = (
    r"AppMag|SourceLens|NominalLensMagnification|vergr(?:ö|oe)(?:ß|ss)erung|grossissement"
    r"|увеличение|объектив|powiększenie|(?:förstoring|suurennus|zvětšení)"
    r"|(?:(?:放大)?倍[率数]|物镜|対物レンズ|배율)|vergroting|aumentos?|ingrandimento"
    r"|amplia[çc][aã]o|objektiv|objectif|objectief|objetiv[oa]|obiettivo|obj\.?|lens|mag\.?"
    r"|(?:nominal|scan|lens|objective)?[-_ ]?magnification"
    r"|objective(?:[-_ ]?lens)?(?:[-_ ]?(?:power|value|name))?"
)
_PX = r"(?:px|p[ií]x(?:e[eils]{1,3})?|voxels?|pikseli?|пиксел[ьяей]{1,2}|像素|画素|ピクセル|픽셀)"
_PER = rf"(?:[ \t]*(?:/|\b{_PER_WORD}\b)[ \t]*{_PX}\b|[ \t·⋅*]*{_PX}[ \t]*(?:\^?[-−]1\b|⁻¹))"
_METRIC = rf"(?:{_LONG_UM}|mill?[ií]met(?:er|re|ro|ri)s?|[uµμ]m|[mc]m)"
_PER_PX = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        (
            rf"(?P<x>{NUMBER})(?:[ \t]*(?:{_METRIC})?[ \t]*[x×*][ \t]*(?P<y>{NUMBER}))?"
            rf"[ \t]*(?P<unit>{_UNIT}?){_PER}"
        ),
        (
            rf"(?<!\d)(?<!\d[ \t])(?<!\w)(?P<unit>{_METRIC}){_PER}[)\]]?(?:{_IS}|[ \t]+)"
            rf"(?P<x>{NUMBER})"
        ),
        (
            rf"(?<![\w.,])(?:1|one|each|per)[ \t]*{_PX}[ \t]*(?:=|:|\b(?:is|equals)\b)[ \t]*"
            rf"(?P<x>{NUMBER})[ \t]*(?P<unit>{_UNIT})"
        ),
        (
            rf"(?:{_NAMED_PX})[ \t]+(?:(?:is|of)[ \t]+)?(?P<x>{NUMBER})[ \t]*"
            rf"(?P<unit>{_UNIT})"
        ),
    )
)
"""Length per px: ``0.5 µm/px``, ``um/px = 0.5``, ``1 px = 0.5 um``, ``pixel size 0.5 um``."""
_PX_PER = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?P<x>{NUMBER})[ \t]*{_PX}[ \t]*(?:/|\b{_PER_WORD}\b)[ \t]*(?P<unit>{_METRIC})\b",
        rf"{_PX}[ \t]*(?:/|[-_ ]?per[-_ ]?)[ \t]*(?P<unit>{_METRIC}){_IS}(?P<x>{NUMBER})",
        (
            rf"(?<![\w.,])(?:1|one|each|per)[ \t]*(?P<unit>{_LONG_UM}|[uµμ]m)[ \t]*"
            rf"(?:=|:|\b(?:is|equals)\b)[ \t]*(?P<x>{NUMBER})[ \t]*{_PX}\b"
        ),
    )
)
"""Pixels per length in words: ``2 px/µm``, ``PixelsPerMicron=2``, ``1 µm = 2 px``."""
_SCALE_BAR = re.compile(
    r"(?:scale[ _-]?bar|ma(?:ß|ss)stab|barre d[’']échelle|barra d[ei] (?:escala|scala)|比例尺|标尺"
    r"|スケールバー)[^\d;|\r\n]*\Z",
    re.IGNORECASE,
)
"""What is drawn into a picture of any size."""
_UNIT_BEHIND = re.compile(
    rf"""[\s,"']*(?:y{_IS}(?:{NUMBER})[\s,"']*)?units?{_IS}({_UNIT})""", re.IGNORECASE
)
"""A unit in a field right behind the value, or behind that of the other axis."""
_UM_PER_MM = 1000.0
_PER_INCH = rf"(?:[dp]pi|{_PX}[ \t]*(?:/|[-_ ]?per[-_ ]?)[ \t]*inch)"
_DOTS_PER_INCH = re.compile(
    rf"(?<!\w)(?P<before>{NUMBER})[ \t]*{_PER_INCH}\b"
    rf"|(?<!\w){_PER_INCH}{_IS}(?P<behind>{NUMBER})",
    re.IGNORECASE,
)
_NAMES_PX = re.compile(r"px|p[ií]x|voxel|piks|пиксел|像素|画素|ピクセル|픽셀", re.IGNORECASE)
_AROUND = 100
"""Characters before and behind a name of pixels in which the length is."""
_MAGNIFICATION = re.compile(
    rf"{_NOT_OURS}({_OBJECTIVE}){_IS}(?=([^|;\r\n<\"']{{1,80}}))", re.IGNORECASE
)
_NEXT_FIELD = re.compile(r"[,\s]\s*(?:[A-Z][\w-]* )?[^\W\d][\w-]*\s*[=:]")
_SHORT = re.compile(r"(?:mag|lens)\Z", re.IGNORECASE)
"""Names that also have other lenses, and programs that show a slide."""
_OPTICS = (
    r"(?:digital|zoom|tube|camera|c-?mount|adapt[eo]r|eyepiece|o[ck]ula(?:r|ire)|intermediate|relay"
    r"|optovar|display|projection|condenser)"
)
_OF_OTHER_OPTICS = re.compile(rf"{_OPTICS}[ \t_.-]*(?:lens[ \t_.-]*)?\Z", re.IGNORECASE)
_OF_SCAN = re.compile(r"ob|app|source|nominal|scan|digiti[sz]ed|acquired", re.IGNORECASE)
"""In names and words that no other lens has."""
_OTHER_TIMES = re.compile(rf"{_OPTICS}[^\d,]*(?:{NUMBER})\s*[x×]", re.IGNORECASE)
_TIMES = re.compile(
    rf"({NUMBER})\s*[x×](?![a-z])|(?<![\w.])[x×]\s?(\d+(?:[.,]\d+)?)\b", re.IGNORECASE
)
_USUAL = r"([245]|[1248]0|6[03]|100)"
_POWER = rf"(?<![\w.,])(?:{_USUAL}[x×](?![a-z0-9])|[x×]{_USUAL}(?![\w.,]))"
"""A usual magnification: notes multiply adapters, sections and fields too."""
_TIMES_IN_WORDS = re.compile(
    rf"(?:\b(?:scan|scanned|digiti[sz]ed|acquired)[ \t]+(?:at|with)|\b(?:{_OBJECTIVE}))"
    rf"[ \t]+(?:an?[ \t]+|of[ \t]+)?{_POWER}"
    rf"|{_POWER}[ \t]*(?:{_OBJECTIVE})\b",
    re.IGNORECASE,
)
"""``Scanned at 20x``, ``magnification 20x``, ``20x objective``."""
_TO = r"\s*(?:[-–/]|\bto\b)\s*(?:[2-9]|\d{2,3})(?![\w.,]?\d)"
_RANGE = re.compile(
    rf"(?<![\w.,-])(?:\d{{1,3}}\s*[x×]{_TO}|{_USUAL}[-–]\d{{1,3}})\s*[x×](?![a-z])", re.IGNORECASE
)
"""``20x - 40x``, ``20-40x``."""
_OTHER_NUMBER = re.compile(
    rf"(?:{NUMBER})(?<![.,])(?:\s*%|{_TO}|\s*(?:[cmnuµ]?m|px|pix\w*|m?s|db|k?hz)\b)", re.IGNORECASE
)
_OF_LENSES = (
    r"(?:u?plan|u?pl\b|upl|s?apo|achro|(?:neo)?flu[ao]r|[a-z]?lwd|x[a-z]{1,3}\b|oil|air|water"
    r"|dry|imm|na\b|dic|ph|cfi|lambda|hcx?\b|ec\b|nikon|olympus|zeiss|leica|mitutoyo|obj|lens|mag"
    r"|times|fold|fach|fois|mal\b)"
)
"""Words on lenses beside a magnification."""
_COUNT = re.compile(
    rf"(?:{NUMBER})(?<![.,])\s*[-–]?\s*(?!{_OF_LENSES})[^\W\d_]{{2}}", re.IGNORECASE
)
"""A number of something, as ``20 patients``."""
_OF_AIM_OR_PLACE = re.compile(
    r"(?<![^\W\d_])(?:grad[eo]?s?\b|stages?\b|stadium|est[aá]dio|stadio|clas{1,2}(?!ic)|klas{1,2}e"
    r"|score|gleason|patient|pa[cz]i[eê]n|case|cohort|surviv|recurr|predi[ck]|age\b|days?\b|week"
    r"|woche|seman|month|monat|year|jahr|posi(?:tion|ción|zione|ção|cion)|pos\b|place|platz|n[or]\."
    r"|number|slot|turret|revolver|nosepiece)",
    re.IGNORECASE,
)
"""A word that makes the number behind it one of an aim, or of a place in the turret."""
_SIGN = re.compile(r"\s*[x×]", re.IGNORECASE)
_MAY_COUNT = re.compile(r"(?:ob[ij]|lens|mag\Z|aumento)(?!.*(?:power|magn))", re.IGNORECASE)
"""Names that may mean an aim, an increase or another lens."""
_LEAST_WITHOUT_SIGN, _LARGEST = 4, 160
"""A smaller number without a sign is the objective's place or aperture; a larger one is a
magnification through the eyepieces."""
_PHILIPS = re.compile(r"DICOM_PIXEL_SPACING\b[^>]*>([^<]*)<")
_ZEISS = re.compile(
    rf"""<Distance\b[^>]*\bId=["']([XY])["'][^>]*>\s*<Value>\s*({NUMBER})""", re.IGNORECASE
)
_METAXPRESS = re.compile(
    r"""\bid=["']spatial-calibration-(x|y|units)["'][^>]*\bvalue=["']([^"']*)["']"""
)
_OME_TAG = re.compile(r"<(?:\w+:)?(Image|Pixels|Channel|Objective|ObjectiveSettings)\b([^<]*?)/?>")
_ATTRIBUTE = re.compile(r"""([\w:]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")


def mpp_in_text(text: str) -> Iterator[StatedMpp]:
    """Yield what a description says of the slide's resolution, µm per px, best field first.

    Understood are Philips' XML, Aperio's and others' ``MPP``, Ventana's ``ScanRes``, properties of
    OpenSlide that libvips copies, pixel sizes with a unit (Akoya, Huron, Micro-Manager), Zeiss' and
    MetaXpress' XML, and magnifications. Of several values of a field, the finest is the scan's.
    """
    # Texts that were escaped again when they were put into XML are as frequent as others.
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)))
    text = text.translate(_WIDE_SIGNS)
    yield from _philips(text)
    yield from _named_sizes(text, _MPP)
    yield from _named_sizes(text, _PIXEL_SIZE)
    yield from _large_image(text)
    yield from _zeiss(text)
    yield from _metaxpress(text)
    yield from _per_px(text)
    for dots in _DOTS_PER_INCH.finditer(text):
        um = 25_400 / (parse_number(dots["before"] or dots["behind"]) or math.inf)
        if not _is_of_other_image(text[max(0, dots.start() - _AROUND) : dots.start()]):
            yield StatedMpp(x=um, y=um, field="dpi", kind="tags")  # mostly a default of printing
    yield from _magnifications(text)


def read_ome_image(
    ome: str, *, width_px: int, height_px: int, name: str | None = None
) -> tuple[Mapping[str, str], Sequence[Mapping[str, str]]]:
    """Return the attributes of ``Pixels`` and of each ``Channel`` of the image of that size, px.

    Both are empty if none has it. Of several, the one whose ``Name`` is ``name`` is taken, else the
    first. ``Magnification`` is added where the image names an objective, or there is only one.
    """
    size = (str(width_px), str(height_px))
    image: dict[str, str] = {}
    channels: list[dict[str, str]] = []
    fitting: list[tuple[dict[str, str], dict[str, str], list[dict[str, str]]]] = []
    objectives: dict[str, str] = {}
    settings: dict[str, str] = {}
    for tag, attributes in _ome_elements(ome):
        if tag in {"Image", "Pixels"}:
            channels = []
        if tag == "Image":
            image = attributes
        elif tag == "Objective":
            power = attributes.get("NominalMagnification") or attributes.get(
                "CalibratedMagnification", ""
            )
            objectives[attributes.get("ID", "")] = power
        elif tag == "ObjectiveSettings":
            settings[image.get("ID", "")] = attributes.get("ID", "")
        elif tag == "Channel":
            channels.append(attributes)
        elif (attributes.get("SizeX"), attributes.get("SizeY")) == size:
            fitting.append((image, attributes, channels))
    if not fitting:
        return {}, ()
    image, pixels, channels = next(
        (each for each in fitting if each[0].get("Name", "") == name), fitting[0]
    )
    power = objectives.get(settings.get(image.get("ID", ""), ""), "")
    if not power and len(objectives) == 1 and not settings:
        (power,) = objectives.values()
    return {**pixels, "Magnification": power} if power else pixels, channels


def _ome_elements(ome: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and attributes of the elements of an OME-XML that describe pictures."""
    for tag, inner in _OME_TAG.findall(ome):
        yield tag, {key: html.unescape(a or b) for key, a, b in _ATTRIBUTE.findall(inner)}


def mpp_in_ome(pixels: Mapping[str, str]) -> Iterator[StatedMpp]:
    """Yield the resolution that :func:`read_ome_image` finds, µm per px; the default unit is µm."""
    sizes = {
        axis: parse_number(pixels[f"PhysicalSize{axis}"])
        * (um_per_unit(pixels.get(f"PhysicalSize{axis}Unit", "µm")) or float("nan"))
        for axis in "XY"
        if f"PhysicalSize{axis}" in pixels
        and um_per_unit(pixels.get(f"PhysicalSize{axis}Unit", "µm")) is not None
    }
    if sizes:
        x, y = (sizes.get(axis, sizes.get(other, 0.0)) for axis, other in ("XY", "YX"))
        yield StatedMpp(x=x, y=y, field="PhysicalSizeX and Y of the OME-XML")
    if "Magnification" in pixels:
        power = parse_number(pixels["Magnification"])
        yield mpp_of_magnification(power, "NominalMagnification of the OME-XML")


def _philips(text: str) -> Iterator[StatedMpp]:
    """Row and column spacing, mm, of the image of type WSI; the macro has its own."""
    for part in text.split("DPScannedImage")[1:]:
        spacing = _PHILIPS.search(part)
        if ">WSI<" in part and spacing is not None:
            numbers = [parse_number(n) for n in spacing[1].replace('"', " ").split()]
            if numbers:
                yield StatedMpp(
                    x=1000 * numbers[-1], y=1000 * numbers[0], field="DICOM_PIXEL_SPACING"
                )


def _named_sizes(text: str, pattern: re.Pattern[str]) -> Iterator[StatedMpp]:
    """The finest value along x and y; a value that needs a unit and lacks it is left out."""
    values: dict[str, list[tuple[float, str]]] = {}
    unit_beside = cache(partial(_unit_beside, text))  # it searches the whole text
    for match in pattern.finditer(text):
        name, axis, *unit_in_name, number, unit = match.groups()
        before = text[max(0, match.start() - _AROUND) : match.start()]
        if _is_of_other_thing(text, match.start()) or (
            not _NAMES_PX.search(name)
            and (
                _OF_NO_PX.search(before)
                or (pattern is _PIXEL_SIZE and _OF_SECTION.search(before))
                or _OF_SECTIONS.match(text, match.end())
            )
        ):
            continue
        um = next(filter(None, map(um_per_unit, (unit, *unit_in_name))), None)
        own_unit = "" if um is not None else unit_beside(name, axis)
        if um is None:
            um = um_per_unit(own_unit)
        value = parse_number(number)
        if um is None and pattern is _PIXEL_SIZE:
            behind = _unit_behind(text, match.start(match.re.groups) if unit else match.end())
            um = behind if behind and is_plausible_mpp(behind * value) else None
        if um is None and (pattern is _MPP or (name == "PhysicalSize" and axis and not own_unit)):
            um = 1.0  # OME's default, also where its names are in other texts
        if um is not None:
            values.setdefault(axis.lower() or "x", []).append((um * value, name))
    if values:
        finest = {
            axis: min((pair for pair in pairs if pair[0] > 0), key=itemgetter(0), default=pairs[0])
            for axis, pairs in values.items()
        }
        (x, field), (y, _) = (finest.get(axis) or finest[other] for axis, other in ("xy", "yx"))
        yield StatedMpp(x=x, y=y, field=field)


def _unit_beside(text: str, name: str, axis: str) -> str:
    """The unit in a field of its own, as PixelSizeXUnit or PixelSizeUnit for PixelSizeX."""
    for own in dict.fromkeys((name + axis, name)):
        match = re.search(rf"""\b{re.escape(own)}[-_ ]?units?{_IS}({_UNIT})""", text, re.IGNORECASE)
        if match is not None:
            return str(match[1])
    return ""


def _unit_behind(text: str, position: int) -> float | None:
    """µm of the unit in a field behind a value; inches and cm count px and not their size."""
    match = _UNIT_BEHIND.match(text, position)
    um = um_per_unit(match[1]) if match else None
    return um if um is not None and um <= _UM_PER_MM else None


def _per_px(text: str) -> Iterator[StatedMpp]:
    """A length per px, or px per length, under any name but a companion's; the finest holds."""
    values = []
    for pattern, part in product((*_PER_PX, *_PX_PER), _parts_on_px(text)):
        for match in pattern.finditer(part):
            um, found = um_per_unit(match["unit"]), match.groupdict()
            if (
                um is None
                or _is_of_other_image(part[: match.start()])
                or _is_of_other_thing(part, match.start())
                or (pattern in _PX_PER and _SCALE_BAR.search(part, 0, match.start()))
            ):
                continue
            sizes = [parse_number(found[axis]) for axis in "xy" if found.get(axis)]
            if pattern in _PX_PER:
                sizes = [1 / size for size in sizes if size > 0]
            values += [(um * sizes[0], um * sizes[-1])] if sizes else []
    if values:
        x, y = min(values)
        yield StatedMpp(x=x, y=y, field="µm/px")


def _parts_on_px(text: str) -> Iterator[str]:
    """Parts of a text that name pixels; the pictures in XML of megabytes are passed over."""
    end = 0
    for match in _NAMES_PX.finditer(text):
        if match.end() + _AROUND > end:
            end = match.end() + 2 * _AROUND
            yield text[max(0, match.start() - _AROUND) : end]


def _large_image(text: str) -> Iterator[StatedMpp]:
    """Millimetres per px; a place on the glass may have these names too."""
    for match in _LARGE_IMAGE.finditer(text):
        x, y = (_UM_PER_MM * parse_number(number) for number in match.groups())
        is_plausible = is_plausible_mpp(x) and is_plausible_mpp(y)
        if is_plausible and not _is_of_other_thing(text, match.start()):
            yield StatedMpp(x=x, y=y, field="mm_x and mm_y")


def _zeiss(text: str) -> Iterator[StatedMpp]:
    """Distance of pixels in metres."""
    sizes = {axis.upper(): 1e6 * parse_number(number) for axis, number in _ZEISS.findall(text)}
    if sizes:
        x, y = (sizes.get(axis, sizes.get(other, 0.0)) for axis, other in ("XY", "YX"))
        yield StatedMpp(x=x, y=y, field="Distance of Zeiss' scaling")


def _magnifications(text: str) -> Iterator[StatedMpp]:
    """What fields and words say of the objective; those without a number above 0 say nothing."""
    for match in sorted(
        _MAGNIFICATION.finditer(text), key=lambda match: _SHORT.match(match[1]) is not None
    ):
        magnification = _magnification_in(match[2], name=match[1])
        if (
            0 < magnification <= _LARGEST
            and not _is_of_other_thing(text, match.start(), is_of_px=False)
            and not _is_of_other_lens(text, match)
        ):
            yield mpp_of_magnification(magnification, match[1].strip())
    text = _RANGE.sub(",", text)
    in_words = {
        int(next(filter(None, match.groups())))
        for match in _TIMES_IN_WORDS.finditer(text)
        if not _is_of_other_image(text[max(0, match.start() - 2 * _AROUND) : match.start()])
        and not _is_of_other_lens(text, match)
    }
    if len(in_words) == 1:  # of several, nothing says which is the scan's
        yield mpp_of_magnification(in_words.pop(), "magnification in words")


def _magnification_in(text: str, *, name: str) -> float:
    """What the field of a name states; NaN where its numbers are of something else."""
    value = _NEXT_FIELD.split(text, maxsplit=1)[0]
    if any(map(str.isdigit, value)):
        text = value
    if _RANGE.search(text):
        return math.nan
    found = _TIMES.findall(_OTHER_TIMES.sub("", text))
    times = {abs(parse_number(before or behind)) for before, behind in found}
    if times:  # of several, nothing says which is the scan's; small ones are of binning and fields
        large = {number for number in times if number >= _LEAST_WITHOUT_SIGN}
        if not large and not _SHORT.match(name):
            large = times
        return large.pop() if len(large) == 1 else math.nan
    first = re.search(NUMBER, text, re.IGNORECASE)
    if first is None or _OTHER_NUMBER.match(text, first.start()):
        return math.nan
    number = parse_number(first[0])
    if _MAY_COUNT.match(name) and (
        number < _LEAST_WITHOUT_SIGN
        or _COUNT.match(text, first.start())
        or (_OF_AIM_OR_PLACE.search(text, 0, first.start()) and not _SIGN.match(text, first.end()))
    ):
        return math.nan
    return number


def _is_of_other_lens(text: str, match: re.Match[str]) -> bool:
    """Whether a magnification is that of a zoom, a tube lens, an adapter or an eyepiece."""
    return (
        not _OF_SCAN.search(match[0])
        and _OF_OTHER_OPTICS.search(text, max(0, match.start() - _AROUND), match.start())
        is not None
    )


def _is_of_other_thing(text: str, position: int, *, is_of_px: bool = True) -> bool:
    """Whether a name is of something else; a chip has px, but no magnification."""
    thing = _OTHER_THING.search(text, max(0, position - _AROUND), position)
    return thing is not None and (is_of_px or not thing["chip"])


def _is_of_other_image(before: str) -> bool:
    """Whether the field that a text ends in names a companion."""
    return _OTHER_IMAGE.search(re.split(r"[|;,<>\r\n]", before)[-1]) is not None


def _metaxpress(text: str) -> Iterator[StatedMpp]:
    found = dict(_METAXPRESS.findall(text))
    um = um_per_unit(found.get("units", ""))
    if um is not None and "x" in found:
        x, y = (um * parse_number(found.get(axis, found["x"])) for axis in "xy")
        yield StatedMpp(x=x, y=y, field="spatial-calibration-x and y")
