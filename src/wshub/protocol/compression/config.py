"""The settings of permessage-deflate (RFC 7692)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wshub.protocol.validation import check_bool, check_choice, check_integer

__all__ = ["CompressionConfig"]

_RANGES = {
    "level": (1, 9),
    "memory_level": (1, 9),
    "server_max_window_bits": (8, 15),
    "client_max_window_bits": (8, 15),
    "threshold": (0, 2**40),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionConfig:
    """How a hub compresses. Immutable; raises ``ConfigurationError`` when made with a value that cannot be.

    With the defaults no connection keeps any state of its own between messages: all of a hub compress with one state
    for each size of window in use, and decompress with one for all.
    """

    engine: Literal["auto", "zlib", "isal"] = "auto"
    """What compresses messages that refer to no other: ``"isal"`` is Intel's ISA-L, for levels up to 3, if wshub was
    built with it; ``"auto"`` takes it if it is there. All else is zlib's work."""

    level: int = 2
    """How hard to look for repetitions, 1 (fastest) to 9 (smallest), as in zlib."""

    memory_level: int = 5
    """The memory of one compressing state beside its window, 1 to 9, as in zlib: 2**(memory_level + 9) octets."""

    server_max_window_bits: int = 15
    """The base-2 logarithm of how many octets back the hub refers to. A client may ask for less, and gets it."""

    client_max_window_bits: int = 15
    """The same for what clients send, of those that let the server choose. It bounds what a connection with
    ``client_context_takeover`` keeps."""

    server_context_takeover: bool = False
    """Whether each connection keeps a compressing state, so that what is sent to it alone can refer to earlier
    messages: smaller messages, for about 2**(server_max_window_bits + 2) + 2**(memory_level + 9) octets each."""

    client_context_takeover: bool = False
    """Whether clients may refer to their earlier messages, for which each connection keeps a decompressing state of
    about 2**client_max_window_bits + 7,000 octets."""

    threshold: int = 256
    """Messages of fewer octets are sent plain: they gain little."""

    def __post_init__(self) -> None:
        for name, (smallest, largest) in _RANGES.items():
            object.__setattr__(self, name, check_integer(name, getattr(self, name), smallest, largest))
        object.__setattr__(self, "engine", check_choice("engine", self.engine, ("auto", "zlib", "isal")))
        for name in ("server_context_takeover", "client_context_takeover"):
            check_bool(name, getattr(self, name))
