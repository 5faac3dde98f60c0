"""The reference has every public name, setting, event, logger and command."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import wshub
from tests.support.pages import DOCS, ROOT, code_blocks, pages
from wshub.cli.command_line import main as wshub_command
from wshub.core.handler_checks import EVENTS

sys.path.append(str(DOCS / "_extensions"))

import reference_tables

REFERENCE = {path.name: path.read_text() for path in sorted((DOCS / "reference").glob("*.md"))}
TEXT = "".join(REFERENCE.values())

# What applications import.
MODULES = [
    "wshub",
    "wshub.app",
    "wshub.brokers.interface",
    "wshub.brokers.memory",
    "wshub.brokers.nats",
    "wshub.brokers.redis",
    "wshub.brokers.workers",
    "wshub.django",
    "wshub.errors",
    "wshub.graphql",
    "wshub.publisher",
    "wshub.publisher.http",
    "wshub.testing.check_broker",
    "wshub.uvicorn",
    "wshub.uvicorn.protocol",
    *(name for name in ("wshub.health", "wshub.metrics", "wshub.tracing") if importlib.util.find_spec(name)),
]
SETTINGS = [
    wshub.HubConfig,
    wshub.RateLimits,
    wshub.RoomConfig,
    wshub.CompressionConfig,
    wshub.HistoryConfig,
    wshub.PresenceConfig,
]


def resolved(name: str) -> Any:
    """Return the object with a dotted name."""
    module_name, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module_name), attribute)


def documented() -> dict[str, Any]:
    """Return every object that a directive of the reference documents, by its name."""
    found = {}
    for name in re.findall(r"^\.\. auto(?:class|exception|function|data):: ([\w.]+)(?:\(.*\))?$", TEXT, re.MULTILINE):
        # A page with currentmodule names what wshub exports.
        name = name if name.startswith("wshub.") else f"wshub.{name}"
        found[name] = resolved(name)
    for name in re.findall(r"^\.\. automodule:: ([\w.]+)\n   :members:$", TEXT, re.MULTILINE):
        module = importlib.import_module(name)
        found |= {f"{name}.{public}": getattr(module, public) for public in module.__all__}
    return found


DOCUMENTED = documented()


def is_documented(value: Any, *names: str) -> bool:
    return any(name in DOCUMENTED for name in names) or any(value is known for known in DOCUMENTED.values())


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_of_a_module_is_in_the_reference(name) -> None:
    module = importlib.import_module(name)
    public = {public: getattr(module, public) for public in module.__all__}
    missing = [
        public
        for public, value in public.items()
        if not is_documented(value, f"{name}.{public}") and not isinstance(value, ModuleType)
    ]
    assert missing == ([] if name != "wshub" else [public for public in missing if public == "__version__"])


def imports_of_pages() -> Iterator[tuple[str, str]]:
    texts = [block.text for path in pages() for block in code_blocks(path) if block.language == "python"]
    texts += [path.read_text() for path in (ROOT / "examples").rglob("*.py")]
    for text in texts:
        module = compile(text, "page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "wshub":
                yield from ((node.module or "", alias.name) for alias in node.names)


def test_what_pages_and_examples_import_is_in_the_reference() -> None:
    missing = [
        f"{module}.{name}"
        for module, name in sorted(set(imports_of_pages()))
        if not is_documented(getattr(importlib.import_module(module), name), f"{module}.{name}")
    ]
    assert missing == []


# Members of a hub for the packages of wshub.
PRIVATE = {
    "bind",
    "can_adopt",
    "cancel_opening",
    "close_and_raise",
    "drop_compression",
    "fail_connection",
    "hurry_closing",
    "is_exiting",
    "join_nodes",
    "now",
    "on_upgrade",
    "open_on_descriptor",
    "open_on_link",
    "register_connection",
    "servers",
    "waiting_handlers",
    "waits",
    "wants_address",
}


@pytest.mark.parametrize("cls", [wshub.Hub, wshub.Connection])
def test_every_member_is_listed_in_a_section(cls) -> None:
    listed = re.findall(rf"^\.\. auto\w+:: {cls.__name__}\.(\w+)$", TEXT, re.MULTILINE)
    assert len(listed) == len(set(listed))
    members = {name for name in dir(cls) if not name.startswith("_")}
    assert members - PRIVATE - set(listed) == set()


def test_every_field_of_a_configuration_has_a_meaning_and_a_trade_off() -> None:
    for config in SETTINGS:
        name = f"wshub.{config.__name__}"
        assert f"```{{settings}} {name}\n" in REFERENCE["settings.md"]
        fields = reference_tables.fields(name)
        assert [field.name for field in fields] == [field.name for field in dataclasses.fields(config)]
        without = [field.name for field in fields if not all(field.docstring.partition("\n\n"))]
        assert without == [], "give the docstring two paragraphs: the meaning, the trade-off"


def test_every_dataclass_of_settings_is_in_the_table() -> None:
    configs = [
        value for name in wshub.__all__ if name.endswith(("Config", "Limits")) and (value := getattr(wshub, name))
    ]
    assert set(configs) == set(SETTINGS)


def test_the_events_are_described() -> None:
    described = re.findall(r"^- ``(\w+)\(", inspect.getdoc(wshub.EventHandler) or "", re.MULTILINE)
    assert described == list(EVENTS)


def test_every_logger_has_a_table() -> None:
    loggers = {record.logger for record in reference_tables.log_records()}
    assert loggers == set(re.findall(r"^:logger: ([\w.]+)$", REFERENCE["logs.md"], re.MULTILINE))


def test_every_command_has_a_table() -> None:
    commands = re.findall(r"^```\{command\} (\w+)$", REFERENCE["commands.md"], re.MULTILINE)
    assert sorted(commands) == sorted(wshub_command.commands)


def test_the_pages_of_the_reference_are_listed_in_its_index() -> None:
    for name in REFERENCE:
        assert name == "index.md" or f"]({name})" in REFERENCE["index.md"], name
