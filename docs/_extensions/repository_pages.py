"""Shows files of the repository as pages of the site, and leads links to them there.

A page that has nothing but an include of such a file becomes that file. In every page, a link to a file in ``PAGES``
leads to its page: so the same link works in the repository and on the site.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent

# Files outside of docs, and their pages.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "benchmarks/README.md": "project/benchmarks.md",
}

INCLUDE = re.compile(r"\A```\{include\} (\S+)\n```\n\Z")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+\.md)")


def read_source(app: Sphinx, page: str, content: list[str]) -> None:
    """Put the text of a file in the place of its include, and change the links of the page."""
    folder = (DOCS / page).parent
    if included := INCLUDE.match(content[0]):
        path = Path(os.path.normpath(folder / included[1]))
        app.env.note_dependency(str(path))
        content[0], folder = path.read_text(), path.parent
    content[0] = LINK.sub(lambda link: f"]({site_link(folder, link[1])}", content[0])


def site_link(folder: Path, link: str) -> str:
    """Return where a link to a Markdown file leads on the site. `folder` has the file with the link."""
    path = Path(os.path.normpath(folder / link))
    if path.is_relative_to(DOCS):
        return f"/{path.relative_to(DOCS)}"
    return f"/{PAGES[str(path.relative_to(ROOT))]}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the event handler."""
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
