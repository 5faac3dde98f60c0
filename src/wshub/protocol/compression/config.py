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
    """Settings of a hub's compression. Immutable; an invalid value raises ``ConfigurationError``.

    With the defaults, no connection keeps a state of its own between messages. All connections of a hub share one
    decompressing state, and one compressing state for each window size in use.
    """

    engine: Literal["auto", "zlib", "isal"] = "auto"
    """The library that compresses messages without references to others. ``"isal"`` is Intel's ISA-L, for levels up to
    3, if wshub was built with it. ``"auto"`` uses it if it is available.

    zlib does everything else. ISA-L takes half the time of zlib or less, for nearly the same bytes.
    """

    level: int = 2
    """The effort to find repetitions, from 1 (fastest) to 9 (smallest), as in zlib.

    A higher level takes more CPU time, and makes messages a little smaller.
    """

    memory_level: int = 5
    """The memory of one compressing state beside its window, 1 to 9, as in zlib: 2**(memory_level + 9) bytes.

    More memory finds more repetitions. The hub has one state for each window size in use, so this matters mostly with
    ``server_context_takeover``.
    """

    server_max_window_bits: int = 15
    """The base-2 logarithm of the hub's window in bytes. A client may ask for less, and gets it.

    A smaller window takes less memory at the client, and finds fewer repetitions.
    """

    client_max_window_bits: int = 15
    """The same for messages from clients that let the server choose.

    It bounds the memory of a connection with ``client_context_takeover``. Without that, there is little to gain from
    less.
    """

    server_context_takeover: bool = False
    """Whether each connection keeps a compressing state, so that messages to it alone can refer to earlier ones.

    Messages become smaller; each state takes about 2**(server_max_window_bits + 2) + 2**(memory_level + 9) bytes. A
    room with ``compression="shared"`` has the same effect for broadcasts, with one state for all members.
    """

    client_context_takeover: bool = False
    """Whether clients may refer to their earlier messages.

    Clients send fewer bytes. Each connection keeps a decompressing state of about 2**client_max_window_bits + 7,000
    bytes.
    """

    threshold: int = 256
    """Messages of fewer bytes are sent plain: they gain little.

    A lower threshold saves a few bytes of short messages, and costs CPU time for each.
    """

    def __post_init__(self) -> None:
        for name, (smallest, largest) in _RANGES.items():
            object.__setattr__(self, name, check_integer(name, getattr(self, name), smallest, largest))
        object.__setattr__(self, "engine", check_choice("engine", self.engine, ("auto", "zlib", "isal")))
        for name in ("server_context_takeover", "client_context_takeover"):
            check_bool(name, getattr(self, name))
