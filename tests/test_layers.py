"""Modules import in one direction. Each package imports only allowed packages, and there are no import cycles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"

# The parts of wshub that each package, or each module at the top, may import. Imports for types count too.
ALLOWED = {
    "errors": set(),
    "protocol": {"errors"},
    "links": {"errors", "protocol"},
    "brokers": {"errors", "protocol", "links"},
    "core": {"errors", "protocol", "links", "brokers"},
    "serving": {"errors", "protocol", "links", "core"},
    "asgi": {"errors", "protocol", "links", "core"},
    "hub": {"errors", "protocol", "links", "brokers", "core", "serving", "asgi"},
    "app": {"errors", "protocol", "links", "brokers", "core", "asgi", "hub", "uvicorn"},
    "uvicorn": {"errors", "protocol", "links", "brokers", "core", "serving", "asgi", "hub"},
    "graphql": {"errors", "protocol", "core", "hub"},
    "cli": {"errors", "brokers", "publisher", "uvicorn"},
    "__main__": {"cli"},
    "health": {"errors", "core", "hub"},
    "metrics": {"errors", "core", "hub", "metrics_table"},
    "metrics_table": {"core"},
    "tracing": {"errors", "protocol", "core", "hub"},
    "publisher": {"errors", "protocol", "links", "brokers", "core", "hub"},
    "django": {"errors", "protocol", "links", "brokers", "publisher"},
    "testing": {"errors", "protocol", "links", "brokers"},
    "__init__": {"errors", "protocol", "brokers", "core", "serving", "hub"},
}

OPTIONAL = {
    "channels",
    "click",
    "django",
    "graphql",
    "hiredis",
    "httptools",
    "msgspec",
    "nats",
    "opentelemetry",
    "orjson",
    "prometheus_client",
    "starlette",
    "uvicorn",
    "uvloop",
}
WITHOUT_DEPENDENCIES = ["errors", "protocol", "links", "brokers.interface", "core", "serving", "asgi", "hub"]

CYTHON_IMPORT = re.compile(r"^\s*(?:from +([\w.]+) +c?import +(\([^)]*\)|[^\n]*)|c?import +([\w.]+))", re.MULTILINE)


def module_of(path: Path) -> str:
    """Return the dotted name of a module. Its stub and its declarations have the same name."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(path for path in (SOURCE / "wshub").rglob("*") if path.suffix in {".py", ".pyi", ".pyx", ".pxd"})
MODULES = {module_of(path) for path in FILES}


def imported_names(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each import of a file: the module, and the names from it."""
    text = path.read_text()
    if path.suffix in {".py", ".pyi"}:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from ((alias.name, []) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports must be absolute"
                yield node.module or "", [alias.name for alias in node.names]
    else:
        for match in CYTHON_IMPORT.finditer(re.sub(r'"""[\s\S]*?"""', "", text)):
            if match[3]:
                yield match[3], []
            else:
                yield match[1], re.findall(r"\w+", match[2])


def imports_of(path: Path) -> set[str]:
    """Return the modules of wshub that a file imports."""
    found = set()
    for module, names in imported_names(path):
        if module.split(".")[0] == "wshub":
            submodules = {f"{module}.{name}" for name in names} & MODULES
            found |= submodules or {module}
    return found


GRAPH: dict[str, set[str]] = {name: set() for name in MODULES}
for file in FILES:
    GRAPH[module_of(file)] |= imports_of(file) - {module_of(file)}


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("package", sorted({package_of(module) for module in MODULES}))
def test_a_package_imports_only_what_is_below_it(package: str) -> None:
    allowed = ALLOWED[package] | {package}
    wrong = [
        f"{module} imports {imported}"
        for module, imports in sorted(GRAPH.items())
        if package_of(module) == package
        for imported in sorted(imports)
        if package_of(imported) not in allowed
    ]
    assert wrong == []


def circles() -> list[list[str]]:
    """Return the strongly connected components with more than one module (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for imported in GRAPH.get(module, ()):
            if imported not in index:
                visit(imported)
                low[module] = min(low[module], low[imported])
            elif imported in stack:
                low[module] = min(low[module], index[imported])
        if low[module] == index[module]:
            part = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(part) > 1:
                found.append(sorted(part))

    for module in sorted(GRAPH):
        if module not in index:
            visit(module)
    return found


def test_no_module_is_in_a_circle() -> None:
    assert circles() == []


def test_nothing_of_the_core_needs_an_optional_dependency() -> None:
    for path in FILES:
        if package_of(module_of(path)) in WITHOUT_DEPENDENCIES:
            for module, _ in imported_names(path):
                optional = module.split(".")[0] in OPTIONAL
                assert not optional or is_tried(path, module), f"{path} imports {module}"


def is_tried(path: Path, module: str) -> bool:
    """Return whether the import is in a function or a `try`, as it must be for an optional package."""
    return bool(re.search(rf"^ +(?:from|import) +{re.escape(module)}\b", path.read_text(), re.MULTILINE))
