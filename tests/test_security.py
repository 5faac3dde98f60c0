"""The tests that SECURITY.md names exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
TEXT = (ROOT / "SECURITY.md").read_text()
HEADING = " tests, below `tests/` "
MENTION = re.compile(r"`([^`]+)`|\*([^*]+)\*")


def cells() -> Iterator[str]:
    """Yield the last cell of each row, for tables whose last column names tests."""
    names_tests = False
    for line in TEXT.splitlines():
        if not line.startswith("|"):
            names_tests = False
            continue
        cell = line.split("|")[-2]
        if cell == HEADING:
            names_tests = True
        elif names_tests and cell.strip() != "---":
            yield cell


def test_every_test_that_is_named_exists() -> None:
    named = 0
    for cell in cells():
        source = None
        for path, pattern in MENTION.findall(cell):
            if path:
                place = TESTS / path if (TESTS / path).exists() else ROOT / path
                assert place.exists(), path
                source = place.read_text() if place.is_file() else None
                continue
            assert source is not None, (cell, pattern)
            expression = r"\w*".join(re.escape(part) for part in pattern.split("…"))
            assert re.search(rf"def test_\w*?{expression}", source), (cell, pattern)
            named += 1
    assert named > 120
