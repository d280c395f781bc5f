"""Configuration of `make docs`; the build needs no network."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent / "_extensions")]

project = "mil"
author = "The mil-slides authors"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx's name
release = version = metadata.version("mil-slides")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "commands",
    "docstrings",
    "mathml",
]
exclude_patterns = ["_build"]
nitpicky = True  # a broken link is a warning, and `make docs` ends on warnings
# Types in signatures are shown, not linked: the indices of most libraries are on the network.
nitpick_ignore_regex = [(r"py:.*", r".*")]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

highlight_language = "text"
smartquotes = False  # --option stays as typed

html_theme = "furo"
html_title = "mil"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("ArrayLike", "Bytes", "Floats", "RgbArray")}
napoleon_google_docstring = False
napoleon_use_rtype = False
maximum_signature_line_length = 80


def setup(app: Sphinx) -> None:
    """Show tables without highlighting."""
    app.add_lexer("csv", TextLexer)
