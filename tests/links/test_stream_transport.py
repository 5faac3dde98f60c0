"""A StreamTransport over a TLS link of the reactor does what asyncio says of transports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from tests.support.certificate import Certificate
from tests.support.reactor import needs_reactor
from wshub import HandshakeError
from wshub.links import stream_transport
from wshub.links.link import LinkCounters
from wshub.links.link_probe import LinkProbe
from wshub.links.stream_transport import StreamTransport
from wshub.links.tls.contexts import ServerTls
from wshub.serving.first_request import FirstRequest
from wshub.serving.pending import PendingHandshakes

pytestmark = needs_reactor

GREETING = b"GET / HTTP/1.1\r\n\r\n"

# More than the kernel holds for a peer that does not read.
LARGE = 2 << 20


class Recorder(asyncio.Protocol):
    """Records what it is called with."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.received = b""
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport: StreamTransport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool:
        self.events.append("eof")
        # This has no effect with TLS.
        return True

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.events.append("lost")
        self.lost.set_result(error)


class Serving:
    """Gives each connection a transport, once its first request has arrived."""

    hub = None

    def __init__(self, context: ssl.SSLContext, create_protocol: Callable[[], Any]) -> None:
        # The module is missing where there is no epoll.
        from wshub.links.epoll_reactor import EpollReactor

        self.loop = asyncio.get_running_loop()
        self.reactor = EpollReactor(self.loop, LinkCounters())
        self.context = context
        self.pending: PendingHandshakes[FirstRequest] = PendingHandshakes(100, lambda: None)
        self.create_protocol = create_protocol
        self.made: asyncio.Queue[tuple[StreamTransport, Any]] = asyncio.Queue()

    def request_received(self, first: FirstRequest, data: bytes, end: int) -> None:
        protocol = self.create_protocol()
        transport = StreamTransport(self.loop, self.reactor, first.take(), protocol)
        transport.start(data)
        self.made.put_nowait((transport, protocol))

    async def listen(self, listening: socket.socket) -> None:
        def accepted(link: Any) -> FirstRequest:
            return FirstRequest(link, self, 0)

        await self.reactor.listen(listening, accepted, ssl=ServerTls(self.context))


def listening_socket() -> socket.socket:
    """Return a socket whose connections have small buffers."""
    listening = socket.create_server(("127.0.0.1", 0))
    shrink_buffers(listening)
    return listening


def shrink_buffers(of: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        of.setsockopt(socket.SOL_SOCKET, option, 1 << 16)


class Peer:
    """A client whose socket buffers are small. It reads only what it is asked to read."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.socket = socket.socket()
        shrink_buffers(self.socket)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.loop = asyncio.get_running_loop()

    async def run(self, step: Callable[[], Any]) -> Any:
        """Take a step that may have to read. It raises what ``ssl`` and the socket raise."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                result = self
            if data := self.outgoing.read():
                await self.loop.sock_sendall(self.socket, data)
            if result is not self:
                return result
            data = await self.loop.sock_recv(self.socket, 1 << 18)
            if not data:
                raise ConnectionAbortedError("the stream was cut")
            self.incoming.write(data)

    async def start(self) -> None:
        await self.run(self.tls.do_handshake)
        await self.send(GREETING)

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), 1 << 16):
            await self.run(partial(self.tls.write, data[start : start + (1 << 16)]))

    async def receive(self, length: int) -> bytes:
        received = bytearray()
        while len(received) < length:
            data = await self.run(lambda: self.tls.read(1 << 18))
            if not data:
                break
            received += data
        return bytes(received)

    async def rest(self) -> bytes:
        """Return everything up to close_notify. The end of a stream that was cut raises."""
        received = bytearray()
        with contextlib.suppress(ssl.SSLZeroReturnError):
            while data := await self.run(lambda: self.tls.read(1 << 18)):
                received += data
        return bytes(received)

    async def close(self) -> None:
        """Send close_notify, and end the connection when the server has sent its own."""
        with contextlib.suppress(ssl.SSLError, OSError):
            await self.run(self.tls.unwrap)
        self.socket.close()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@contextlib.asynccontextmanager
async def connected(
    certificate: Certificate, create_protocol: Callable[[], Any] = Recorder
) -> AsyncIterator[tuple[Any, Any, Peer]]:
    """Yield a transport, its protocol and its peer."""
    serving = Serving(certificate.server_context(), create_protocol)
    with listening_socket() as listening:
        await serving.listen(listening)
        peer = Peer(listening.getsockname()[1], certificate.client_context())
        try:
            await peer.start()
            transport, protocol = await serving.made.get()
            yield transport, protocol, peer
        finally:
            peer.socket.close()
            serving.reactor.close()
            await asyncio.sleep(0)


def numbered(length: int) -> bytes:
    return b"".join(struct.pack("<I", number) for number in range(length // 4))


async def test_it_tells_what_asyncios_tls_transports_tell(certificate) -> None:
    async with connected(certificate) as (transport, protocol, peer):
        assert isinstance(transport, asyncio.Transport)
        assert transport.get_protocol() is protocol
        assert protocol.received == GREETING
        assert transport.get_extra_info("peername") == peer.socket.getsockname()
        assert transport.get_extra_info("sockname") == peer.socket.getpeername()
        assert transport.get_extra_info("sslcontext").verify_mode is ssl.CERT_NONE
        assert transport.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert transport.get_extra_info("cipher") == peer.tls.cipher()
        assert transport.get_extra_info("compression") is None
        assert transport.get_extra_info("peercert") is None
        assert transport.get_extra_info("nothing", "default") == "default"
        lent = transport.get_extra_info("socket")
        assert (lent.family, lent.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert lent.getpeername() == peer.socket.getsockname()
        lent.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert lent.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with lent.dup() as duplicate:
            assert duplicate.fileno() != lent.fileno()
            assert duplicate.getpeername() == lent.getpeername()
        assert not transport.can_write_eof()
        with pytest.raises(NotImplementedError):
            transport.write_eof()
        transport.abort()
        await protocol.lost
        assert lent.fileno() == -1
        assert lent.getpeername() == peer.socket.getsockname()
        with pytest.raises(OSError, match="descriptor"):
            lent.dup()


async def test_everything_written_arrives_in_order(certificate) -> None:
    async with connected(certificate) as (transport, _, peer):
        transport.write(b"bytes ")
        transport.write(bytearray(b"bytearray "))
        transport.write(memoryview(b"memoryview "))
        transport.writelines([b"a ", bytearray(b"list"), b""])
        transport.write(b"")
        text = b"bytes bytearray memoryview a list"
        assert await peer.receive(len(text)) == text
        with pytest.raises(TypeError):
            transport.write("text")
        message = numbered(1 << 20)
        transport.write(message)
        assert await peer.receive(len(message)) == message


async def test_a_writer_is_asked_to_pause_and_to_resume(certificate) -> None:
    async with connected(certificate) as (transport, protocol, peer):
        low, high = transport.get_write_buffer_limits()
        assert 0 < low < high
        message, written = numbered(LARGE), 0
        while written < LARGE and "pause" not in protocol.events:
            transport.write(message[written : written + 50_000])
            written += 50_000
        assert "pause" in protocol.events
        assert transport.get_write_buffer_size() > high
        received = b""
        while "resume" not in protocol.events:
            received += await peer.receive(1)
            await asyncio.sleep(0)
        assert transport.get_write_buffer_size() <= low
        received += await peer.receive(written - len(received))
        assert received == message[:written]
        assert [event for event in protocol.events if event != "made"] == ["pause", "resume"]


async def test_the_limits_of_the_write_buffer_can_be_set(certificate) -> None:
    async with connected(certificate) as (transport, protocol, peer):
        transport.set_write_buffer_limits(high=0)
        assert transport.get_write_buffer_limits() == (0, 0)
        transport.write(bytes(LARGE))
        assert protocol.events[-1] == "pause"
        await peer.receive(LARGE)
        while protocol.events[-1] != "resume":
            await asyncio.sleep(0)
        transport.set_write_buffer_limits(low=1000)
        assert transport.get_write_buffer_limits() == (1000, 4000)
        transport.set_write_buffer_limits()
        assert transport.get_write_buffer_limits() == (16384, 65536)
        with pytest.raises(ValueError, match="high"):
            transport.set_write_buffer_limits(high=1, low=2)


async def test_nothing_is_received_while_reading_is_paused(certificate) -> None:
    async with connected(certificate) as (transport, protocol, peer):
        message = numbered(LARGE)
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        sending = asyncio.create_task(peer.send(message))
        for _ in range(100):
            await asyncio.sleep(0)
        assert protocol.received == GREETING
        assert not sending.done()
        received = bytearray()

        class Slow(asyncio.Protocol):
            """Pauses after each piece."""

            def data_received(self, data: bytes) -> None:
                assert transport.is_reading()
                received.extend(data)
                transport.pause_reading()
                asyncio.get_running_loop().call_soon(transport.resume_reading)

        transport.set_protocol(Slow())
        transport.resume_reading()
        transport.resume_reading()
        await sending
        while len(received) < LARGE:
            await asyncio.sleep(0)
        assert received == message


async def test_what_was_read_before_a_pause_is_received_after_it(certificate) -> None:
    class Paused(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    async with connected(certificate, Paused) as (transport, protocol, peer):
        await peer.send(b"more")
        with contextlib.suppress(ssl.SSLError, OSError):
            peer.tls.unwrap()
        await asyncio.get_running_loop().sock_sendall(peer.socket, peer.outgoing.read())
        for _ in range(20):
            await asyncio.sleep(0)
        assert protocol.events == ["made"]
        assert protocol.received == b""
        transport.resume_reading()
        assert await protocol.lost is None
        assert protocol.received == GREETING + b"more"
        assert protocol.events == ["made", "eof", "lost"]


async def test_close_sends_everything_then_close_notify(certificate) -> None:
    async with connected(certificate) as (transport, protocol, peer):
        message = numbered(LARGE)
        transport.write(message)
        transport.close()
        transport.close()
        assert transport.is_closing()
        assert not transport.is_reading()
        transport.write(b"too late")
        await peer.send(b"not received")
        # A stream without close_notify raises here.
        assert await peer.rest() == message
        await peer.close()
        assert await protocol.lost is None
        assert protocol.received == GREETING
        assert transport.get_write_buffer_size() == 0
        # Nothing of this is an error after the end.
        for method in (transport.close, transport.abort, transport.pause_reading, transport.resume_reading):
            method()
        transport.write(b"too late")
        assert protocol.events.count("lost") == 1


async def test_abort_drops_what_waits(certificate) -> None:
    async with connected(certificate) as (transport, protocol, peer):
        transport.write(bytes(LARGE))
        transport.abort()
        assert transport.is_closing()
        assert not protocol.lost.done()
        assert await protocol.lost is None
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await peer.rest()


@pytest.mark.parametrize("ends", ["a reset", "a cut"])
async def test_a_connection_that_breaks_is_lost_with_an_error(certificate, ends) -> None:
    async with connected(certificate) as (_, protocol, peer):
        if ends == "a reset":
            peer.reset()
        else:
            peer.socket.close()
        assert isinstance(await protocol.lost, ConnectionResetError)
        assert protocol.events == ["made", "lost"]


async def test_the_end_of_the_peer_closes_the_transport(certificate) -> None:
    async with connected(certificate) as (transport, protocol, peer):
        transport.write(b"the last")
        await peer.close()
        assert await protocol.lost is None
        assert protocol.events == ["made", "eof", "lost"]


async def test_a_peer_that_reads_nothing_of_the_rest_is_ended(certificate, monkeypatch) -> None:
    monkeypatch.setattr(stream_transport, "CLOSE_TIMEOUT", 0.05)
    async with connected(certificate) as (transport, protocol, _):
        transport.write(bytes(LARGE))
        transport.close()
        assert isinstance(await protocol.lost, TimeoutError)


async def test_a_peer_that_does_not_end_its_side_is_ended(certificate, monkeypatch) -> None:
    monkeypatch.setattr(stream_transport, "CLOSE_TIMEOUT", 0.05)
    async with connected(certificate) as (transport, protocol, peer):
        transport.write(b"the last")
        transport.close()
        assert await peer.rest() == b"the last"
        # The protocol has no more to do with it.
        assert await protocol.lost is None
        assert transport.reactor.connection_count == 1
        while transport.reactor.connection_count:
            await asyncio.sleep(0.001)


async def test_an_exception_of_the_protocol_ends_the_connection_with_it(certificate) -> None:
    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if data != GREETING:
                raise ValueError("of the protocol")

    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    async with connected(certificate, Failing) as (transport, protocol, peer):
        await peer.send(b"fail")
        error = await protocol.lost
        assert isinstance(error, ValueError)
        (context,) = reported
        assert context["exception"] is error
        assert context["transport"] is transport
        assert context["protocol"] is protocol


async def test_a_protocol_may_have_buffers_of_its_own(certificate) -> None:
    class Buffered(asyncio.BufferedProtocol):
        buffer = bytearray(1000)
        received = b""

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.received += self.buffer[:nbytes]

    async with connected(certificate) as (transport, _, peer):
        buffered = Buffered()
        transport.set_protocol(buffered)
        assert transport.get_protocol() is buffered
        message = numbered(1 << 18)
        await peer.send(message)
        while len(buffered.received) < len(message):
            await asyncio.sleep(0)
        assert buffered.received == message


async def test_a_link_can_be_handed_over(certificate) -> None:
    async with connected(certificate) as (transport, protocol, peer):
        probe = LinkProbe()

        def refuse(link: Any) -> None:
            raise HandshakeError(503, "not now")

        with pytest.raises(HandshakeError):
            transport.hand_over(refuse)
        await peer.send(b"still the protocol's")
        while not protocol.received.endswith(b"protocol's"):
            await asyncio.sleep(0)

        transport.write(b"before")
        transport.pause_reading()
        transport.hand_over(probe.attach)
        assert transport.is_closing()
        assert await protocol.lost is None
        assert await peer.receive(6) == b"before"
        await peer.send(b"the probe's")
        while bytes(probe.received) != b"the probe's":
            await asyncio.sleep(0)
        transport.write(b"nobody's")
        transport.abort()
        assert protocol.received == GREETING + b"still the protocol's"
        assert protocol.events == ["made", "lost"]


async def test_the_reactor_stays_until_the_last_transport_has_ended(certificate) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    serving = Serving(certificate.server_context(), Recorder)
    with listening_socket() as listening:
        await serving.listen(listening)
        peer = Peer(listening.getsockname()[1], certificate.client_context())
        await peer.start()
        transport, protocol = await serving.made.get()
        serving.reactor.unlisten(listening.fileno())
    serving.reactor.release()
    await peer.send(b"still there")
    while not protocol.received.endswith(b"there"):
        await asyncio.sleep(0)
    transport.close()
    await peer.close()
    await protocol.lost
    # After the last user, the reactor leaves the loop and closes its epoll descriptor.
    while len(os.listdir("/proc/self/fd")) > descriptors:
        await asyncio.sleep(0)
