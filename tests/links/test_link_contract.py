"""The promises of the contract, checked for each link: epoll, asyncio's transports, an ASGI server, and memory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from tests.links.link_contract import CHECKS, FrameStream, LinkHarness
from tests.support.certificate import Certificate
from tests.support.reactor import HAS_REACTOR
from wshub import Frame
from wshub.links.asgi_link import AsgiLink
from wshub.links.asyncio_reactor import AsyncioReactor
from wshub.links.link import LinkCounters
from wshub.links.link_probe import LinkProbe
from wshub.links.memory_link import create_memory_links
from wshub.links.reactor_api import Reactor
from wshub.links.tls.contexts import ServerTls

MASK = b"\x01\x02\x03\x04"


def masked(payload: bytes) -> bytes:
    return Frame.binary(payload).with_mask(MASK).encode()


class SocketHarness:
    """A link of a reactor, and the peer's socket."""

    half_closes = True
    counts_headers = True
    read_ahead = 0

    def __init__(self, probe: LinkProbe, peer: socket.socket) -> None:
        self.probe = probe
        self._peer = peer
        self._reads = True
        self._received = FrameStream()
        self._to_send = b""
        self._to_end = self._saw_end = False

    def peer_sends(self, payload: bytes) -> None:
        self._to_send += masked(payload)

    def peer_reads(self, reads: bool) -> None:
        self._reads = reads

    def peer_ends(self) -> None:
        self._to_end = True

    def peer_vanishes(self) -> None:
        self._peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._peer.close()

    def peer_payloads(self) -> list[bytes]:
        return self._received.payloads

    def peer_saw_end(self) -> bool:
        return self._saw_end

    async def step(self) -> None:
        if self._peer.fileno() >= 0:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._send()
            with contextlib.suppress(BlockingIOError, ConnectionError):
                while self._reads and not self._saw_end:
                    data = self._peer.recv(1 << 20)
                    self._received.feed(data)
                    self._saw_end = not data
        await asyncio.sleep(0)

    def _send(self) -> None:
        while self._to_send:
            self._to_send = self._to_send[self._peer.send(self._to_send) :]
        if self._to_end:
            self._to_end = False
            self._peer.shutdown(socket.SHUT_WR)


@contextlib.asynccontextmanager
async def over_sockets(
    create_reactor: Callable[[asyncio.AbstractEventLoop, LinkCounters], Reactor],
    create_harness: Callable[[LinkProbe, socket.socket], Any] = SocketHarness,
    tls: ServerTls | None = None,
) -> AsyncIterator[Any]:
    reactor = create_reactor(asyncio.get_running_loop(), LinkCounters())
    probe = LinkProbe()

    def accepted(link: Any) -> LinkProbe:
        probe.attach(link)
        return probe

    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as peer:
        await reactor.listen(listening, accepted, ssl=tls)
        peer.setblocking(False)
        await asyncio.get_running_loop().sock_connect(peer, listening.getsockname())
        while probe.link is None:
            await asyncio.sleep(0)
        assert reactor.connection_count == 1
        harness = create_harness(probe, peer)
        # Once data has arrived, the link has its transport.
        harness.peer_sends(b"")
        while not probe.events:
            await harness.step()
        probe.start_anew()
        try:
            yield harness
        finally:
            reactor.close()
            # Transports close their sockets in the next iteration.
            await asyncio.sleep(0.001)
        assert reactor.connection_count == 0


def over_epoll(certificate: Certificate) -> AbstractAsyncContextManager[LinkHarness]:
    from wshub.links.epoll_reactor import EpollReactor

    return over_sockets(EpollReactor)


def over_transports(certificate: Certificate) -> AbstractAsyncContextManager[LinkHarness]:
    return over_sockets(AsyncioReactor)


def client_context(certificate: Certificate, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = certificate.client_context()
    context.maximum_version = version
    return context


def over_epoll_with_tls(
    certificate: Certificate, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> AbstractAsyncContextManager[LinkHarness]:
    from wshub.links.epoll_reactor import EpollReactor

    context = client_context(certificate, version)
    tls = ServerTls(certificate.server_context())
    return over_sockets(EpollReactor, lambda probe, peer: TlsHarness(probe, peer, context), tls)


def over_epoll_with_tls_1_2(certificate: Certificate) -> AbstractAsyncContextManager[LinkHarness]:
    return over_epoll_with_tls(certificate, ssl.TLSVersion.TLSv1_2)


def over_transports_with_tls(certificate: Certificate) -> AbstractAsyncContextManager[LinkHarness]:
    context = client_context(certificate, ssl.TLSVersion.TLSv1_3)
    tls = ServerTls(certificate.server_context())
    return over_sockets(AsyncioReactor, lambda probe, peer: TransportTlsHarness(probe, peer, context), tls)


class TlsHarness(SocketHarness):
    """A link with TLS, and the peer's end: an SSLObject, and its socket."""

    def __init__(self, probe: LinkProbe, peer: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(probe, peer)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._established = self._shuts_down = False
        self._encrypted = b""

    def _exchange(self) -> None:
        if not self._established:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.do_handshake()
                self._established = True
        if self._established and self._to_send:
            self._tls.write(self._to_send)
            self._to_send = b""
        if self._established and self._to_end:
            self._to_end = False
            self._shuts_down = True
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
        self._encrypted += self._outgoing.read()
        self._send()

    async def step(self) -> None:
        if self._peer.fileno() >= 0:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._exchange()
            with contextlib.suppress(BlockingIOError, ConnectionError):
                while self._reads and not self._saw_end:
                    self._receive(self._peer.recv(1 << 16))
        await asyncio.sleep(0)

    def _send(self) -> None:
        while self._encrypted:
            self._encrypted = self._encrypted[self._peer.send(self._encrypted) :]
        if self._shuts_down:
            self._shuts_down = False
            # After an abort at once there is no connection any more.
            with contextlib.suppress(OSError):
                self._peer.shutdown(socket.SHUT_WR)

    def _receive(self, data: bytes) -> None:
        if not data:
            self._saw_end = True
        self._incoming.write(data)
        self._exchange()
        with contextlib.suppress(ssl.SSLWantReadError):
            while self._established and not self._saw_end:
                try:
                    plain = self._tls.read(1 << 16)
                except ssl.SSLZeroReturnError:
                    plain = b""
                self._received.feed(plain)
                self._saw_end = not plain


class TransportTlsHarness(TlsHarness):
    """The same over a transport of the loop, which ends both sides at once."""

    half_closes = False

    def _receive(self, data: bytes) -> None:
        super()._receive(data)
        # The transport waits for the peer's close_notify.
        self._to_end = self._saw_end


class MemoryHarness:
    """A pair in memory. The peer has the other end."""

    half_closes = True
    counts_headers = True
    read_ahead = 0

    def __init__(self, buffer_size: int) -> None:
        link, self._other = create_memory_links(loop=asyncio.get_running_loop())
        self.probe = LinkProbe(link, buffer_size=buffer_size)
        self._peer = LinkProbe(self._other)
        self._peer.on_event = self._on_event
        self._received = FrameStream()

    def _on_event(self, event: tuple[Any, ...]) -> None:
        if event[0] == "data":
            self._received.feed(event[1])

    def peer_sends(self, payload: bytes) -> None:
        self._peer.write(masked(payload))

    def peer_reads(self, reads: bool) -> None:
        if reads:
            self._peer.resume()
        else:
            self._peer.pause()

    def peer_ends(self) -> None:
        self._other.end_output()

    def peer_vanishes(self) -> None:
        self._other.cut()

    def peer_payloads(self) -> list[bytes]:
        return self._received.payloads

    def peer_saw_end(self) -> bool:
        return self._peer.count("eof") > 0

    async def step(self) -> None:
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def in_memory(certificate: Certificate) -> AsyncIterator[LinkHarness]:
    yield MemoryHarness(0)


@contextlib.asynccontextmanager
async def in_memory_with_a_buffer(certificate: Certificate) -> AsyncIterator[LinkHarness]:
    yield MemoryHarness(10_000)


class AsgiHarness:
    """A link over an ASGI server. The test plays the server."""

    half_closes = False
    counts_headers = False
    # One call of receive() is always pending.
    read_ahead = 1

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue()
        self._takes = asyncio.Event()
        self._takes.set()
        self._vanished = False
        self._sent: list[bytes] = []
        link = AsgiLink(self._receive, self._send, None)
        self.probe = LinkProbe(link)
        link.start()

    async def _receive(self) -> dict[str, Any]:
        message = await self._arrived.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def _send(self, message: dict[str, Any]) -> None:
        await self._takes.wait()
        if self._vanished:
            raise OSError("the client has left")
        self._sent.append(message["bytes"])

    def peer_sends(self, payload: bytes) -> None:
        self._arrived.put_nowait({"type": "websocket.receive", "bytes": payload})

    def peer_reads(self, reads: bool) -> None:
        if reads:
            self._takes.set()
        else:
            self._takes.clear()

    def peer_ends(self) -> None:
        raise NotImplementedError("ASGI has no half close")

    def peer_vanishes(self) -> None:
        self._vanished = True
        self._arrived.put_nowait(OSError("the client has left"))

    def peer_payloads(self) -> list[bytes]:
        return self._sent

    def peer_saw_end(self) -> bool:
        return False

    async def step(self) -> None:
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def over_asgi(certificate: Certificate) -> AsyncIterator[LinkHarness]:
    harness = AsgiHarness()
    yield harness
    harness.probe.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


NATIVE = pytest.mark.skipif(not HAS_REACTOR, reason="there is no native reactor")

LINKS: list[Any] = [
    pytest.param(over_epoll, marks=NATIVE),
    pytest.param(over_epoll_with_tls, marks=NATIVE),
    pytest.param(over_epoll_with_tls_1_2, marks=NATIVE),
    over_transports,
    over_transports_with_tls,
    over_asgi,
    in_memory,
    in_memory_with_a_buffer,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("connect", LINKS)
async def test_a_link_keeps_the_contract(
    connect: Callable[[Certificate], AbstractAsyncContextManager[LinkHarness]],
    check: Callable[[LinkHarness], Awaitable[None]],
    certificate: Certificate,
) -> None:
    async with connect(certificate) as harness:
        await check(harness)
