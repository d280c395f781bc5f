"""Text helpers: plurals, percentages, printable names, sort order, spellings of names."""

from __future__ import annotations

import difflib
import html
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from features.utils.spreadsheet_dates import date_hint

__all__ = [
    "LINE_BREAKS",
    "is_missing_word",
    "is_unclear_word",
    "list_names",
    "lookalike_key",
    "lookalikes",
    "lookalikes_note",
    "misread_form",
    "natural_key",
    "nearest_names",
    "normalize_name",
    "percent",
    "pluralize",
    "printable",
    "rounded",
    "shown_form",
    "spelling_hint",
    "strip_blanks",
]

LINE_BREAKS = "\n\r\x0b\x0c\x85\u2028\u2029"
"""Characters that end a line in some program or other."""

_MISSING_WORDS = frozenset({
    "<na>", "(na)", "[na]", "n.a.", "n/a", "na", "nan", "nat", "nil", "none", "null",
    "(null)", "<null>", "[null]", "(blank)", "(empty)", "\\n", "missing", "undefined",
    "notapplicable", "notavailable", "missingdata", "missingvalue", "n\\a", "na_character_",
    "#n/an/a", "#value", "#ref", "#div/0", "#name", "#num", "#getting_data", "-nan", "1.#ind",
    "-1.#ind", "1.#qnan", "-1.#qnan", "[objectobject]", "\u043d/\u0434",
    "#hiányzik", "#není_k_dispozici", "#yok",  # of spreadsheets in Hungarian, Czech and Turkish
})  # fmt: skip
"""What programs write for no value, without blanks."""
_NO_WORD = re.compile(r"#{3,}|[-\u2010-\u2015\u2212.?/*~_'\"]*")
"""Marks without a letter or digit; the first is shown by spreadsheets for what is too wide."""
_SPREADSHEET_ERROR = re.compile(
    r"err:\d{3}|#[¡¿]?[^\W\d_]+(?:/0)?[!?]|#[^\W\d_]/[^\W\d_]+!?|#n[av]"
)
"""Errors of spreadsheets in several languages: ``#WERT!``, ``#¿NOMBRE?``, ``#NV``, ``#N/D``."""
_UNCLEAR_WORDS = frozenset({
    "excluded", "indeterminate", "n/d", "n/k", "nd", "no data", "no data available", "no label",
    "not done", "not evaluable", "not known", "not recorded", "not reported", "not specified",
    "pending", "tba", "tbc", "tbd", "to be confirmed", "to be done", "undetermined", "unk",
    "unknown", "unlabeled", "unlabelled", "unspecified",
    # German, Dutch, Danish, Norwegian, Swedish
    "fehlend", "fehlt", "k.a.", "k. a.", "keine angabe", "keine angaben", "nicht bekannt",
    "ohne angabe", "unbekannt", "unbek.", "unklar", "nicht beurteilbar", "onbekend", "n.v.t.",
    "ukendt", "ikke oplyst", "ukjent", "okänd", "ej känd", "tuntematon", "ei tiedossa",
    # French, Spanish, Italian, Portuguese, Romanian
    "inconnu", "inconnue", "non renseigné", "non précisé", "manquant", "n.d.", "desconocido",
    "desconocida", "no disponible", "no especificado", "sin datos", "sin dato", "ignoto",
    "non noto", "non disponibile", "sconosciuto", "sconosciuta", "desconhecido", "desconhecida",
    "ignorado", "não informado", "necunoscut", "indéterminé", "indeterminado", "indeterminato",
    "non disponible", "sin especificar",
    # Polish, Czech, Hungarian, Turkish, Russian, Ukrainian
    "brak danych", "nieznany", "nieznane", "neznámý", "neznámo", "ismeretlen", "bilinmiyor",
    "неизвестно", "нет данных", "не указано", "невідомо", "άγνωστο",  # and Greek
    # Chinese, Japanese, Korean
    "不明", "不详", "不詳", "未知", "缺失", "欠損", "欠測", "미상", "불명",
})  # fmt: skip
"""Words for what is not known, of the languages that most tables are written in."""
_CONFUSABLES = str.maketrans(
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0456\u0458\u0455"
    "\u03b1\u03b2\u03b5\u03b6\u03b7\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7"
    "\u00f8\u0142\u0111\u0127\u0131",
    "abekmhopctyxijsabezhiknoptyxoldhi",
) | str.maketrans({
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
    "\u00e6": "ae", "\u0153": "oe", "\u2044": "/", "\u2215": "/", "\u2264": "<=", "\u2265": ">=",
})  # fmt: skip
"""Cyrillic and Greek letters that look like Latin ones, as capitals or as small letters, and Latin
letters whose stroke or missing dot is no accent to Unicode; marks that stand for plainer ones."""
_SPELLED_OUT = str.maketrans({
    "\u00e4": "ae", "\u00f6": "oe", "\u00fc": "ue", "\u00e5": "aa", "\u00f8": "oe",
    "\u00c4": "Ae", "\u00d6": "Oe", "\u00dc": "Ue", "\u00c5": "Aa", "\u00d8": "Oe",
})  # fmt: skip
"""Letters that are written as two where a keyboard lacks them."""
_SIGNED = re.compile(r"[-\u2010-\u2015\u2212]\s*(\d+(?:[.,]\d+)?)")
"""Number below 0, whose sign is no hyphen; programs that correct texts write it as a dash."""
_SAME_WORDS = {
    word.translate(_CONFUSABLES): words[0]
    for words in (
        (
            "yes", "y", "ja", "oui", "si", "sim", "tak", "ano", "igen", "evet", "да", "так", "是",
            "はい",
        ),
        (
            "no", "n", "nein", "non", "nee", "nei", "nej", "nao", "nie", "nem", "hayir", "нет",
            "ні", "否", "いいえ",
        ),
        ("true", "wahr", "vrai", "vero", "verdadero", "verdadeiro", "waar", "prawda", "истина"),
        ("false", "falsch", "faux", "falso", "onwaar", "falsz", "ложь"),
        ("positive", "pos", "positiv", "positif", "positivo", "positief"),
        ("negative", "neg", "negativ", "negatif", "negativo", "negatief"),
        ("male", "m", "mannlich", "masculin", "maschio", "masculino"),
        ("female", "f", "weiblich", "feminin", "femmina", "femenino", "feminino"),
        ("benign", "benigne", "benigno", "gutartig", "benin"),
        ("malignant", "maligne", "maligno", "bosartig", "malin"),
        ("tumour", "tumor", "tumeur", "tumore"),
    )
    for word in words
}  # fmt: skip
"""Words of one meaning, without accents, as several centres write them into one column."""
_ROMAN = {
    "i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6", "vii": "7", "viii": "8",
}  # fmt: skip
_ROMAN_WORD = re.compile(r"(?<=[^\W\d_] )(?:i{1,3}|iv|vi{0,3})(?![^\W_])")
"""Number of a grade, stage or type, behind a word."""
_ACCENT = re.compile("[\u0300-\u036f]")
"""Accents of Latin, Greek and Cyrillic letters; marks of other scripts may make another word."""
_ABBREVIATION_DOT = re.compile(r"(?<=[^\W\d_])\.")
_INNER_QUOTE = re.compile(r"(?<=[^\W\d_])['\"](?=[^\W\d_])")
_BLANK_OF_WORDS = re.compile(r"(?<!\d) | (?!\d)")
_LEADING_ZEROS = re.compile(r"(?<![\d.,])0+(?=\d)")
_ZERO_WIDTH = "\u00ad\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
"""Characters without width, which no editor shows."""
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Marks and letters that are drawn as nothing, beside the format characters of Unicode."""
_BLANKS_AROUND = re.compile(rf"^[\s{_ZERO_WIDTH}]+|[\s{_ZERO_WIDTH}]+$")
_MOST_LISTED = 5
_MIN_SIMILARITY = 0.6
_MAX_COMPARED = 20_000


def pluralize(number: int, nouns: str) -> str:
    """Return a number with its noun, given in the plural.

    Examples
    --------
    >>> pluralize(1, "slides"), pluralize(1200, "slides"), pluralize(1, "series")
    ('1 slide', '1,200 slides', '1 series')
    """
    noun = nouns if number != 1 or nouns == "series" else nouns.removesuffix("s")
    return f"{number:,} {noun}"


def list_names(names: Sequence[str]) -> str:
    r"""Return the first five names, printable, and the number of the others.

    Examples
    --------
    >>> list_names(["a", "b\n"]), list_names(list("abcdefg"))
    ('a, b?', 'a, b, c, d, e and 2 more')
    """
    n_more = len(names) - _MOST_LISTED
    listed = ", ".join(map(printable, names[:_MOST_LISTED]))
    return listed + (f" and {n_more:,} more" if n_more > 0 else "")


def percent(share: float, *, digits: int = 0) -> str:
    """Return a share of 1 in per cent, with the space that belongs before the sign.

    Examples
    --------
    >>> percent(0.25), percent(1 / 3, digits=1)
    ('25 %', '33.3 %')
    """
    return f"{100 * share:.{digits}f} %"


def rounded(value: float, *, digits: int = 3) -> str:
    """Return a number with so many significant digits, and all before the point.

    A number that is not finite is a dash.

    Examples
    --------
    >>> rounded(0.012345), rounded(12345.6), rounded(float("nan"))
    ('0.0123', '12,346', '–')
    """
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def printable(text: str, *, kept: str = "") -> str:
    r"""Return a text with a question mark in place of control and other unprintable characters.

    Examples
    --------
    >>> printable("two\nlines\x1b[31m")
    'two?lines?[31m'
    """
    return "".join(c if c.isprintable() or c in kept else "?" for c in text)


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that orders numbers inside names by value.

    Examples
    --------
    >>> sorted(["centre 11", "centre 2", "other"], key=natural_key)
    ['centre 2', 'centre 11', 'other']
    """
    parts = re.findall(r"\d+|\D+", text)
    return tuple((0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts)


def normalize_name(text: str) -> str:
    r"""Return an id, label or column name in the one form of Unicode in which names are compared.

    macOS stores the names of files decomposed (NFD), most tables are composed (NFC).

    Examples
    --------
    >>> normalize_name("Mu\u0308ller") == "M\u00fcller"
    True
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def strip_blanks(text: str) -> str:
    r"""Return a text without the white space and zero-width characters around it.

    Examples
    --------
    >>> strip_blanks("\ufeff CE\u00a0\u200b")
    'CE'
    """
    return text.strip() if text.isascii() else _BLANKS_AROUND.sub("", text)


def is_missing_word(text: str) -> bool:
    """Return whether a text is empty, or a word that programs write for a missing value.

    Examples
    --------
    >>> is_missing_word("NaN"), is_missing_word("n/a"), is_missing_word("Nancy")
    (True, True, False)
    """
    plain = re.sub(r"\s", "", shown_form(text)).casefold()
    return plain in _MISSING_WORDS or any(
        pattern.fullmatch(plain) for pattern in (_NO_WORD, _SPREADSHEET_ERROR)
    )


def is_unclear_word(text: str) -> bool:
    """Return whether a text is a word for what is not known, which may be meant as a class.

    Examples
    --------
    >>> is_unclear_word("Unknown"), is_unclear_word("not  reported"), is_unclear_word("other")
    (True, True, False)
    """
    return re.sub(r"[\s_-]+", " ", shown_form(text)).strip().casefold() in _UNCLEAR_WORDS


def shown_form(text: str) -> str:
    r"""Return a text as a reader sees it: without invisible characters, forms of letters made one.

    Examples
    --------
    >>> shown_form("\uff21\u200b\ufe0f")
    'A'
    """
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKC", text)
    return "".join(c for c in plain if unicodedata.category(c) != "Cf" and not _INVISIBLE.match(c))


def lookalike_key(text: str) -> str:
    r"""Return a key that is equal for names that a reader may take for one another.

    Such names differ only in capitals, blanks, hyphens or underscores that part no numbers, dots
    behind letters, quotation marks, zero-width characters, accents, letters read in another
    encoding, forms of one character, Cyrillic or Greek letters among Latin ones, leading zeros,
    zeros behind a decimal point, Roman numerals behind a word, or in a few words of one meaning.

    Examples
    --------
    >>> lookalike_key("class\u00a0 A") == lookalike_key("Class_a")
    True
    >>> lookalike_key("C.E.") == lookalike_key("ce"), lookalike_key("1.5") == lookalike_key("15")
    (True, False)
    >>> lookalike_key("007") == lookalike_key("7.0"), lookalike_key("P1") == lookalike_key("P11")
    (True, False)
    >>> lookalike_key("M\u00fcller") == lookalike_key("Muller")
    True
    >>> lookalike_key("P-01") == lookalike_key("p1"), lookalike_key("1-11") == lookalike_key("11-1")
    (True, False)
    >>> lookalike_key("Grade II") == lookalike_key("grade 2"), lookalike_key("A'") == "a'"
    (True, True)
    >>> lookalike_key("-1") == lookalike_key("\u22121.0"), lookalike_key("-1") == lookalike_key("1")
    (True, False)
    >>> lookalike_key("CE?") == lookalike_key("CE"), lookalike_key("?") == lookalike_key("*")
    (True, False)
    """
    shown = shown_form(misread_form(text) or text).casefold()
    if "&" in shown:
        shown = html.unescape(shown)
    if not shown.isascii():
        shown = _ACCENT.sub("", unicodedata.normalize("NFD", shown)).translate(_CONFUSABLES)
        shown = "".join(str(unicodedata.decimal(c, c)) for c in shown)
    shown = shown.strip().replace("''", '"')
    if shown.startswith(("'", '"')):
        shown = shown.strip("'\" ")
    if signed := _SIGNED.fullmatch(shown):
        return f"-{lookalike_key(signed[1])}"
    shown = _INNER_QUOTE.sub("", _ABBREVIATION_DOT.sub("", shown)).rstrip(",;:!?*")
    words = re.sub(r"[\s_\-\u2010-\u2015]+", " ", shown).strip()
    words = _ROMAN_WORD.sub(lambda found: _ROMAN[found[0]], _SAME_WORDS.get(words, words))
    words = _LEADING_ZEROS.sub("", _BLANK_OF_WORDS.sub("", words))
    number = re.sub(r"^(\d+)\.0+$", r"\1", words)
    return number.lstrip("0") or number[:1] or text


def _spelled_key(text: str) -> str:
    """Return the key of a name whose umlauts are written as two letters."""
    return lookalike_key(text if text.isascii() else text.translate(_SPELLED_OUT))


def misread_form(text: str) -> str:
    r"""Return what a text was before its UTF-8 was read in Windows-1252 or Latin-1; empty if not.

    Examples
    --------
    >>> misread_form("M\u00c3\u00bcller") == "M\u00fcller", misread_form("M\u00fcller")
    (True, '')
    """
    if text.isascii():
        return ""
    try:
        content = b"".join(map(_western_byte, text))
        return normalize_name(content.decode("utf-8"))
    except UnicodeError:
        return ""


def _western_byte(character: str) -> bytes:
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")  # what Windows-1252 leaves undefined


def lookalikes(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of two or more different names with one key, see :func:`lookalike_key`.

    Examples
    --------
    >>> lookalikes(["Mayo", "mayo", "Bern"])
    (('Mayo', 'mayo'),)
    """
    keys = {name: lookalike_key(name) for name in sorted(set(names))}
    known = set(keys.values())
    spelled: dict[str, set[str]] = {}
    for name, key in keys.items():
        if not name.isascii() and (other := _spelled_key(name)) in known and other != key:
            spelled.setdefault(key, set()).add(other)
    groups: dict[str, list[str]] = {}
    for name, key in keys.items():
        groups.setdefault(min(spelled.get(key, ()), default=key), []).append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def lookalikes_note(what: str, ids: Iterable[str]) -> str:
    """Return a note on ids of ``what``, such as slides, that look alike, or none.

    Examples
    --------
    >>> lookalikes_note("slides", ["a1", "A1", "b"])
    "slides whose ids look alike count as different ones: 'A1' = 'a1'; if they are one, write the \
id the same way everywhere"
    """
    groups = lookalikes(ids)
    if not groups:
        return ""
    alike = list_names([" = ".join(map(repr, group)) for group in groups])
    return (
        f"{what} whose ids look alike count as different ones: {alike}; if they are one, write the "
        "id the same way everywhere"
    )


def nearest_names(name: str, known: Collection[str], *, n: int = 3) -> tuple[str, ...]:
    """Return the known names most similar to a name, lookalikes and longer forms of it first.

    Examples
    --------
    >>> nearest_names("006388", ["006388_0.svs", "1", "006389"])
    ('006388_0.svs', '006389')
    """
    key = lookalike_key(name)
    keys = {other: lookalike_key(other) for other in known}
    same = [other for other, other_key in keys.items() if other_key == key]
    plain = name.casefold()
    parts = [
        other
        for other in known
        if min(len(other), len(plain)) > 2
        and (plain in other.casefold() or other.casefold() in plain)
    ]
    similar = difflib.get_close_matches(
        name, list(known)[:_MAX_COMPARED], n=n, cutoff=_MIN_SIMILARITY
    )
    return tuple(dict.fromkeys([*same, *sorted(parts, key=len), *similar]))[:n]


def spelling_hint(names: Iterable[str], known: Iterable[str]) -> str:
    """Return advice if one of the names is another spelling of a known one, or none.

    A date may be what a spreadsheet made of it, see :func:`features.utils.spreadsheet_dates`.

    Examples
    --------
    >>> spelling_hint(["7", "12"], ["007", "012"])
    "'7' looks like '007': write it the same way in both."
    """
    names, known = list(names), list(known)
    keys = {key(name): name for key in (_spelled_key, lookalike_key) for name in known}
    for name in names:
        other = keys.get(lookalike_key(name)) or keys.get(_spelled_key(name), name)
        if other != name:
            return f"{name!r} looks like {other!r}: write it the same way in both."
    return date_hint(sorted(set(names) - set(known)), known)
