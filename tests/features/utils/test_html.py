from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from features.utils.html import page_environment, page_style

ROOT = Path(__file__).parents[3]
TEMPLATES = sorted([*ROOT.glob("mil/templates/*.html"), *ROOT.glob("features/templates/*.html")])


def page(body: str, script: str = "") -> str:
    source = f"""{{% extends "page.html" %}}{{% from "macros.html" import verdict %}}
    {{% block body %}}{body}{{% endblock %}}{{% block script %}}{script}{{% endblock %}}"""
    return page_environment("features").from_string(source).render(name="<b>x</b>")


def test_a_page_runs_its_own_script_and_no_other() -> None:
    html = page("hello", "let a = 1 < 2;")
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script is not None
    assert script[1] == "let a = 1 < 2;"
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "script-src" not in page("hello")
    assert "<script" not in page("hello")


def test_values_are_escaped_and_missing_ones_are_errors() -> None:
    assert 'class="verdict good">&lt;b&gt;x&lt;/b&gt;</p>' in page("{{ verdict('good', name) }}")
    with pytest.raises(UndefinedError, match="gone"):
        page("{{ gone }}")


def test_fonts_are_in_the_style_and_nothing_is_loaded() -> None:
    addresses = re.findall(r'url\("?([^")]{0,40})', page_style())
    assert len(addresses) == 2
    assert all(address.startswith("data:font/woff2;base64,d09GMg") for address in addresses)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_names_no_colour_and_no_type_of_its_own(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r":[^;{}\n]*#[0-9a-fA-F]{3,8}\b[^;{}\n]*;", text) == []
    assert "font-family" not in text


def test_options_of_commands_are_not_broken_at_their_hyphens_and_all_else_is_escaped() -> None:
    template = page_environment("features").from_string("{{ text | keep_options }}")
    text = template.render(text="Give --slide-mpp <b> or 'mil x --no-y'; 1--2 and a--b stay.")
    kept = '<span class="option">{}</span>'
    assert text == (
        f"Give {kept.format('--slide-mpp')} &lt;b&gt; or &#39;mil x {kept.format('--no-y')}&#39;; "
        "1--2 and a--b stay."
    )
