"""Admits requests to a hub: origins, limits of connections and of their rates, and client addresses."""

from __future__ import annotations

import ipaddress
import logging
import string
from collections.abc import Callable, Sequence
from typing import Any

from wshub.core.config import HubConfig
from wshub.core.limit_log import LimitLog
from wshub.core.refusals import (
    TOO_MANY_CONNECTIONS,
    TOO_MANY_FROM_ADDRESS,
    TOO_MANY_NEW,
    TOO_MANY_NEW_FROM_ADDRESS,
)
from wshub.errors import HandshakeError
from wshub.protocol.handshake.origin import check_origin
from wshub.protocol.http.headers import Headers, split_list

__all__ = ["UNKNOWN_ADDRESS", "Admission", "client_address", "forwarded_address", "is_address"]

logger = logging.getLogger("wshub.server")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ZONE_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-._")

UNKNOWN_ADDRESS = ("unknown", 0)
"""Stands for every client whose address a trusted proxy does not tell. The text in its place may be forged."""


class Admission:
    """Admits requests to a hub, and counts the connections of each address.

    An IPv4 address is counted as it is. Of an IPv6 address the first 64 bits are counted: one customer of a network has
    at least those. A peer without an address, as on a Unix socket, is not counted.
    """

    def __init__(self, config: HubConfig, clock: Callable[[], float], limit_log: LimitLog) -> None:
        self._config = config
        self._clock = clock
        self._limit_log = limit_log
        self._all = AddressRates(config.max_connection_rate)
        self._each = AddressRates(config.max_connection_rate_per_address)
        self._connections: dict[str, int] = {}
        self._warned = False
        self.needs_address = bool(config.max_connections_per_address or config.max_connection_rate_per_address)

    def check(self, headers: Headers, address: object, connections: int) -> None:
        """Return if a request from that address may become one more connection.

        Raises ``HandshakeError``: 403 for its origin, 429 for a limit of its address, 503 for a limit of the hub.
        """
        config = self._config
        if config.allowed_origins:
            check_origin(headers, config.allowed_origins, allow_missing=config.allow_missing_origin)
        elif not self._warned:
            self._warn_about_origins(headers)
        self.check_capacity(address, connections)
        if config.max_connection_rate_per_address:
            key = address_bucket(address)
            if key is not None and not self._each.take(key, self._clock()):
                self._limit_log.reached("max_connection_rate_per_address")
                raise HandshakeError(*TOO_MANY_NEW_FROM_ADDRESS)
        if config.max_connection_rate and not self._all.take("", self._clock()):
            self._limit_log.reached("max_connection_rate")
            raise HandshakeError(*TOO_MANY_NEW)

    def check_capacity(self, address: object, connections: int) -> None:
        """Return if there is capacity for one more connection, from that address.

        Raises ``HandshakeError`` if not: 503 or, if the address has no more capacity, 429.
        """
        config = self._config
        if connections >= config.max_connections:
            self._limit_log.reached("max_connections")
            raise HandshakeError(*TOO_MANY_CONNECTIONS)
        if config.max_connections_per_address:
            key = address_bucket(address)
            if key is not None and self._connections.get(key, 0) >= config.max_connections_per_address:
                self._limit_log.reached("max_connections_per_address")
                raise HandshakeError(*TOO_MANY_FROM_ADDRESS)

    def enter(self, address: object) -> str | None:
        """Count a connection from that address. Returns the key for ``leave``; None if the address is not counted."""
        key = address_bucket(address)
        if key is not None:
            self._connections[key] = self._connections.get(key, 0) + 1
        return key

    def leave(self, key: str) -> None:
        """Count the end of a connection that was counted."""
        left = self._connections[key] - 1
        if left:
            self._connections[key] = left
        else:
            del self._connections[key]

    def sweep(self) -> None:
        """Forget the rates of addresses whose buckets are full again."""
        self._each.forget(self._clock())

    def _warn_about_origins(self, headers: Headers) -> None:
        """Warn once, at the first sign, that any page can use the sessions of this server's users."""
        if not headers.get_all_raw(b"cookie"):
            return
        origins = headers.get_all_raw(b"origin")
        host = headers.get_all_raw(b"host")
        if not origins or (host and origins[0].partition(b"://")[2].lower() == host[0].lower()):
            return
        self._warned = True
        logger.warning(
            "a page of another origin has connected, with a cookie: if cookies authenticate, set allowed_origins to "
            'the origins of your pages, or to ("*",) if any page may use the sessions of your users'
        )


class AddressRates:
    """Token buckets, one for each key. The tokens of one second may be taken all at once."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._full_at: dict[str, float] = {}

    def take(self, key: str, now: float) -> bool:
        """Take a token. Returns False if none is left."""
        full_at = max(self._full_at.get(key, now), now) + 1 / self._per_second
        # A rounding error must not cost a token.
        if full_at - now > 1 + 1e-9:
            return False
        self._full_at[key] = full_at
        return True

    def forget(self, now: float) -> None:
        """Drop every bucket that is full again."""
        if self._full_at:
            self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}


def address_bucket(address: object) -> str | None:
    """Return the key that the connections of an address are counted under; None if they are not counted.

    The address is a pair of host and port.
    """
    if not isinstance(address, tuple) or not address or not isinstance(address[0], str):
        return None
    host: str = address[0]
    parsed = parse_address(host) if ":" in host else None
    if parsed is None:
        return host or None
    return parsed.packed[:8].hex() if parsed.version == 6 else str(parsed)


def is_address(host: object) -> bool:
    """Return whether that is an IP address. Its zone (RFC 4007 section 11) is checked; ``ipaddress`` takes any."""
    return (
        isinstance(host, str) and ZONE_CHARACTERS.issuperset(host.partition("%")[2]) and parse_address(host) is not None
    )


def parse_address(host: str) -> Address | None:
    """Return the address in a text, or ``None``. An IPv4 address that is written as one of IPv6 is returned as IPv4."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def client_address(peer: Any, headers: Headers, trusted: Sequence[Network]) -> tuple[str, int] | None:
    """Return the client's address as ``forwarded_address`` finds it; ``None`` if the peer is not trusted."""
    if not trusted:
        return None
    host = peer[0] if isinstance(peer, tuple) else None
    # A peer without an address has come over a Unix socket. The permissions of its file say which programs may connect.
    if host is not None and not _is_in(host, trusted):
        return None
    return forwarded_address(peer, headers, lambda proxy: _is_in(proxy, trusted))


def forwarded_address(
    peer: tuple[Any, ...] | None, headers: Headers, is_trusted: Callable[[str], bool]
) -> tuple[str, int] | None:
    """Return the client's address that a trusted peer sends in ``X-Forwarded-For``, with 0 for the port.

    Each proxy appends the address that it was connected from. So the last entry that is not a trusted proxy's is the
    client's, and the client itself may have written the entries before it. If there is none, or it is not an address,
    the last entry counts: it is what the peer saw. If that is not an address either, the result is ``None``, or
    ``UNKNOWN_ADDRESS`` for a peer without an address.
    """
    values = headers.get_all_raw(b"x-forwarded-for")
    hosts = [_without_port(element.decode("latin-1")) for element in split_list(values)] if values else []
    if not hosts:
        return None
    client = next((host for host in reversed(hosts) if not is_trusted(host)), None)
    for host in (client, hosts[-1]):
        if host is not None and is_address(host):
            return host, 0
    return UNKNOWN_ADDRESS if peer is None else None


def _without_port(element: str) -> str:
    """Return the host of ``host``, ``host:port``, ``[host]`` or ``[host]:port``."""
    if element.startswith("["):
        return element[1:].partition("]")[0]
    host, _, port = element.partition(":")
    return element if ":" in port else host


def _is_in(host: str, networks: Sequence[Network]) -> bool:
    address = parse_address(host)
    return address is not None and any(address in network for network in networks)
