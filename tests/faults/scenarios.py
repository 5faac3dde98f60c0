"""A hub whose system calls fail: ``python -m tests.faults.scenarios NAME LOOP``, with syscalls.c preloaded.

Clients use ``os.read`` and ``os.write``, which never fail here. At the end of every scenario the counters balance, and
``on_close`` was called once per ``on_open``. A bystander was served throughout.
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
    """Make a system call of this process fail ``times`` times, after ``skip`` calls that succeed."""
    if PRELOADED.fail_call(call.encode(), error, skip, times) < 0:
        raise LookupError(call)


def failed(call: str) -> int:
    return PRELOADED.failed_calls(call.encode())


class Client:
    """A client on a bare socket, without a library."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.received = b""

    def write(self, data: bytes) -> None:
        assert os.write(self.socket.fileno(), data) == len(data)

    def send(self, frame: Frame) -> None:
        self.write(masked(frame))

    async def read_more(self) -> None:
        """Read more data; raise EOFError at the end of the stream or on a reset."""
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
        """Read until the end of the stream."""
        with contextlib.suppress(EOFError):
            while True:
                await self.read_more()


class Scene:
    """A hub that echoes, and the events of its connections."""

    def __init__(self, hub: Hub, port: int) -> None:
        self.hub = hub
        self.port = port
        self.opened: list[Connection] = []
        self.closed: list[tuple[Connection, int]] = []

    def connect(self) -> Client:
        return Client(self.port)

    async def until_closed(self, count: int) -> list[int]:
        """Wait until ``count`` connections have closed; return the close codes."""
        while len(self.closed) < count:
            await asyncio.sleep(0)
        return [code for _, code in self.closed]


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    """A hub that is in use before, during and after the failure."""
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
        assert stats.messages_pending == 0
        assert stats.messages_accepted == stats.messages_delivered + stats.dropped.total
        assert sorted(connection.id for connection, _ in found.closed) == [item.id for item in found.opened]
        assert hub.rooms == frozenset()
        assert hub.bind().connection_count == 0


async def accepting() -> None:
    """Every new client is accepted in the end, and the existing ones are served."""
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
    """If epoll refuses a connection, it is closed and the next one is served. A refused listener is retried."""
    for error in (errno.ENOMEM, errno.ENOSPC):
        async with scene() as found:
            fail("epoll_ctl", error)
            await found.connect().end()
            # No descriptors are left, and then no memory to watch the listening socket.
            fail("accept4", errno.EMFILE)
            fail("epoll_ctl", error, times=3)
            client = await found.connect().handshake()
            assert failed("epoll_ctl") == 3
            await client.echo("served")
            client.socket.close()


async def sending_without_memory() -> None:
    """Every message arrives exactly once, and the loop does not spin in the meantime."""
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
                # Each sweep retries, with a few attempts.
                assert 0 < failed("send") < 200, failed("send")
                fail("send", 0, times=0)
                assert (await client.frame()).payload == b"later"
                client.socket.close()


async def interrupted() -> None:
    """A signal during a system call changes nothing."""
    async with scene() as found:
        client = await found.connect().handshake()
        for call in ("send", "recv"):
            fail(call, errno.EINTR, times=7)
            await client.echo("once")
            assert failed(call) == 7
        client.socket.close()


async def losing(begin: Callable[[Scene, Client], Awaitable[None]], call: str, *, opens: bool = True) -> None:
    """Make the next such call on a new connection fail with each error of a lost connection."""
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
    """Send a short frame and a long one, which leave with sendmsg."""
    found.opened[-1].send("short")
    found.opened[-1].send(bytes(5000))


async def queued(found: Scene, client: Client) -> None:
    """Send more than the kernel accepts; the rest follows when the client reads."""
    fail("sendmsg", errno.ECONNRESET, skip=1)
    for _ in range(4):
        found.opened[-1].send(bytes(4_000_000))


async def broadcast(found: Scene, client: Client) -> None:
    """Broadcast to the client alone; the bystander is excluded."""
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
    """Send half of a large frame; the reactor receives the rest directly into its buffer."""
    fail("recv", errno.ECONNRESET, skip=1)
    client.write(masked(Frame.binary(bytes(60_000)))[:30_000])
    await asyncio.sleep(0.01)
    client.write(bytes(1000))


async def half_request(found: Scene, client: Client) -> None:
    client.write(REQUEST[:30])


async def closing(found: Scene, client: Client) -> None:
    """Close, and fail before the close frame of the client arrives."""
    found.opened[-1].close(4000)
    assert (await client.frame()).opcode is Opcode.CLOSE
    client.send(Frame.close(4000))


async def sending() -> None:
    """A send finds that the peer has gone, in every state."""
    for begin in (answer, refusal):
        await losing(begin, "send", opens=False)
    for begin in (echo, broadcast, ping, pong, close, close_answer):
        await losing(begin, "send")
    for begin in (several, queued):
        await losing(begin, "sendmsg")


async def receiving() -> None:
    """A receive finds that the peer has gone, in every state."""
    await losing(half_request, "recv", opens=False)
    for begin in (echo, half_frame, closing):
        await losing(begin, "recv")


async def shutting_down() -> None:
    """The peer has gone before the hub shuts its side down."""
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
    """Run the scenario that the command line names."""
    name, loop = sys.argv[1:]
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(scenarios[name](), 50))
    print("held")


if __name__ == "__main__":
    run(SCENARIOS)
