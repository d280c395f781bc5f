"""The list of licences, and the licences that are not allowed on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.licences import (
    UNKNOWN,
    Package,
    all_requirements,
    direct_requirements,
    is_copyleft,
)

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "licences.md"


@pytest.fixture(scope="module")
def packages() -> dict[str, Package]:
    return all_requirements(direct_requirements())


def test_the_page_lists_every_direct_dependency_and_knows_every_licence() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\S+) \| (.+?) \|", text, flags=re.MULTILINE))
    assert set(direct_requirements()) <= set(rows)
    assert UNKNOWN not in rows.values()


def test_every_package_that_is_installed_states_its_licence(
    packages: dict[str, Package],
) -> None:
    assert not {each.name for each in packages.values() if each.licence == UNKNOWN}


def test_nothing_under_the_gpl_is_installed_by_default(
    packages: dict[str, Package],
) -> None:
    always = {name: by for name, by in direct_requirements().items() if "[" not in by}
    assert {each.name for each in packages.values() if is_copyleft(each.licence)} == {
        "pylibjpeg-libjpeg"
    }
    assert "pylibjpeg-libjpeg" not in all_requirements(always)


@pytest.mark.parametrize(
    ("licence", "binds"),
    [
        ("MIT", False),
        ("LGPL-2.1-only AND BSD-3-Clause", False),
        ("MIT AND (BSD-3-Clause OR GPL-2.0-only)", False),
        ("GPL-3.0", True),
        ("MIT AND AGPL-3.0-or-later", True),
    ],
)
def test_a_licence_binds_where_no_other_can_be_chosen(licence: str, binds: bool) -> None:
    assert is_copyleft(licence) is binds
