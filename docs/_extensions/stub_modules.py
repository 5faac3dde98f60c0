"""Document native modules from their stubs, which have the docstrings, the signatures and the types.

``scripts/stubs --check`` and stubtest hold that the stubs agree with the native modules. So the site can be built
without a compiler.
"""

from __future__ import annotations
import __future__

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType


class StubLoader(importlib.machinery.SourceFileLoader):
    """Loads a ``.pyi`` file as a module."""

    def source_to_code(self, data: bytes, path: str, *, _optimize: int = -1) -> object:  # type: ignore[override]
        """Compile a stub. Names that it uses before they are defined stay text, as type checkers read them."""
        return compile(data, path, "exec", flags=__future__.annotations.compiler_flag, optimize=_optimize)


class StubFinder(importlib.abc.MetaPathFinder):
    """Finds the stub of a native module of one package, before the import system finds the module itself."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a stub, or None if the module is not native."""
        if path is None or name.partition(".")[0] != self._package:
            return None
        for directory in map(Path, path):
            stub = directory / f"{name.rpartition('.')[2]}.pyi"
            if stub.exists() and not stub.with_suffix(".py").exists():
                return importlib.util.spec_from_file_location(name, stub, loader=StubLoader(name, str(stub)))
        return None


def install(package: str) -> None:
    """Import the native modules of a package from their stubs from now on."""
    if any(name.partition(".")[0] == package for name in sys.modules):
        raise RuntimeError(f"{package} is imported already: install() must come first")
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, StubFinder(package))
