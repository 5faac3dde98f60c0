"""A client's connection over TLS: a ``ByteStream`` to a server, in the reactor and over transports."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.links.conftest import make_reactor
from wshub.links.byte_stream import ByteStream


@contextlib.asynccontextmanager
async def echo_server(certificate: Any) -> AsyncIterator[tuple[str, int]]:
    """Serve echoes over TLS, with transports of the loop. Yields the address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=certificate.server_context())
    async with server:
        yield server.sockets[0].getsockname()


async def connected_to(address: tuple[str, int]) -> socket.socket:
    connected = socket.socket()
    connected.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connected, address)
    return connected


@contextlib.asynccontextmanager
async def echoing(carrier: str, certificate: Any) -> AsyncIterator[tuple[ByteStream, bytearray]]:
    """Yield a stream to a server that echoes, and the bytes that have come back. The end of the stream ends it all."""
    reactor = make_reactor(carrier)
    received = bytearray()
    lost: list[Any] = []
    async with echo_server(certificate) as address:
        stream = ByteStream(received.extend, lost.append)
        await stream.open(
            reactor, await connected_to(address), ssl=certificate.client_context(), server_hostname="localhost"
        )
        yield stream, received
        stream.finish()
        while not lost:
            await asyncio.sleep(0)
        assert lost == [None]
    reactor.close()


async def test_a_client_sends_and_receives(carrier, certificate) -> None:
    async with echoing(carrier, certificate) as (stream, received):
        sent = bytes(range(256)) * 4000
        stream.write(b"first")
        stream.write(sent)
        while len(received) < 5 + len(sent):
            await asyncio.sleep(0)
        assert bytes(received) == b"first" + sent
        assert stream.bytes_received == stream.bytes_sent == len(received)


async def test_short_writes_at_any_time_arrive_in_order(carrier, certificate) -> None:
    async with echoing(carrier, certificate) as (stream, received):
        written = bytearray()
        for number in range(5000):
            data = bytes([number % 251]) * (number % 997)
            stream.write(data)
            written += data
            if number % 10 == 0:
                await asyncio.sleep(0)
        while len(received) < len(written):
            await asyncio.sleep(0)
        assert received == written


@pytest.mark.parametrize("fault", ["name", "unknown authority"])
async def test_a_wrong_certificate_is_refused(carrier, certificate, fault) -> None:
    reactor = make_reactor(carrier)
    context = certificate.client_context() if fault == "name" else ssl.create_default_context()
    name = "example.org" if fault == "name" else "localhost"
    async with echo_server(certificate) as address:
        stream = ByteStream(lambda _data: None, lambda _error: pytest.fail("lost is not called"))
        with pytest.raises(ssl.SSLCertVerificationError):
            await stream.open(reactor, await connected_to(address), ssl=context, server_hostname=name)
    await asyncio.sleep(0.01)
    reactor.close()


@pytest.mark.parametrize("answer", [b"", b"not TLS at all"])
async def test_a_server_that_speaks_no_tls_is_an_error(carrier, certificate, answer) -> None:
    reactor = make_reactor(carrier)

    def answer_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(answer_and_close, "127.0.0.1", 0) as server:
        stream = ByteStream(lambda _data: None, lambda _error: pytest.fail("lost is not called"))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await stream.open(
                reactor,
                await connected_to(server.sockets[0].getsockname()),
                ssl=certificate.client_context(),
                server_hostname="localhost",
            )
    await asyncio.sleep(0.01)
    reactor.close()


async def test_a_client_that_gives_up_ends_the_connection(carrier, certificate) -> None:
    reactor = make_reactor(carrier)
    ended = asyncio.get_running_loop().create_future()

    async def wait_for_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass
        writer.close()
        ended.set_result(None)

    async with await asyncio.start_server(wait_for_end, "127.0.0.1", 0) as server:
        stream = ByteStream(lambda _data: None, lambda _error: pytest.fail("lost is not called"))
        connected = await connected_to(server.sockets[0].getsockname())
        opening = asyncio.ensure_future(
            stream.open(reactor, connected, ssl=certificate.client_context(), server_hostname="localhost")
        )
        for _ in range(10):
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await ended
    reactor.close()
