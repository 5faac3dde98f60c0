"""The pages of the documentation: the code, the programs and the tables in them.

A page has a name such as ``tutorial/rooms.md``. The folders ``how-to`` and ``topics`` may be left out.

A block whose first line names a file is a file of the page's program: ``# main.py``, ``// client.js`` or
``<!-- page.html -->``. Of several with one name, the last counts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tests.support.programs import ROOT

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
    """Return the page with a name."""
    candidates = [folder / name for folder in (ROOT, DOCS, DOCS / "how-to", DOCS / "topics")]
    found = next((path for path in candidates if path.exists()), None)
    assert found is not None, f"there is no page {name}"
    return found


def code_blocks(path: Path) -> list[Block]:
    """Return the blocks of a page, those with a language and the others."""
    text = path.read_text()
    return [
        Block(path, text.count("\n", 0, fence.start()) + 1, fence["language"], fence["text"])
        for fence in FENCE.finditer(text)
    ]


def blocks(name: str, language: str) -> list[str]:
    """Return the text of the blocks of a page in one language."""
    return [block.text for block in code_blocks(page(name)) if block.language == language]


def snippet(name: str, start: str) -> str:
    """Return the only Python block of a page that has a line with that start."""
    (found,) = [text for text in blocks(name, "python") if re.search(f"^{re.escape(start)}", text, re.MULTILINE)]
    return found


def programs(path: Path) -> dict[str, str]:
    """Return the files of a page's program, by their names."""
    return {block.file_name: block.text for block in code_blocks(path) if block.file_name is not None}


def program(name: str, file_name: str) -> str:
    """Return a file of a page."""
    return programs(page(name))[file_name]


def write_programs(name: str, directory: Path) -> dict[str, str]:
    """Write the files of a page into a directory, and return them."""
    found = programs(page(name))
    assert found, f"{name} has no program"
    for file_name, text in found.items():
        (directory / file_name).write_text(text)
    return found


def load(name: str, file_name: str, directory: Path) -> ModuleType:
    """Write a program of a page into a directory, and import it. A second call imports it once more."""
    path = directory / file_name
    path.write_text(program(name, file_name))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.asynccontextmanager
async def served(module: ModuleType) -> AsyncIterator[str]:
    """Serve the ``hub`` of a program with its ``handler`` on a free port. Yields the URL, without a path."""
    async with module.hub, module.hub.serve("127.0.0.1", 0, module.handler) as server:
        yield f"ws://127.0.0.1:{server.port}"


def rows(name: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    section = page(name).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def codes(cell: str) -> list[str]:
    """Return what a cell has between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def prose(path: Path) -> str:
    """Return the text of a page without its blocks."""
    return FENCE.sub("", path.read_text())
