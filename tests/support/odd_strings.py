"""Instances of subclasses of str and bytes, as applications have them."""

from __future__ import annotations

import enum
from typing import Any

__all__ = ["STRINGS", "Lobby", "Odd", "OddBytes", "SafeString"]


class Lobby(enum.StrEnum):
    NAME = "lobby"


class SafeString(str):
    """A str like Django's SafeString and markupsafe's Markup."""

    def __add__(self, other: str) -> SafeString:
        return SafeString(super().__add__(other))

    def __str__(self) -> SafeString:  # type: ignore[override]
        return self

    def __html__(self) -> SafeString:
        return self


class Odd(str):
    """A str whose methods all return false information. Only its characters count."""

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    def __len__(self) -> int:
        return 1

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return "odd"

    def __repr__(self) -> str:
        return "Odd"

    def encode(self, *arguments: Any, **options: Any) -> bytes:
        return b"odd"

    def lower(self) -> str:
        return "odd"

    def startswith(self, *arguments: Any) -> bool:
        return False


class OddBytes(bytes):
    def __len__(self) -> int:
        return 1

    def __bytes__(self) -> bytes:
        return b"odd"


STRINGS = ["lobby", Lobby.NAME, SafeString("lobby"), Odd("lobby")]
"""Return the same text four times."""
