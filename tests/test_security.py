"""SECURITY.md names tests: they are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "SECURITY.md").read_text()
MENTION = re.compile(r"`((?!tests/)\w+/(?:test_\w+\.py)?)`(?:: ((?:\*[^*]+\*(?:, )?)+))?")


def test_every_test_that_is_named_exists() -> None:
    named = 0
    for path, patterns in MENTION.findall(TEXT):
        assert (TESTS / path).exists(), path
        for pattern in re.findall(r"\*([^*]+)\*", patterns):
            source = (TESTS / path).read_text()
            expression = r"\w*".join(re.escape(part) for part in pattern.split("…"))
            assert re.search(rf"def test_\w*?{expression}", source), (path, pattern)
            named += 1
    assert named > 80
