"""The tables of the pages on migrating name what exists, and the defaults of both sides."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from engineio.base_server import BaseServer
from websockets.asyncio.server import serve

from tests.support.pages import codes, page, rows
from wshub import Connection, Hub, HubConfig

PAGES = ["from-websockets.md", "from-fastapi-websocket.md", "from-channels.md", "from-socketio.md"]
TABLE = "What takes the place of what"

# A setting in a table, with its default.
SETTING = re.compile(r"([a-z_]+)=(\d[\d_]*)")


def cells(name: str, column: int) -> Iterator[str]:
    """Yield the code in a column of the tables of a page."""
    lines = [line for line in page(name).read_text().splitlines() if line.startswith("|") and "---" not in line]
    for line in lines:
        yield from codes(line.strip("|").split(" | ")[column])


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_name_what_a_hub_and_a_connection_have(name: str) -> None:
    ours = list(cells(name, 1))
    for kind, owner in (("hub", Hub), ("connection", Connection)):
        named = {attribute for code in ours for attribute in re.findall(rf"\b{kind}\.(\w+)", code)}
        assert named, kind
        assert sorted(attribute for attribute in named if not hasattr(owner, attribute)) == []
    assert rows(name, TABLE)


def defaults(function: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("from-websockets.md", defaults(serve)),
        ("from-socketio.md", defaults(BaseServer)),
    ],
)
def test_the_tables_have_the_defaults_of_both(name: str, theirs: dict[str, Any]) -> None:
    ours = {field.name: field.default for field in dataclasses.fields(HubConfig)}
    for column, known in ((0, theirs), (1, ours)):
        settings = dict(SETTING.findall(" ".join(cells(name, column))))
        assert len(settings) >= 3
        assert {setting: ast.literal_eval(value) for setting, value in settings.items()} == {
            setting: known[setting] for setting in settings
        }
