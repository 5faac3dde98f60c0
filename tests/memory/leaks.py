"""Open, use and close many connections of one hub, round after round, and look for leaks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import ssl
import struct
import sys
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path

import uvloop

from tests.memory.wire import BINARY, CLOSE, CONTINUATION, OFFERING, PING, REQUEST, TEXT, frame
from tests.support.certificate import Certificate
from tests.support.deflated import deflated
from wshub import CompressionConfig, ConnectionClosed, EventHandler, Hub, HubConfig

OURS = ("Connection", "EpollLink", "EpollTlsLink", "AsyncioLink", "OpeningHandshake", "Room", "RequestHead", "Headers")
LARGE = b"x" * 60_000
BAD_REQUEST = REQUEST.replace(b"Version: 13", b"Version: 12")
RESET = struct.pack("ii", 1, 0)
ROUNDS, WARM_UP = 6, 3


class Handlers(EventHandler):
    def on_open(self, connection):
        connection.join("all")
        connection.join(f"room {connection.id % 7}")
        connection.set_metadata("id", connection.id)

    async def on_message(self, connection, message):
        if message.data == "raise":
            raise RuntimeError("as asked")
        if message.data == "wait for ever":
            await asyncio.get_running_loop().create_future()
        if message.data == "wait":
            await asyncio.sleep(0)
            await connection.drain()
        if message.data == "all":
            connection.hub.broadcast(message, room="all")
        elif message.data == "leave":
            connection.leave("all")
        else:
            connection.send(message)

    async def on_close(self, connection, code, reason):
        with contextlib.suppress(ConnectionClosed):
            connection.send("too late")
        await asyncio.sleep(0)


# Of the clients; None without TLS.
context: ssl.SSLContext | None = None


async def connect(port: int):
    if context is None:
        return await asyncio.open_connection("127.0.0.1", port)
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")


async def open_client(port: int, request: bytes = REQUEST):
    reader, writer = await connect(port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    return reader, writer, int(head.split()[1])


async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await reader.read()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


async def client(port: int, kind: int) -> None:
    """Use and end a connection in one of these ways."""
    if kind == 0:  # refused
        reader, writer, status = await open_client(port, BAD_REQUEST)
        assert status == 426, status
        return await end(reader, writer)
    if kind == 1:  # disconnects within its request
        reader, writer = await connect(port)
        writer.write(REQUEST[:50])
        await writer.drain()
        return reset(writer)
    reader, writer, status = await open_client(port, OFFERING if kind > 10 else REQUEST)
    assert status == 101, status
    if kind == 2:  # echo, fragments, a ping, and a normal close
        writer.write(frame(TEXT, b"h\xc3\xa9"))
        writer.write(frame(BINARY, b"a" * 100, final=False) + frame(PING, b"p") + frame(CONTINUATION, b"b" * 200))
        writer.write(frame(CLOSE, b"\x03\xe8bye"))
    elif kind == 3:  # a large message to itself and to all
        writer.write(frame(BINARY, LARGE) + frame(TEXT, b"all") + frame(BINARY, LARGE))
        await reader.readexactly(len(LARGE))
        writer.write(frame(CLOSE, b""))
    elif kind == 4:  # resets within a message
        writer.write(frame(BINARY, LARGE)[:20_000])
        await writer.drain()
        return reset(writer)
    elif kind == 5:  # disconnects while its handler is suspended and messages are unread
        writer.write(frame(TEXT, b"wait for ever") + frame(TEXT, b"unread") * 5)
        await writer.drain()
        return reset(writer)
    elif kind == 6:  # its handler suspends and resumes
        writer.write((frame(TEXT, b"wait") + frame(TEXT, b"and on")) * 3 + frame(TEXT, b"leave"))
        writer.write(frame(CLOSE, b"\x0b\xb8"))
    elif kind == 7:  # a protocol error within a fragmented message
        writer.write(frame(TEXT, b"half", final=False) + frame(TEXT, b"another"))
    elif kind == 8:  # its handler fails
        writer.write(frame(TEXT, b"raise") + frame(TEXT, b"after"))
        while await reader.readexactly(1) != b"\x88":
            pass
        writer.write(frame(CLOSE, b"\x03\xf3"))
    elif kind == 9:  # invalid UTF-8 after a broadcast
        writer.write(frame(TEXT, b"all") + frame(TEXT, b"\xff"))
    elif kind == 10:  # too large
        writer.write(frame(BINARY, b"y" * 70_000))
    elif kind == 11:  # compressed, to itself and to all; resets within another such message
        writer.write(frame(BINARY, deflated(LARGE), rsv1=True) * 3 + frame(TEXT, deflated(b"all"), rsv1=True))
        writer.write(frame(BINARY, deflated(LARGE), rsv1=True, final=False))
        await reader.readexactly(50)
        return reset(writer)
    elif kind == 12:  # a bomb
        writer.write(frame(BINARY, deflated(bytes(1 << 20)), rsv1=True))
    else:  # invalid compressed data
        writer.write(frame(BINARY, b"\xff\xff", rsv1=True))
    return await end(reader, writer)


KINDS = 14


async def play(hub: Hub, port: int, count: int) -> None:
    for start in range(0, count, 2 * KINDS):
        await asyncio.gather(*(client(port, number % KINDS) for number in range(start, start + 2 * KINDS)))
    deadline = asyncio.get_running_loop().time() + 20
    while hub.connection_count or hub.stats().rooms:
        assert asyncio.get_running_loop().time() < deadline, hub.stats()
        await asyncio.sleep(0.005)
    # Some handlers still wait for ever.
    waiting = [task for task, _ in hub._tasks_of(None)]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.sleep(0.05)


def measure() -> tuple[Counter[str], int, int]:
    for _ in range(3):
        gc.collect()
    counts = Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing).__name__ in OURS)
    return counts, len(os.listdir("/proc/self/fd")), tracemalloc.get_traced_memory()[0]


async def main(count: int, ssl_options: dict) -> None:
    logging.disable(logging.CRITICAL)
    tracemalloc.start()
    compression = CompressionConfig(client_context_takeover=True, server_context_takeover=True)
    # A reset that comes with data, of which the handler is suspended, is noticed with a ping.
    config = HubConfig(compression=compression, ping_interval_ms=200, pong_timeout_ms=200)
    async with Hub(config) as hub, hub.serve("127.0.0.1", 0, Handlers(), **ssl_options) as server:
        hub.configure_room("all", compression="shared")
        measured = []
        # Over TLS every second round of asyncio's clients holds some more.
        for number in range(ROUNDS - 1 if ssl_options else ROUNDS):
            await play(hub, server.port, count)
            measured.append(measure())
            print(number, *measured[-1])
        stats = hub.stats()
        assert stats.messages_accepted == stats.messages_delivered + stats.dropped.total, stats
    before, after = measured[WARM_UP - 1], measured[-1]
    assert before[0] == after[0], "objects were not freed"
    assert before[1] == after[1], "descriptors were not closed"
    grown = after[2] - before[2]
    connections = count * (ROUNDS - WARM_UP)
    print(f"{grown} bytes after {connections} connections")
    # The interpreter's tables grow by a few hundred bytes. The smallest object of a connection has 50 bytes.
    assert grown < 4096 + 4 * connections, "memory was not freed"


if __name__ == "__main__":
    factory = uvloop.new_event_loop if sys.argv[2] == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        if sys.argv[3:] == ["tls"]:
            with tempfile.TemporaryDirectory() as directory:
                certificate = Certificate(Path(directory))
                context = certificate.client_context()
                options = {"ssl": certificate.server_context()}
            runner.run(main(int(sys.argv[1]), options))
        else:
            runner.run(main(int(sys.argv[1]), {}))
