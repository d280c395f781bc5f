"""Public names of the packages: each resolves, and none costs anything before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import features
import mil


@pytest.mark.parametrize("package", [features, mil], ids=lambda package: package.__name__)
def test_every_public_name_resolves_and_is_listed(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert callable(getattr(package, name))
        assert name in dir(package)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_packages_loads_no_torch_and_no_slide_reader() -> None:
    code = "import sys, features, mil; print(*({'torch', 'tifffile', 'h5py'} & {*sys.modules}))"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not output.stdout.strip()
