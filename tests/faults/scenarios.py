"""A hub whose system calls fail: ``python -m tests.faults.scenarios NAME LOOP``, with syscalls.c loaded first of all.

Clients read and write with ``os.read`` and ``os.write``, which never fail here. Every scenario ends with the counters
balanced, ``on_close`` called once for each ``on_open``, and a bystander that was served all the while.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import uvloop

from tests.support.raw_peers import REQUEST, masked
from wshub import Connection, EventHandler, Frame, Hub, HubConfig, Message, Opcode

PRELOADED = ctypes.CDLL(None)
RESETS = (errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH)
WITHOUT_MEMORY = (errno.ENOBUFS, errno.ENOMEM)


def fail(call: str, error: int, times: int = 1, skip: int = 0) -> None:
    """Let a system call of this process fail so often, after so many that do not."""
    if PRELOADED.fail_call(call.encode(), error, skip, times) < 0:
        raise LookupError(call)


def failed(call: str) -> int:
    return PRELOADED.failed_calls(call.encode())


class Client:
    """A client on a socket, below any library."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.received = b""

    def write(self, data: bytes) -> None:
        assert os.write(self.socket.fileno(), data) == len(data)

    def send(self, frame: Frame) -> None:
        self.write(masked(frame))

    async def read_more(self) -> None:
        """EOFError at the end of the stream, also where that is a reset."""
        while True:
            try:
                data = os.read(self.socket.fileno(), 1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            except ConnectionResetError:
                raise EOFError from None
            if not data:
                raise EOFError
            self.received += data
            return

    async def handshake(self) -> Client:
        self.write(REQUEST)
        while b"\r\n\r\n" not in self.received:
            await self.read_more()
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return self

    async def frame(self) -> Frame:
        while (found := Frame.decode(self.received)) is None:
            await self.read_more()
        frame, length = found
        self.received = self.received[length:]
        return frame

    async def echo(self, text: str) -> None:
        self.send(Frame.text(text))
        frame = await self.frame()
        assert frame.payload == text.encode(), frame

    async def end(self) -> None:
        """Read up to the end of the stream."""
        with contextlib.suppress(EOFError):
            while True:
                await self.read_more()


class Scene:
    """A hub that echoes, and what it told of its connections."""

    def __init__(self, hub: Hub, port: int) -> None:
        self.hub = hub
        self.port = port
        self.opened: list[Connection] = []
        self.closed: list[tuple[Connection, int]] = []

    def connect(self) -> Client:
        return Client(self.port)

    async def until_closed(self, count: int) -> list[int]:
        """The codes of the connections that have closed, once there are so many."""
        while len(self.closed) < count:
            await asyncio.sleep(0)
        return [code for _, code in self.closed]


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    """A hub in use: before, during and after whatever fails."""
    hub = Hub(HubConfig(close_timeout_ms=200, max_send_buffer=1 << 24))
    found: Scene

    def on_open(connection: Connection) -> None:
        found.opened.append(connection)
        connection.join("room")

    def on_message(connection: Connection, message: Message) -> None:
        connection.send(message)

    def on_close(connection: Connection, code: int, reason: str) -> None:
        found.closed.append((connection, code))

    handler = EventHandler(on_open=on_open, on_message=on_message, on_close=on_close)
    async with hub.serve("127.0.0.1", 0, handler) as server:
        found = Scene(hub, server.port)
        bystander = await found.connect().handshake()
        await bystander.echo("before")
        yield found
        await bystander.echo("after")
        bystander.send(Frame.close(1000))
        await bystander.end()
        bystander.socket.close()
        while hub.connection_count:
            await asyncio.sleep(0)
        stats = hub.stats()
        assert stats["messages_pending"] == 0
        assert stats["messages_accepted"] == stats["messages_delivered"] + sum(stats["dropped"].values())
        assert sorted(connection.id for connection, _ in found.closed) == [item.id for item in found.opened]
        assert hub.rooms == frozenset()
        assert hub.bind().connection_count == 0


async def accepting() -> None:
    """Nobody is turned away for good, and those who are there are served."""
    for error in (
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EINTR,
    ):
        async with scene() as found:
            fail("accept4", error, times=3)
            client = found.connect()
            await client.handshake()
            assert failed("accept4") == 3
            await client.echo("served")
            client.socket.close()


async def watching() -> None:
    """A connection that epoll does not take is given up, and the next one served; a listener is offered again."""
    for error in (errno.ENOMEM, errno.ENOSPC):
        async with scene() as found:
            fail("epoll_ctl", error)
            await found.connect().end()
            # No descriptors, and then no memory for the listening socket either.
            fail("accept4", errno.EMFILE)
            fail("epoll_ctl", error, times=3)
            client = await found.connect().handshake()
            assert failed("epoll_ctl") == 3
            await client.echo("served")
            client.socket.close()


async def sending_without_memory() -> None:
    """Nothing is lost, nothing is sent twice, and the loop does not spin meanwhile."""
    for error in WITHOUT_MEMORY:
        for call in ("send", "sendmsg"):
            async with scene() as found:
                client = await found.connect().handshake()
                fail(call, error, times=5)
                large = bytes(5000)
                for number in range(20):
                    found.opened[-1].send(f"{number}")
                    found.opened[-1].send(large)
                for number in range(20):
                    assert (await client.frame()).payload == f"{number}".encode()
                    assert (await client.frame()).payload == large
                assert failed(call) == (5 if call == "sendmsg" else 0)
                fail("send", error, times=1_000_000)
                found.opened[-1].send("later")
                await asyncio.sleep(0.3)
                # Once a sweep, each of which makes a few attempts.
                assert 0 < failed("send") < 200, failed("send")
                fail("send", 0, times=0)
                assert (await client.frame()).payload == b"later"
                client.socket.close()


async def interrupted() -> None:
    """A signal in a system call changes nothing."""
    async with scene() as found:
        client = await found.connect().handshake()
        for call in ("send", "recv"):
            fail(call, errno.EINTR, times=7)
            await client.echo("once")
            assert failed(call) == 7
        client.socket.close()


async def losing(begin: Callable[[Scene, Client], Awaitable[None]], call: str, *, opens: bool = True) -> None:
    """The next call of that kind, for a new connection, fails in each way in which a connection is lost."""
    for error in RESETS:
        async with scene() as found:
            client = found.connect()
            if opens:
                await client.handshake()
            fail(call, error)
            await begin(found, client)
            await client.end()
            assert failed(call) == 1
            if opens:
                assert await found.until_closed(1) in ([1006], [4000])
            client.socket.close()


async def answer(found: Scene, client: Client) -> None:
    client.write(REQUEST)


async def refusal(found: Scene, client: Client) -> None:
    client.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")


async def echo(found: Scene, client: Client) -> None:
    client.send(Frame.text("never comes back"))


async def several(found: Scene, client: Client) -> None:
    """A short frame and a long one, which leave with sendmsg."""
    found.opened[-1].send("short")
    found.opened[-1].send(bytes(5000))


async def queued(found: Scene, client: Client) -> None:
    """The first part has left, and the rest follows when the client reads."""
    fail("sendmsg", errno.ECONNRESET, skip=1)
    for _ in range(4):
        found.opened[-1].send(bytes(4_000_000))


async def broadcast(found: Scene, client: Client) -> None:
    """To the client alone, since the bystander is excluded."""
    found.hub.broadcast("to the room", room="room", exclude=found.opened[0])


async def ping(found: Scene, client: Client) -> None:
    found.opened[-1].send_ping(b"there?")


async def pong(found: Scene, client: Client) -> None:
    client.send(Frame.ping(b"there?"))


async def close(found: Scene, client: Client) -> None:
    found.opened[-1].close(4000)


async def close_answer(found: Scene, client: Client) -> None:
    client.send(Frame.close(4000))


async def half_frame(found: Scene, client: Client) -> None:
    """The reactor receives the rest of a large frame right where it belongs."""
    fail("recv", errno.ECONNRESET, skip=1)
    client.write(masked(Frame.binary(bytes(60_000)))[:30_000])
    await asyncio.sleep(0.01)
    client.write(bytes(1000))


async def half_request(found: Scene, client: Client) -> None:
    client.write(REQUEST[:30])


async def closing(found: Scene, client: Client) -> None:
    """The answer to the close frame does not arrive."""
    found.opened[-1].close(4000)
    assert (await client.frame()).opcode is Opcode.CLOSE
    client.send(Frame.close(4000))


async def sending() -> None:
    """A peer that is found to be gone by what is sent to it, in every state."""
    for begin in (answer, refusal):
        await losing(begin, "send", opens=False)
    for begin in (echo, broadcast, ping, pong, close, close_answer):
        await losing(begin, "send")
    for begin in (several, queued):
        await losing(begin, "sendmsg")


async def receiving() -> None:
    """A peer that is found to be gone by what is received from it, in every state."""
    await losing(half_request, "recv", opens=False)
    for begin in (echo, half_frame, closing):
        await losing(begin, "recv")


async def shutting_down() -> None:
    """A peer that has gone before our side can be ended."""
    async with scene() as found:
        client = await found.connect().handshake()
        fail("shutdown", errno.ENOTCONN)
        client.send(Frame.close(4000))
        assert (await client.frame()).opcode is Opcode.CLOSE
        client.socket.close()
        assert await found.until_closed(1) == [4000]
        assert failed("shutdown") == 1


SCENARIOS = {
    "accepting": accepting,
    "watching": watching,
    "sending": sending,
    "sending_without_memory": sending_without_memory,
    "receiving": receiving,
    "interrupted": interrupted,
    "shutting_down": shutting_down,
}


def run(scenarios: dict[str, Callable[[], Awaitable[None]]]) -> None:
    """Run one of them, which the command line names."""
    name, loop = sys.argv[1:]
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(scenarios[name](), 50))
    print("held")


if __name__ == "__main__":
    run(SCENARIOS)
