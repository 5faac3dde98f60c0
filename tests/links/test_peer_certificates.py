"""Every link over TLS tells the certificate of its peer, between its handshake and its end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.links.conftest import make_reactor
from tests.support.reactor import needs_reactor
from tests.support.tls_peers import TlsPeer
from wshub.links.link_probe import LinkProbe
from wshub.links.stream_transport import StreamTransport
from wshub.links.tls.contexts import ServerTls
from wshub.links.transports import TransportTls


@pytest.fixture
def context(certificate, alice) -> ssl.SSLContext:
    context = certificate.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(alice.chain)
    return context


def attaching(probe: LinkProbe) -> Callable[[Any], LinkProbe]:
    """Return what gives a new link to a probe."""

    def accepted(link: Any) -> LinkProbe:
        probe.attach(link)
        return probe

    return accepted


@contextlib.asynccontextmanager
async def listening(
    reactor: Any, accepted: Callable[[Any], LinkProbe], tls: ServerTls | None = None
) -> AsyncIterator[int]:
    """Have a reactor accept connections, and close it at the end of the block. Return the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await reactor.listen(listener, accepted, ssl=tls)
        yield listener.getsockname()[1]
        reactor.unlisten(listener.fileno())
        reactor.close()


async def link_that_has_heard(probe: LinkProbe) -> Any:
    """Return the link of a probe, once the client's hello has arrived there."""
    while probe.received != b"hello":
        await asyncio.sleep(0)
    assert probe.link is not None
    return probe.link


@contextlib.asynccontextmanager
async def greeted(
    reactor: Any, accepted: Callable[[Any], LinkProbe], context: ssl.SSLContext, client: ssl.SSLContext
) -> AsyncIterator[TlsPeer]:
    """Have a client connect to a reactor over TLS, and say hello. Yield its end."""
    async with listening(reactor, accepted, ServerTls(context)) as port, TlsPeer(port, client) as peer:
        await peer.send(b"hello")
        yield peer


@pytest.mark.parametrize("after_flush", [True, False])
async def test_a_link_has_it_between_its_handshake_and_its_end(
    carrier, certificate, alice, context, after_flush
) -> None:
    probe = LinkProbe()
    before: list[Any] = []

    def accepted(link: Any) -> LinkProbe:
        before.extend((link.get_ssl_object(), link.getpeercert(), link.getpeercert(True)))
        return attaching(probe)(link)

    async with greeted(make_reactor(carrier), accepted, context, certificate.client_context(alice)) as peer:
        link = await link_that_has_heard(probe)
        assert before == [None, None, None]
        assert link.getpeercert(True) == alice.der()
        assert link.getpeercert()["subject"][1] == (("commonName", "alice"),)
        assert link.get_ssl_object().getpeercert(True) == alice.der()
        probe.abort(after_flush=after_flush)
        assert link.getpeercert() is None
        assert link.get_ssl_object() is None
        peer.socket.close()
        while not probe.closed:
            await asyncio.sleep(0)
        assert link.getpeercert(True) is None


async def test_a_link_has_none_in_the_middle_of_its_handshake(carrier, certificate, alice, context) -> None:
    probe = LinkProbe()
    async with listening(make_reactor(carrier), attaching(probe), ServerTls(context)) as port:
        peer = TlsPeer(port, certificate.client_context(alice))
        with peer.socket:
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            await peer.send_raw(peer.outgoing.read())
            # The server answers with its own certificate, and waits for the client's.
            assert await asyncio.get_running_loop().sock_recv(peer.socket, 1 << 16)
            assert probe.link is not None
            assert probe.link.get_ssl_object() is None
            assert probe.link.getpeercert() is None


async def test_a_link_without_tls_has_none(carrier) -> None:
    probe = LinkProbe()
    async with listening(make_reactor(carrier), attaching(probe)) as port:
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.send(b"hello")
            link = await link_that_has_heard(probe)
            assert link.get_ssl_object() is None
            assert link.getpeercert() is None


async def test_a_transport_of_the_loop_has_it_until_it_closes(certificate, alice, context) -> None:
    loop = asyncio.get_running_loop()
    made: asyncio.Future[Any] = loop.create_future()

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.set_result(transport)

    server = await loop.create_server(Accepted, "127.0.0.1", 0, ssl=context)
    async with server, TlsPeer(server.sockets[0].getsockname()[1], certificate.client_context(alice)):
        transport = await made
        tls = TransportTls(transport)
        assert tls.getpeercert(True) == alice.der()
        assert tls.getpeercert()["subject"][1] == (("commonName", "alice"),)
        transport.abort()
        assert tls.getpeercert() is None
        assert tls.getpeercert(True) is None


@needs_reactor
async def test_a_transport_over_a_link_lends_it_until_it_is_handed_over(certificate, alice, context) -> None:
    loop, reactor, probe = asyncio.get_running_loop(), make_reactor("reactor"), LinkProbe()
    async with greeted(reactor, attaching(probe), context, certificate.client_context(alice)):
        link = await link_that_has_heard(probe)
        transport = StreamTransport(loop, reactor, link, asyncio.Protocol())
        assert transport.link is link
        assert transport.get_extra_info("ssl_object").getpeercert(True) == alice.der()
        taker = LinkProbe()
        transport.hand_over(taker.attach)
        assert transport.link is None
        assert link.getpeercert(True) == alice.der()
