"""Directives of the reference: tables made from the source of wshub.

- ``{settings} wshub.HubConfig``: the fields of a dataclass, with default, meaning and trade-off.
- ``{command} serve``: the arguments and options of a command.
- ``{log-records}``: what wshub logs.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SOURCE = Path(__file__).resolve().parents[2] / "src"


class Table(SphinxDirective):
    """A directive whose content is a table of Markdown cells."""

    def table(
        self,
        titles: list[str],
        widths: list[int],
        rows: Sequence[Sequence[str | nodes.Node]],
        targets: list[str] | None = None,
    ) -> nodes.table:
        """Return a table. The first cell of each row is a target if it has a name in `targets`."""
        group = nodes.tgroup(cols=len(titles))
        group += [nodes.colspec(colwidth=width) for width in widths]
        group += nodes.thead("", self._row(titles))
        body = nodes.tbody()
        for number, cells in enumerate(rows):
            row = self._row(cells)
            if targets:
                self._add_target(row, targets[number])
            body += row
        group += body
        return nodes.table("", group, classes=["colwidths-given"])

    def _row(self, cells: Sequence[str | nodes.Node]) -> nodes.row:
        row = nodes.row()
        for cell in cells:
            entry = nodes.entry()
            if isinstance(cell, str):
                lines = StringList(cell.splitlines(), source=self.get_location())
                self.state.nested_parse(lines, self.content_offset, entry)
            else:
                entry += cell
            row += entry
        return row

    def _add_target(self, row: nodes.row, name: str) -> None:
        """Make a row what ``{py:attr}`` and the search find under a name."""
        row["ids"].append(name)
        self.state.document.note_explicit_target(row)
        domain = self.env.domains.python_domain
        domain.note_object(name, "attribute", name, location=row)


class Field(NamedTuple):
    """A documented field of a class."""

    name: str
    default: str
    docstring: str


def fields(name: str) -> list[Field]:
    """Return the fields of a dataclass, in the order of its source."""
    module_name, _, class_name = name.rpartition(".")
    cls = getattr(importlib.import_module(module_name), class_name)
    module = ast.parse(Path(inspect.getfile(cls)).read_text())
    definition = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    known = {field.name for field in dataclasses.fields(cls)}
    found = []
    for field, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.target.id in known:
            docstring = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                docstring = inspect.cleandoc(str(following.value.value))
            found.append(Field(field.target.id, default(field.value), docstring))
    return found


def default(value: ast.expr | None) -> str:
    """Return how a reader would write the default of a field."""
    if value is None:
        return "required"
    if isinstance(value, ast.Call):
        # field(default_factory=RateLimits)
        factories = [keyword.value for keyword in value.keywords if keyword.arg == "default_factory"]
        return f"{ast.unparse(factories[0])}()"
    return f"{value.value:,}".replace(",", "_") if _is_integer(value) else ast.unparse(value)


def _is_integer(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and type(value.value) is int


def setting(field: Field) -> nodes.Node:
    """Return a cell with the name and the default of a field. A long name may break at its underscores."""
    name = escape(field.name).replace("_", "_<wbr>")
    code = "".join(f'<p><code class="literal">{text}</code></p>' for text in (name, escape(field.default)))
    return nodes.raw("", code, format="html")


class Settings(Table):
    """Lists the fields of a dataclass. The first paragraph of a docstring is the meaning, the rest the trade-off."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        name = self.arguments[0]
        rows: list[list[str | nodes.Node]] = []
        for field in fields(name):
            meaning, _, trade_off = field.docstring.partition("\n\n")
            rows.append([setting(field), meaning, trade_off])
        targets = [f"{name}.{field.name}" for field in fields(name)]
        return [self.table(["setting, default", "meaning", "trade-off"], [22, 40, 38], rows, targets)]


def markdown(text: str) -> str:
    """Return the help text of a command as Markdown, with the options as code."""
    text = re.sub(r"([\[*<])", r"\\\1", text)
    return re.sub(r"(?<![\w`-])(--?[a-z][\w-]*)", r"``\1``", text)


class Command(Table):
    """Lists the arguments and options of a command of ``wshub``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the usage and the table."""
        import click

        from wshub.cli.command_line import main

        command = main.commands[self.arguments[0]]
        context = click.Context(command, info_name=f"wshub {self.arguments[0]}", max_content_width=100)
        usage = command.get_usage(context).removeprefix("Usage: ")
        rows = []
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None and record[1]:
                # [env var: ...; default: ...] stays text.
                options, text = record
                rows.append([f"``{options}``", markdown(text)])
        help_text = nodes.container()
        lines = StringList(markdown(command.help or "").splitlines(), source=self.get_location())
        self.state.nested_parse(lines, self.content_offset, help_text)
        return [
            nodes.literal_block(usage, usage, language="text"),
            *help_text.children,
            self.table(["option", "meaning"], [35, 65], rows),
        ]


LEVELS = ("debug", "info", "warning", "error", "exception", "critical")


class LogRecord(NamedTuple):
    """A call that logs."""

    logger: str
    level: str
    message: str


CALL = re.compile(rf"\blogger\.({'|'.join(LEVELS)})\(\s*")
NAME = re.compile(r"^logger = logging\.getLogger\(\"([\w.]+)\"\)", re.MULTILINE)
STRING = re.compile(r"\s*(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')")


def log_records() -> list[LogRecord]:
    """Return what the package logs, found in its source: Cython has no syntax tree."""
    found = set()
    for path in sorted(SOURCE.rglob("*.py*")):
        text = path.read_text() if path.suffix in (".py", ".pyx") else ""
        named = NAME.search(text)
        if named is None or "testing" in path.parts:
            continue
        for call in CALL.finditer(text):
            level = {"exception": "error"}.get(call[1], call[1])
            message = "".join(_strings(text, call.end()))
            if message:
                found.add(LogRecord(named[1], level.upper(), message))
    return sorted(found, key=lambda record: (record.logger, -LEVELS.index(record.level.lower()), record.message))


def _strings(text: str, start: int) -> Iterator[str]:
    """Yield the literals of a string that may be written as several."""
    while literal := STRING.match(text, start):
        yield ast.literal_eval(literal[1])
        start = literal.end()


class LogRecords(Table):
    """Lists what wshub logs, with the logger and the level."""

    option_spec = {"logger": directives.unchanged_required}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Return the table of one logger."""
        rows = [
            [record.level, f"``{record.message}``"]
            for record in log_records()
            if record.logger == self.options["logger"]
        ]
        return [self.table(["level", "message"], [15, 85], rows)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("settings", Settings)
    app.add_directive("command", Command)
    app.add_directive("log-records", LogRecords)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
