"""Shows files of the repository as pages of the site, and leads links to them there.

A page that begins with an include of such a file has its text there. In every page, a link to a file in ``PAGES`` leads
to its page. So does a link to an example. So the same link works in the repository and on the site.
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
    "examples/README.md": "examples/index.md",
    "examples/grafana/README.md": "examples/grafana.md",
}

INCLUDE = re.compile(r"\A```\{include\} (\S+)\n```\n")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")
SHOWN = re.compile(r"^```\{literalinclude\} (\S+)$|\{download\}`[^<]*<([^>]+)>`", re.MULTILINE)


def example_pages() -> dict[str, str]:
    """Return the pages of the examples, by the files that they show."""
    found = {}
    for page in sorted((DOCS / "examples").glob("*.md")):
        for included, offered in SHOWN.findall(page.read_text()):
            path = Path(os.path.normpath(page.parent / (included or offered)))
            found.setdefault(str(path.relative_to(ROOT)), f"examples/{page.name}")
    return found


PAGES |= example_pages()


def read_source(app: Sphinx, page: str, content: list[str]) -> None:
    """Put the text of a file in the place of its include, and change the links of the page."""
    folder = (DOCS / page).parent
    if included := INCLUDE.match(content[0]):
        path = Path(os.path.normpath(folder / included[1]))
        app.env.note_dependency(str(path))
        content[0], folder = path.read_text() + content[0][included.end() :], path.parent
    content[0] = LINK.sub(lambda link: f"]({site_link(folder, link[1])}", content[0])


def site_link(folder: Path, link: str) -> str:
    """Return where a link to a file leads on the site. `folder` has the file with the link."""
    path = Path(os.path.normpath(folder / link))
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else ""
    if name not in PAGES and path.suffix != ".md":
        return link
    if path.is_relative_to(DOCS):
        return f"/{path.relative_to(DOCS)}"
    return f"/{PAGES[name]}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the event handler."""
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
