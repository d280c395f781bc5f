"""Checks of Python and packages: what is installed, and whether it is recent enough."""

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
"""Packages listed individually even if they are fine."""

_USES = {
    "dicom": "compressed DICOM",
    "onnx": "faster encoders on CPUs",
    "ray": "clusters",
    "stain": "--stain-norm",
}


def check() -> list[CheckResult]:
    """Check Python, the program, its required packages and its extras."""
    results = [_line("Python", f"{platform.python_version()} ({sys.executable})")]
    try:
        program = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return [*results, _missing(_DISTRIBUTION, advice=f"pip install {_DISTRIBUTION}")]
    results.append(_line(_DISTRIBUTION, program.version))
    required = [Requirement(text) for text in program.requires or ()]
    needed = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    results += _needed(needed)
    results.append(_libraries())
    extras = program.metadata.get_all("Provides-Extra") or []
    return [*results, *(_extra(name, required) for name in sorted(extras))]


def _needed(required: Sequence[Requirement]) -> list[CheckResult]:
    """Check required packages; those that are fine and not in ``_SHOWN`` share one result."""
    results, n_others = [], 0
    for one in sorted(required, key=lambda one: one.name):
        wrong = _wrong_with(one)
        if wrong:
            results.append(_missing(one.name, found=wrong, advice=f"pip install -U '{one}'"))
        elif one.name in _SHOWN:
            results.append(_line(one.name, metadata.version(one.name)))
        else:
            n_others += 1
    return [*results, _line("other packages", f"{n_others}, all recent enough")]


def _libraries() -> CheckResult:
    """Report the versions of the C libraries that read slides and bags."""
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
    """Return why a requirement is not met; empty if it is."""
    try:
        version = metadata.version(required.name)
    except metadata.PackageNotFoundError:
        return "not installed"
    # Local builds such as 2.15.0+cu132 and pre-releases are compared by their number.
    is_met = required.specifier.contains(version, prereleases=True)
    return "" if is_met else f"{version}, needs {required.specifier}"


def _line(name: str, found: str) -> CheckResult:
    return CheckResult(part="software", name=name, found=found)


def _missing(name: str, *, found: str = "not installed", advice: str) -> CheckResult:
    return CheckResult(
        part="software", name=name, status="failed", found=found, advice=f"Install it: {advice}"
    )
