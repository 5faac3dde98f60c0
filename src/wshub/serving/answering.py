"""Answers the opening handshakes of the connections that a standalone server accepts."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from wshub.core.admission import address_bucket, client_address, parse_address
from wshub.core.opening import Opening
from wshub.core.probes import PROBE_FIELDS, answer_probe
from wshub.core.refusals import NOTHING_AT_PATH, TOO_MUCH_EARLY_DATA
from wshub.errors import HandshakeError
from wshub.protocol.handshake.server import Handshake
from wshub.protocol.http.request import MAX_EARLY_SIZE, parse_request_head
from wshub.serving.first_request import OpeningHandshake
from wshub.serving.pending import PendingByAddress, PendingHandshakes
from wshub.serving.tls_rates import TlsRates

if TYPE_CHECKING:
    from wshub.core.clustered import ClusteredHub
    from wshub.core.handler_table import HandlerTable

__all__ = ["Handshakes"]


class Handshakes:
    """The opening handshakes of a server, from accept(2) until each is answered.

    Args:
        hub: that the connections are to belong to.
        table: the handlers of the connections.
        path: the only path served; None serves all.
        subprotocols: those that may be chosen, in the client's order of preference.
        health_path: the path below which probes are answered; None answers none.
        over_tls: a TLS handshake costs more than a request, so the limits of an address hold before there is one.
    """

    def __init__(
        self,
        hub: ClusteredHub,
        table: HandlerTable,
        path: str | None,
        subprotocols: Sequence[str],
        *,
        health_path: str | None,
        over_tls: bool,
    ) -> None:
        config = hub.config
        self.hub = hub
        self.pending: PendingHandshakes[OpeningHandshake] = PendingHandshakes(
            config.max_pending_handshakes, self._note_limit
        )
        self._table = table
        self._path = path
        self._probes = (health_path.rstrip("/") + "/").encode() if health_path is not None else None
        self._subprotocols = subprotocols
        self._timeout = config.handshake_timeout_ms / 1000
        self._over_tls = over_tls
        self._trusted = tuple(ipaddress.ip_network(proxy) for proxy in config.trusted_proxies)
        self._tls_rates = TlsRates(hub) if over_tls and config.max_connection_rate_per_address else None
        if over_tls and config.max_connections_per_address:
            self.pending = PendingByAddress(
                config.max_pending_handshakes,
                self._note_limit,
                config.max_connections_per_address,
                self._address_bucket,
            )

    def accepted(self, link: Any) -> OpeningHandshake | None:
        """Return what receives the request of a new link; None to end the link."""
        handshake = OpeningHandshake(link, self, self.hub.now() + self._timeout)
        if self._tls_rates is not None and not self._tls_rates.admits(handshake, self._address_bucket(handshake)):
            return None
        self.pending.add(handshake)
        return handshake

    def request_received(self, handshake: OpeningHandshake, link: Any, head: bytes, rest: bytes) -> None:
        """Answer a complete request; ``rest`` came behind it. Raises ``HandshakeError`` to refuse it."""
        if len(rest) > MAX_EARLY_SIZE and self.hub.on_upgrade is not None:
            raise HandshakeError(*TOO_MUCH_EARLY_DATA)
        if self._probes is not None and self._answer_probe(handshake, self._probes, head):
            return
        request = parse_request_head(head, link if self._over_tls else None)
        client = client_address(handshake.peer, request.headers, self._trusted) if self._trusted else None
        opening = Opening(self.hub, self._table, request, handshake, client)
        try:
            if self._path is not None and request.path != self._path:
                raise HandshakeError(*NOTHING_AT_PATH)
            opening.check()
            decision: Any = opening.decide()
            if not opening.waits:
                self._accept(handshake, link, opening, rest, decision)
                return
            with opening.in_span():
                future = asyncio.ensure_future(decision)
            handshake.opening = opening
            handshake.wait_for(future, partial(self._accept, handshake, link, opening, rest))
        except BaseException:
            handshake.opening = opening
            raise

    def _answer_probe(self, handshake: OpeningHandshake, folder: bytes, head: bytes) -> bool:
        """Answer a probe of a load balancer. Return False if the request is none.

        Some balancers send HTTP/1.0 without a Host, so the request line is all that counts.
        """
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        target, _, version = rest.partition(b" ")
        if (
            method not in (b"GET", b"HEAD")
            or version not in (b"HTTP/1.0", b"HTTP/1.1")
            or not target.startswith(folder)
        ):
            return False
        answer = answer_probe(target.removeprefix(folder).decode("latin-1"), self.hub)
        if answer is None:
            return False
        status, body = answer
        fields = Handshake.encode_fields([*PROBE_FIELDS, ("Content-Length", str(len(body))), ("Connection", "close")])
        response = b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, HTTPStatus(status).phrase.encode(), fields)
        handshake.respond(response if method == b"HEAD" else response + body)
        return True

    def expire(self) -> None:
        """End the handshakes whose time is over."""
        self.pending.expire(self.hub.now())
        if self._tls_rates is not None:
            self._tls_rates.forget()

    def _accept(self, handshake: OpeningHandshake, link: Any, opening: Opening, rest: bytes, metadata: Any) -> None:
        response = opening.accept(self._subprotocols, metadata=metadata)
        self.pending.discard(handshake)
        opening.open_on(link, response, rest)
        handshake.opening = None

    def _note_limit(self) -> None:
        self.hub._limit_log.reached("max_pending_handshakes")

    def _address_bucket(self, handshake: OpeningHandshake) -> str | None:
        """The address that a connection counts for before its request; None for that of a trusted proxy."""
        peer = handshake.peer
        if peer is not None and self._trusted:
            address = parse_address(peer[0])
            if address is None or any(address in network for network in self._trusted):
                return None
        return address_bucket(peer)
