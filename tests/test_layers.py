"""The layers import, and cimport, in one direction only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "wshub"
LAYERS = ["errors", "protocol", "links"]
# Each stands on the hub alone: nothing imports them, and they do not import one another.
AROUND = ["graphql"]
IMPORT = re.compile(r"^(?:from|import) +wshub\.(\w+)|^from +wshub +(?:c?import) +(\w+)", re.MULTILINE)


def test_what_is_around_the_hub_stands_on_it_alone() -> None:
    for name in AROUND:
        allowed = ["errors", "protocol", "links", "core", "hub", name]
        for path in sources(name):
            for match in IMPORT.finditer(path.read_text()):
                assert (match[1] or match[2]) in allowed, f"{path.relative_to(SOURCE)}: {match[0]}"


def sources(layer: str) -> list[Path]:
    place = SOURCE / layer
    if not place.is_dir():
        return [place.with_suffix(".py")]
    return sorted(path for path in place.rglob("*") if path.suffix in {".py", ".pyx", ".pxd", ".pyi"})


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_itself_and_those_below_it(layer: str) -> None:
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    for path in sources(layer):
        for match in IMPORT.finditer(path.read_text()):
            assert (match[1] or match[2]) in allowed, f"{path.relative_to(SOURCE)}: {match[0]}"


def test_nothing_of_the_core_needs_an_optional_dependency() -> None:
    for layer in ("errors", "protocol", "links", "core", "serving", "asgi", "hub"):
        for path in sources(layer):
            for name in ("starlette", "uvicorn", "httptools", "uvloop", "websockets"):
                assert not re.search(rf"^\s*(?:from|import) +{name}\b", path.read_text(), re.MULTILINE), path
