"""Python and packages: what is installed, and whether it is new enough."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib import metadata

from packaging.requirements import Requirement

from cli.doctor_checks.base import CheckResult

__all__ = ["check"]

_DISTRIBUTION = "mil-slides"
_SHOWN = {"mil-slides", "torch", "timm", "openslide-python", "tifffile", "imagecodecs", "zarr"}
"""Packages that have a line of their own even where nothing is wrong with them."""

_USES = {
    "dicom": "compressed DICOM",
    "onnx": "the backbone faster on CPUs",
    "ray": "clusters",
    "stain": "--stain-norm",
}


def check() -> list[CheckResult]:
    """Python, the program, the packages it needs, and its extras."""
    findings = [_line("Python", f"{platform.python_version()} ({sys.executable})")]
    try:
        program = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return [*findings, _missing(_DISTRIBUTION, advice=f"pip install {_DISTRIBUTION}")]
    findings.append(_line(_DISTRIBUTION, program.version))
    required = [Requirement(text) for text in program.requires or ()]
    needed = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    findings += _needed(needed)
    findings.append(_libraries())
    extras = program.metadata.get_all("Provides-Extra") or []
    return [*findings, *(_extra(name, required) for name in sorted(extras))]


def _needed(required: Sequence[Requirement]) -> list[CheckResult]:
    """A line for each package that is known by name or not as it should be, one for the rest."""
    findings, n_others = [], 0
    for one in sorted(required, key=lambda one: one.name):
        wrong = _wrong_with(one)
        if wrong:
            findings.append(_missing(one.name, found=wrong, advice=f"pip install -U '{one}'"))
        elif one.name in _SHOWN:
            findings.append(_line(one.name, metadata.version(one.name)))
        else:
            n_others += 1
    return [*findings, _line("other packages", f"{n_others}, all new enough")]


def _libraries() -> CheckResult:
    """Libraries below the packages that read slides and bags."""
    import h5py
    import openslide

    return _line(
        "libraries", f"HDF5 {h5py.version.hdf5_version}, OpenSlide {openslide.__library_version__}"
    )


def _extra(name: str, required: Sequence[Requirement]) -> CheckResult:
    own = [
        one
        for one in required
        if one.marker is not None
        and one.marker.evaluate({"extra": name})
        and not one.marker.evaluate({"extra": ""})
    ]
    wrong = [f"{one.name}: {text}" for one in own if (text := _wrong_with(one))]
    what = f"extra '{name}'"
    if wrong:
        return CheckResult(
            part="software", name=what, status="note", found=", ".join(wrong),
            advice=f"For {_USES.get(name, name)}: pip install '{_DISTRIBUTION}[{name}]'",
        )  # fmt: skip
    return _line(what, ", ".join(f"{one.name} {metadata.version(one.name)}" for one in own))


def _wrong_with(required: Requirement) -> str:
    """Why an installed package is not what is required; empty where it is."""
    try:
        version = metadata.version(required.name)
    except metadata.PackageNotFoundError:
        return "not installed"
    # A local build such as 2.15.0+cu132, or a pre-release, is new enough by its number.
    is_new_enough = required.specifier.contains(version, prereleases=True)
    return "" if is_new_enough else f"{version}, needs {required.specifier}"


def _line(name: str, found: str) -> CheckResult:
    return CheckResult(part="software", name=name, status="ok", found=found)


def _missing(name: str, *, found: str = "not installed", advice: str) -> CheckResult:
    return CheckResult(
        part="software", name=name, status="failed", found=found, advice=f"Install it: {advice}"
    )
