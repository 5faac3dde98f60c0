"""Programs and tables in the pages of the documentation."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return [text for name, text in BLOCK.findall((DOCS / page).read_text()) if name == language]


def program(page: str, name: str) -> str:
    """Return the block of a page that begins with the name of a file, such as ``# life.py``."""
    language, mark = ("js", "//") if name.endswith(".js") else ("python", "#")
    (found,) = [text for text in blocks(page, language) if text.startswith(f"{mark} {name}\n")]
    return found


def load(page: str, name: str, directory: Path) -> ModuleType:
    """Write a program of a page into a directory, and import it. A second call imports it once more."""
    path = directory / name
    path.write_text(program(page, name))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def snippet(page: str, start: str) -> str:
    """Return the only Python block of a page that has a line with that start."""
    (found,) = [text for text in blocks(page, "python") if re.search(f"^{re.escape(start)}", text, re.MULTILINE)]
    return found


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    section = (DOCS / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def codes(cell: str) -> list[str]:
    """Return what a cell has between backticks."""
    return re.findall(r"`([^`]+)`", cell)


@contextlib.asynccontextmanager
async def served(module: ModuleType) -> AsyncIterator[str]:
    """Serve the ``hub`` of a program with its ``handler`` on a free port. Yields the URL, without a path."""
    async with module.hub, module.hub.serve("127.0.0.1", 0, module.handler) as server:
        yield f"ws://127.0.0.1:{server.port}"
