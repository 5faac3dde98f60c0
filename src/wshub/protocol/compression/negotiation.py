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
    """The parameters that a server and a client have agreed on (RFC 7692 section 7.1)."""

    server_no_context_takeover: bool = False
    """The server's messages do not refer to earlier ones, so the client need not keep them."""

    client_no_context_takeover: bool = False
    """The client's messages do not refer to earlier ones."""

    server_max_window_bits: int = 15
    """The server refers back at most 2**server_max_window_bits bytes."""

    client_max_window_bits: int = 15
    """The client refers back at most 2**client_max_window_bits bytes."""

    response: str = "permessage-deflate"
    """The value of Sec-WebSocket-Extensions in the response."""


def negotiate(config: CompressionConfig, values: Sequence[bytes]) -> PermessageDeflate | None:
    """Return the agreement with a client whose request has these Sec-WebSocket-Extensions fields, or ``None``.

    The first valid offer counts, in the client's order. Offers with an unknown or repeated parameter or an invalid
    value are declined, as RFC 7692 section 7.1 asks. So are malformed ones. Compression is optional: without an
    agreement the handshake goes on.
    """
    return _negotiate(config, tuple(values)) if values else None


# A browser sends the same offer each time, and there are few browsers.
@lru_cache(maxsize=128)
def _negotiate(config: CompressionConfig, values: tuple[bytes, ...]) -> PermessageDeflate | None:
    for offer in _split(b",".join(values), b","):
        # There may be thousands of other offers: they are not parsed.
        if not offer.lstrip(b" \t").startswith(_NAME):
            continue
        name, *parameters = (part.strip(b" \t") for part in _split(offer, b";"))
        if name == _NAME:
            offered = _parse(parameters)
            if offered is not None:
                return _agree(config, offered)
    return None


def _split(text: bytes, separator: bytes) -> Iterator[bytes]:
    """Yield the parts between separators that are not within a quoted string (RFC 9110 section 5.6.4)."""
    pieces: list[bytes] = []
    quoted = False
    for piece in text.split(separator):
        pieces.append(piece)
        # Every second quote ends a string. A backslash before it would not, but no valid value needs one.
        quoted ^= piece.count(b'"') % 2 == 1
        if not quoted:
            yield separator.join(pieces)
            pieces.clear()


def _parse(parameters: Sequence[bytes]) -> dict[bytes, int | None] | None:
    """Return the parameters of an offer with their window bits, or ``None`` if the offer must be declined."""
    offered: dict[bytes, int | None] = {}
    for parameter in parameters:
        name, equals, value = (part.strip(b" \t") for part in parameter.partition(b"="))
        if len(value) >= 2 and value.startswith(b'"') and value.endswith(b'"'):
            # A quoted value must be a token too (RFC 6455 section 9.1).
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


def _agree(config: CompressionConfig, offered: dict[bytes, int | None]) -> PermessageDeflate:
    server_bits = min(config.server_max_window_bits, offered.get(b"server_max_window_bits") or 15)
    client_bits = min(config.client_max_window_bits, offered.get(b"client_max_window_bits") or 15)
    if b"client_max_window_bits" not in offered:
        # A client that does not offer it cannot be told to use less (RFC 7692 section 7.1.2.2).
        client_bits = 15
    # A hub without history for a connection does not promise to use none. A client that keeps its window can then
    # receive the messages that a room compresses once for all of its members.
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
