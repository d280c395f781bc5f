"""Frame and style that all HTML pages share."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from jinja2 import (
    ChoiceLoader,
    Environment,
    PackageLoader,
    StrictUndefined,
    select_autoescape,
)
from markupsafe import Markup, escape

__all__ = ["page_environment", "page_style"]

_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def page_environment(package: str) -> Environment:
    """Return the Jinja environment of the templates in ``templates/`` of a package.

    Pages extend ``page.html``, which holds the style and a policy that forbids network access and
    all scripts but the page's own, and import the macros of ``macros.html``; both are in
    ``features/templates``. In HTML all values are escaped, and a value that is missing is an error.
    The filter ``keep_options`` keeps the options of commands in one line.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("features")]),
        autoescape=select_autoescape(["html"]), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["page_style"] = page_style
    environment.filters["keep_options"] = _keep_options
    environment.filters["source_hash"] = _source_hash
    return environment


def _keep_options(text: str) -> Markup:
    """Escape a text, whose options of commands, such as ``--mpp``, no line then breaks."""
    kept = _OPTION.sub(r'<span class="option">\g<0></span>', str(escape(text)))
    return Markup(kept)  # noqa: S704 - escaped above


@cache
def page_style() -> Markup:
    """Return the CSS of all pages, with its fonts as ``data:`` URIs."""
    folder = files("features") / "templates"

    def embed(match: re.Match[str]) -> str:
        font = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'url("data:font/woff2;base64,{font}")'

    style = (folder / "style.css").read_text(encoding="utf-8")
    return Markup(re.sub(r'url\("(fonts/[\w.-]+)"\)', embed, style))  # noqa: S704 - our own file


def _source_hash(script: str) -> str:
    """Return the source of a script as a Content Security Policy names it, by SHA-256."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
