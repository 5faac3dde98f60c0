"""The configuration of the documentation site. Build it with ``scripts/docs``."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

sys.path[:0] = [str(ROOT / "docs" / "_extensions"), str(ROOT / "src")]

import stub_modules  # noqa: E402

stub_modules.install("wshub")

import wshub  # noqa: E402
from wshub.core.hub_core import HubCore  # noqa: E402

# The native base of a hub takes any arguments. Those of Hub.__init__ are the ones to show.
del HubCore.__new__

project = "wshub"
language = "en"
version = release = wshub.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docstrings",
    "reference_tables",
    "repository_pages",
]
exclude_patterns = ["_extensions"]
source_suffix = {".md": "markdown"}

# Markdown
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
# Lines that the reader types have a prompt only in sessions of Python.
copybutton_prompt_text = ">>> "

# The reference
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: f"wshub.{name}" for name in ("SlowConsumer", "UpgradeHook")}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 80

# The look
html_theme = "furo"
html_title = f"wshub {release}"
html_static_path = ["_static"]
html_css_files = ["wshub.css"]
pygments_dark_style = "github-dark"
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e99", "color-brand-content": "#0b6e99"},
    "dark_css_variables": {"color-brand-primary": "#5cc8f0", "color-brand-content": "#5cc8f0"},
}
