"""The code of the documentation: each block is what it claims to be, and each program is run by a test.

The tests that drive the program of a page name the page: ``write_programs("fastapi.md", tmp_path)``.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wshub
from tests.support.pages import ROOT, Block, code_blocks, page, pages, programs, prose
from wshub import HubSettings
from wshub.cli.command_line import main as wshub_command

BLOCKS = [block for path in pages() for block in code_blocks(path)]

# The names that fragments use without an import.
KNOWN: dict[str, Any] = {"hub": wshub.Hub(), "connection": wshub.Connection, "message": wshub.Message}


def of_language(*languages: str) -> Any:
    found = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", found, ids=[block.place for block in found])


@of_language("python")
def test_python_is_valid_and_names_what_exists(block: Block) -> None:
    module = compile(block.text, block.place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
    assert list(wrong_names(module)) == []


def wrong_names(module: ast.AST) -> Iterator[str]:
    """Yield the imports, attributes and keywords that wshub does not have."""
    for node in ast.walk(module):
        match node:
            case ast.ImportFrom(module=str(name)) if name.partition(".")[0] == "wshub":
                for alias in node.names:
                    if not hasattr(importlib.import_module(name), alias.name):
                        yield f"from {name} import {alias.name}"
            case ast.Attribute(value=ast.Name(id=name)) if name in KNOWN and isinstance(node.ctx, ast.Load):
                if not hasattr(KNOWN[name], node.attr):
                    yield f"{name}.{node.attr}"
            case ast.Call(func=ast.Attribute(attr="enable_websocket")):
                names = {*HubSettings.__annotations__, "config", "on_upgrade", "broker", "name"}
                yield from (f"enable_websocket({word.arg}=)" for word in node.keywords if word.arg not in names)
            case ast.Call(func=ast.Name(id=name)) if isinstance(getattr(wshub, name, None), type):
                parameters = inspect.signature(getattr(wshub, name)).parameters
                yield from (f"{name}({word.arg}=)" for word in node.keywords if word.arg and word.arg not in parameters)


@of_language("sh", "console")
def test_commands_exist_and_have_these_options(block: Block) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        check_command(shlex.split(line.removeprefix("$ "), comments=True), block.path)


def check_command(words: list[str], path: Path) -> None:
    """Check a command if it is wshub's, a script of the repository, or installs wshub."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if not words:
        return
    command, *arguments = words
    if command.startswith("scripts/"):
        assert (ROOT / command).exists(), command
    command = command.rpartition("/")[2]
    if command in ("python", "python3") and arguments and arguments[0].endswith(".py"):
        assert arguments[0] in programs(path) or (ROOT / arguments[0]).exists(), arguments[0]
    elif command == "wshub" and arguments:
        name, *options = arguments
        # It raises UsageError for an option that does not exist.
        wshub_command.commands[name].make_context(name, options)
    elif command in ("pip", "uv") and "install" in arguments:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for argument in arguments:
            if found := re.fullmatch(r"wshub\[(.*)\]", argument):
                assert set(found[1].split(",")) <= set(extras), argument


@of_language("json", "toml", "ini")
def test_data_is_valid(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
    else:
        # systemd has a key several times.
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read_string(block.text)
        if command := parser.get("Service", "ExecStart", fallback=""):
            check_command(shlex.split(command), block.path)


def test_a_test_runs_the_program_of_each_page() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    with_programs = [path for path in pages() if any(name.endswith(".py") for name in programs(path))]
    assert [path for path in with_programs if not any(f'"{name}"' in tests for name in names_of(path))] == []


def names_of(path: Path) -> list[str]:
    """Return the names of a page that tests may use."""
    name = path.relative_to(ROOT / "docs") if path != ROOT / "README.md" else path.relative_to(ROOT)
    return [str(name), *([path.name] if name.parent.name in ("how-to", "topics") and page(path.name) == path else [])]


def test_every_block_has_a_language() -> None:
    assert [block.place for block in BLOCKS if not block.language] == []


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", prose(path)):
        target = path.parent / link if link else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), f"{link}#{anchor}"


def test_the_site_shows_every_example() -> None:
    shown = set()
    for path in (ROOT / "docs" / "examples").glob("*.md"):
        for name in re.findall(
            r"\{literalinclude\} (\S+)$|\{download\}`[^<]*<([^>]+)>`", path.read_text(), re.MULTILINE
        ):
            shown.add((path.parent / "".join(name)).resolve())
    files = {path for path in (ROOT / "examples").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert shown == {path for path in files if path.name != "README.md"}


def test_the_pictures_of_the_readme_exist() -> None:
    pictures = re.findall(r'\bsrc(?:set)?="([^"]+)"', (ROOT / "README.md").read_text())
    assert len(pictures) == 4
    assert [picture for picture in pictures if not (ROOT / picture).exists()] == []


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
