"""Changes to the text of a documented program or configuration, so that a test can run it."""

from __future__ import annotations

from collections.abc import Mapping


def replaced(text: str, replacements: Mapping[str, str]) -> str:
    """Return the text with some parts replaced. Each of them must be there."""
    for part, new in replacements.items():
        assert part in text, part
        text = text.replace(part, new)
    return text
