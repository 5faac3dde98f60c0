"""The pages of the documentation, and the blocks of code in them.

A block whose first line is a comment with a file name is a file of the page's program: ``# main.py``, or
``<!-- chat.html -->``. If a page has a file twice, the later one counts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

FENCE = re.compile(
    r"^(?P<fence>```+|:::+)(?P<language>\{?[\w-]*\}?)[^\n]*\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL
)
FILE = re.compile(r"\A(?:#|//|<!--) (?P<name>[\w./-]+\.\w+|Dockerfile|Caddyfile)(?: -->)?\n")


class Block(NamedTuple):
    """A block of code of a page."""

    path: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The name of the file that the block is, or None."""
        found = FILE.match(self.text)
        return found["name"] if found else None


def pages() -> list[Path]:
    """Return every page for users. The pages of the design are for people who change wshub."""
    found = [path for path in DOCS.rglob("*.md") if "design" not in path.relative_to(DOCS).parts]
    return [ROOT / "README.md", *sorted(found)]


def page(name: str) -> Path:
    """Return the page with a name such as ``tutorial/rooms.md``. The folders of guides and topics may be left out."""
    candidates = [ROOT / name, DOCS / name, DOCS / "how-to" / name, DOCS / "topics" / name]
    found = next((path for path in candidates if path.exists()), None)
    assert found is not None, f"there is no page {name}"
    return found


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page, those with a language and the others."""
    text = path.read_text()
    return [
        Block(path, text.count("\n", 0, fence.start()) + 1, fence["language"], fence["text"])
        for fence in FENCE.finditer(text)
    ]


def programs(path: Path) -> dict[str, str]:
    """Return the files of a page's program, by their names."""
    return {block.file_name: block.text for block in blocks(path) if block.file_name is not None}


def write_programs(name: str, directory: Path) -> dict[str, str]:
    """Write the files of a page into a directory, and return them."""
    found = programs(page(name))
    assert found, f"{name} has no program"
    for file_name, text in found.items():
        (directory / file_name).parent.mkdir(parents=True, exist_ok=True)
        (directory / file_name).write_text(text)
    return found


def prose(path: Path) -> str:
    """Return the text of a page without its blocks."""
    return FENCE.sub("", path.read_text())
