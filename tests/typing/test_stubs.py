"""The public stubs have the docstrings of the native modules."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name: str, path: Path) -> ModuleType:
    loader = SourceFileLoader(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


stubs = load("stubs", ROOT / "scripts" / "stubs")


@pytest.mark.parametrize(("path", "module"), [pytest.param(*pair, id=pair[1].__name__) for pair in stubs.stubs()])
def test_a_stub_has_the_docstrings_of_its_module(path: Path, module: ModuleType) -> None:
    assert [change.name for change in stubs.changes(path.read_text(), module)] == [], "run scripts/stubs"


def undocumented(name: str, class_name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    stub = ROOT / "src" / Path(*name.split(".")).with_suffix(".pyi")
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            if ast.get_docstring(node) is None:
                yield class_name
            for member, following in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                    if not member.name.startswith("_") and ast.get_docstring(member) is None:
                        yield member.name
                elif isinstance(member, ast.AnnAssign):
                    is_documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                    if isinstance(member.target, ast.Name) and not is_documented:
                        yield member.target.id


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("wshub.core.connection", "Connection"),
        ("wshub.core.connection", "ConnectionState"),
        ("wshub.core.hub_core", "HubCore"),
        ("wshub.core.queued", "Queued"),
        ("wshub.protocol.message", "Message"),
        ("wshub.protocol.message", "MessageType"),
        ("wshub.protocol.parser", "FrameParser"),
    ],
)
def test_every_public_member_of_a_native_class_has_a_docstring_in_its_stub(module: str, name: str) -> None:
    assert list(undocumented(module, name)) == []


SOURCE = '''
"""A module."""

def plain(): pass

class Thing:
    """A thing.

    It has \\\\ two paragraphs.
    """

    def __init__(self): pass

    def method(self):
        """Thing.method(self, value=(1, 2)) -> int

        Do it.
        """

    @property
    def value(self):
        """The value:

        in lines,
            indented.
        """

    def last(self):
        """Last."""

    def _private(self):
        """Private."""
'''

STUB = '''import enum

def plain() -> None: ...

class Thing:
    @property
    def value(self) -> int:
        """An older docstring."""
    size: int
    """The size, which has no docstring at run time."""

    def method(self, value: tuple[int, int] = ...) -> int: ...
    def _private(self) -> None: ...
    def last(
        self,
    ) -> None: ...
    def gone(self) -> None: ...
'''

UPDATED = '''"""A module."""

import enum

def plain() -> None: ...

class Thing:
    r"""A thing.

    It has \\ two paragraphs.
    """

    @property
    def value(self) -> int:
        """The value:

        in lines,
            indented.
        """
    size: int
    """The size, which has no docstring at run time."""

    def method(self, value: tuple[int, int] = ...) -> int:
        """Do it."""
    def _private(self) -> None: ...
    def last(
        self,
    ) -> None:
        """Last."""
    def gone(self) -> None: ...
'''


def test_the_script_puts_the_docstrings_of_a_module_into_its_stub() -> None:
    module = ModuleType("thing")
    exec(SOURCE, module.__dict__)
    assert [change.name for change in stubs.changes(STUB, module)] == [
        "thing",
        "thing.Thing",
        "thing.Thing.value",
        "thing.Thing.method",
        "thing.Thing.last",
    ]
    assert stubs.updated(STUB, module) == UPDATED
    assert stubs.updated(UPDATED, module) == UPDATED
    assert stubs.changes(UPDATED, module) == []
