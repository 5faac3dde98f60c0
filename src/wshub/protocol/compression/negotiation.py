"""The negotiation of permessage-deflate (RFC 7692 section 7.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from wshub.protocol.compression.config import CompressionConfig
from wshub.protocol.http.headers import is_token

__all__ = ["PermessageDeflate", "negotiate"]

_NAME = b"permessage-deflate"

# No sign, no leading zero (RFC 7692 section 7.1.2).
_WINDOW_BITS = {str(bits).encode(): bits for bits in range(8, 16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PermessageDeflate:
    """What a server and a client have agreed on (RFC 7692 section 7.1)."""

    server_no_context_takeover: bool = False
    """The server refers to nothing before the message that it sends, and the client need not keep it."""

    client_no_context_takeover: bool = False
    """The client refers to nothing before the message that it sends."""

    server_max_window_bits: int = 15
    """The server refers to nothing further back than 2**server_max_window_bits octets."""

    client_max_window_bits: int = 15
    """The client refers to nothing further back than 2**client_max_window_bits octets."""

    response: str = "permessage-deflate"
    """The value of Sec-WebSocket-Extensions that tells the client."""


def negotiate(config: CompressionConfig, values: Sequence[bytes]) -> PermessageDeflate | None:
    """Return what is agreed with a client whose request has these Sec-WebSocket-Extensions fields, or ``None``.

    The first offer that can be accepted is, in the client's order. One with a parameter that there is not, with one
    twice, or with a value that it cannot have, is declined, as RFC 7692 section 7.1 asks; so is one that cannot be read
    at all. Compression is an improvement: no handshake fails for the want of it.
    """
    return _negotiate(config, tuple(values)) if values else None


# A browser sends the same offer each time, and there are few browsers.
@lru_cache(maxsize=128)
def _negotiate(config: CompressionConfig, values: tuple[bytes, ...]) -> PermessageDeflate | None:
    for offer in _split(b",".join(values), b","):
        # There may be thousands that are not worth taking apart.
        if not offer.lstrip(b" \t").startswith(_NAME):
            continue
        name, *parameters = (part.strip(b" \t") for part in _split(offer, b";"))
        if name == _NAME:
            offered = _parse(parameters)
            if offered is not None:
                return _accept(config, offered)
    return None


def _split(text: bytes, separator: bytes) -> Iterator[bytes]:
    """Yield what stands between separators that are not within a quoted string (RFC 9110 section 5.6.4)."""
    pieces: list[bytes] = []
    quoted = False
    for piece in text.split(separator):
        pieces.append(piece)
        # A quote ends where it was opened, unless a backslash is before it; a value that needs one is none of ours.
        quoted ^= piece.count(b'"') % 2 == 1
        if not quoted:
            yield separator.join(pieces)
            pieces.clear()


def _parse(parameters: Sequence[bytes]) -> dict[bytes, int | None] | None:
    """Return the parameters of an offer with the window bits they have, or ``None`` for an offer to be declined."""
    offered: dict[bytes, int | None] = {}
    for parameter in parameters:
        name, equals, value = (part.strip(b" \t") for part in parameter.partition(b"="))
        if len(value) >= 2 and value.startswith(b'"') and value.endswith(b'"'):
            # The value within the quotes has to be a token all the same (RFC 6455 section 9.1).
            value = value[1:-1]
        if name in offered or (equals and not is_token(value)):
            return None
        if name in (b"server_no_context_takeover", b"client_no_context_takeover"):
            if equals:
                return None
            offered[name] = None
        elif name == b"client_max_window_bits" and not equals:
            offered[name] = 15
        elif name in (b"server_max_window_bits", b"client_max_window_bits"):
            if value not in _WINDOW_BITS:
                return None
            offered[name] = _WINDOW_BITS[value]
        else:
            return None
    return offered


def _accept(config: CompressionConfig, offered: dict[bytes, int | None]) -> PermessageDeflate:
    server_bits = min(config.server_max_window_bits, offered.get(b"server_max_window_bits") or 15)
    client_bits = min(config.client_max_window_bits, offered.get(b"client_max_window_bits") or 15)
    if b"client_max_window_bits" not in offered:
        # A client that does not name it cannot be told to use less (RFC 7692 section 7.1.2.2).
        client_bits = 15
    # A hub that keeps no history for a connection still does not promise to use none: a client that keeps its window
    # can take what a room compresses for all of its members.
    forgets = b"server_no_context_takeover" in offered
    client_forgets = b"client_no_context_takeover" in offered or not config.client_context_takeover

    response = [_NAME.decode()]
    if forgets:
        response.append("server_no_context_takeover")
    if client_forgets:
        response.append("client_no_context_takeover")
    if server_bits < 15 or b"server_max_window_bits" in offered:
        response.append(f"server_max_window_bits={server_bits}")
    if client_bits < 15:
        response.append(f"client_max_window_bits={client_bits}")
    return PermessageDeflate(
        server_no_context_takeover=forgets,
        client_no_context_takeover=client_forgets,
        server_max_window_bits=server_bits,
        client_max_window_bits=client_bits,
        response="; ".join(response),
    )
