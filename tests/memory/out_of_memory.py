"""Make one allocation after the other fail, and check the native code each time.

``set_nomemory(i, i + 1)`` makes exactly one allocation fail, of any kind: number ``i`` from now on.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import socket
import struct
import sys
import time
from _testcapi import remove_mem_hooks, set_nomemory
from array import array
from collections.abc import Callable

from tests.memory.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    OFFERING,
    PING,
    REQUEST,
    TEXT,
    frame,
    messages_in,
)
from tests.support.deflated import deflated
from wshub import CompressionConfig, ConnectionState, EventHandler, Frame, Hub, HubConfig, Message
from wshub.brokers.redis_commands import ChannelNames
from wshub.brokers.redis_reader import RedisReader
from wshub.brokers.redis_sender import EnvelopeSender
from wshub.brokers.redis_storing import StoreCalls
from wshub.core.event_handler import handler_table_of
from wshub.links.byte_stream import ByteStream
from wshub.links.link import LinkCounters
from wshub.links.link_probe import LinkProbe
from wshub.links.memory_link import create_memory_links, deliver_all
from wshub.links.reactors import create_reactor
from wshub.protocol.http.headers import Headers
from wshub.protocol.http.request import RequestHead
from wshub.protocol.parser import FrameParser
from wshub.protocol.role import Role
from wshub.protocol.writer import FrameWriter

# After that many runs in a row without a failure, the function makes no further allocations.
CLEAN_IN_A_ROW = 40

STANDARD_INPUT = os.fstat(0)


def starve(number: int, function: Callable[[], object]) -> object:
    """Call the function while the allocation of that number fails; return None if it raises MemoryError."""
    try:
        set_nomemory(number, number + 1)
        try:
            return function()
        finally:
            remove_mem_hooks()
    except MemoryError:
        return None


def each_allocation(name: str, function: Callable[[], object], *, right: Callable[[object], bool]) -> None:
    """Let every allocation of the function fail in turn, and check each result that it still returns."""
    number = clean = failed = 0
    while clean < CLEAN_IN_A_ROW:
        result = starve(number, function)
        if result is None:
            failed += 1
        else:
            assert right(result), (name, number, result)
        clean = 0 if result is None else clean + 1
        number += 1
    print(f"{name}: {failed} of {number} raised MemoryError")
    assert failed


# The parser and messages

STREAM = (
    frame(TEXT, b"h\xc3\xa9" * 40, mask=b"abcd")
    + frame(PING, b"ping")
    + frame(BINARY, b"1" * 300, final=False)
    + frame(PING)
    + frame(CONTINUATION, b"2" * 700, final=False)
    + frame(CONTINUATION, b"3" * 20_000)
    + frame(CLOSE, b"\x03\xe8bye")
)


def summary(events: list) -> list:
    return [name if name != "failure" else value.code for name, value in events]


WHOLE = ["message", "ping", "ping", "message", "close"]


def is_whole_or_failed(result: object) -> bool:
    """Return True for all events, or for those before a failure that reports the lack of memory."""
    assert isinstance(result, list)
    names = summary(result)
    return names == WHOLE or (names[-1] == 1011 and names[:-1] == WHOLE[: len(names) - 1])


def feed_whole() -> list:
    return FrameParser().feed(STREAM)


def feed_in_pieces() -> list:
    parser = FrameParser()
    events = []
    for start in range(0, len(STREAM), 997):
        events += parser.feed(STREAM[start : start + 997])
    return events


def feed_directly() -> list:
    return FrameParser().feed_directly(STREAM)


def feed_on_after_an_error() -> list:
    """Feed and free a parser that ran out of memory between two events."""
    parser = FrameParser()
    events: list = []
    for _ in range(3):
        with contextlib.suppress(MemoryError):
            events += parser.feed(STREAM)
    return events


def messages() -> list:
    made = [Message("h\xe9" * 50), Message(b"x" * 3000), Message(array("H", range(9))), Message(memoryview(b"abc"))]
    made[0].__init__(b"again")  # type: ignore[misc]
    return [(message.data, message.type, bytes(message), message.frame_bytes, repr(message)) for message in made]


def written_by_a_client() -> list[bytes]:
    writer = FrameWriter(Role.CLIENT)
    frames = [writer.message(b"x" * 300), writer.message("h\xe9" * 50), writer.control(PING, b"ping")]
    return [decoded[0].payload for frame in frames if (decoded := Frame.decode(frame)) is not None]


def parser_and_messages() -> None:
    each_allocation("feed", feed_whole, right=is_whole_or_failed)
    each_allocation("feed in pieces", feed_in_pieces, right=is_whole_or_failed)
    each_allocation("feed_directly", feed_directly, right=is_whole_or_failed)
    for number in range(150):
        starve(number, feed_on_after_an_error)
    expected = messages()
    each_allocation("messages", messages, right=lambda result: result == expected)
    payloads = written_by_a_client()
    each_allocation("frames of a client", written_by_a_client, right=lambda result: result == payloads)


# A broadcast


# The most bytes in flight to a member.
CAPACITY = 100
# The last message compresses to little more than a reference to the one before it.
MESSAGES = ["tick", "all work and no play", "all work and no play again"]


async def broadcast_to_a_shared_window(number: int) -> object:
    """Return the result of a broadcast during which that allocation failed.

    There are three members, and the first of them does not read.
    """
    hub = Hub(HubConfig(compression=CompressionConfig(threshold=0), max_send_buffer=2000))
    hub.bind()
    hub.configure_room("room", compression="shared")
    members = []
    for _ in range(3):
        offer = Headers([(b"sec-websocket-extensions", b"permessage-deflate")])
        connection = hub.register_connection(handler_table_of(EventHandler()), RequestHead("GET", "/", "1.1", offer))
        link, other = create_memory_links(capacity=CAPACITY)
        peer = LinkProbe(other)
        hub.open_on_link(connection, link, b"", b"")
        connection.join("room")
        members.append((connection, link, peer))
    hub.broadcast(MESSAGES[0], room="room")
    for _, link, _ in members:
        deliver_all(link)
    slow = members[0]
    slow[2].pause()
    # The queue is full even if the bytes in flight do not count.
    slow[0].send(bytes(2000 + CAPACITY), compress=False)
    deliver_all(slow[1])
    count = starve(number, lambda: hub.broadcast(MESSAGES[1], room="room"))
    await asyncio.sleep(0)
    for _, link, _ in members:
        deliver_all(link)
    assert count is None or slow[0].state is not ConnectionState.OPEN
    hub.broadcast(MESSAGES[2], room="room")
    await asyncio.sleep(0)
    for connection, link, peer in members:
        deliver_all(link)
        received = [message.decode() for message in messages_in(peer.received)]
        if connection is not slow[0] and connection.state is ConnectionState.OPEN:
            assert received == (MESSAGES if count is not None else [MESSAGES[0], MESSAGES[2]])
        link.cut(0)
        deliver_all(link)
    await hub.close()
    return count


def broadcasts() -> None:
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    with asyncio.Runner() as runner:
        clean = number = failed = 0
        while clean < CLEAN_IN_A_ROW:
            whole = runner.run(broadcast_to_a_shared_window(number)) == 2
            failed += not whole
            clean = clean + 1 if whole else 0
            number += 1
    print(f"broadcast: {failed} of {number} allocations that failed were noticed")
    assert failed


# The hub


class Loop(asyncio.SelectorEventLoop):
    """Keep the method that runs one iteration of the hub, so that only this method runs out of memory."""

    iteration: Callable[[], None]

    def add_reader(self, fd, callback, *args):
        if getattr(callback, "__name__", "") == "_run":
            self.iteration = callback
        return super().add_reader(fd, callback, *args)


class Handlers(EventHandler):
    def on_open(self, connection):
        connection.join("room")
        connection.send("welcome")

    def on_message(self, connection, message):
        if message.data == "suspend":
            return self.suspend(connection)
        connection.send(message)
        connection.hub.broadcast(message, room="room")
        if message.data == LONG:
            connection.send(message)
            connection.send("done")
        return None

    async def suspend(self, connection):
        await asyncio.sleep(0)
        connection.send("resumed")

    def on_ping(self, connection, payload):
        connection.send_ping(payload)

    def on_close(self, connection, code, reason):
        connection.leave("room")


class Client:
    """A blocking client in the hub's thread; the hub's next iteration finds everything that it has sent."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.received = bytearray()
        self.ended = False

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.socket.sendall(data)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
        self.ended = True

    def receive(self) -> None:
        while not self.ended:
            try:
                data = self.socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self.ended = not data
            self.received += data

    async def until(self, *wanted: bytes) -> bool:
        """Return True once all of these have arrived, or False once the connection has ended."""
        deadline = time.monotonic() + 1
        while True:
            self.receive()
            if wanted and all(part in self.received for part in wanted):
                return True
            if self.ended:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"received neither {wanted} nor the end of the stream: {bytes(self.received[-100:])!r}"
                )
            await asyncio.sleep(0.001)


LONG = "all work and no play " * 40
COMPRESSED = frame(TEXT, deflated(LONG.encode()), rsv1=True)

PHASES = {
    "open": (REQUEST, (b"\x81\x07welcome",)),
    "echo and broadcast": (frame(TEXT, b"hello"), (b"\x81\x05hello\x81\x05hello",)),
    "fragments": (
        frame(BINARY, b"a" * 300, final=False) + frame(PING, b"x") + frame(CONTINUATION, b"b" * 300),
        (b"\x8a\x01x\x89\x01x", b"a" * 300 + b"b" * 300),
    ),
    "large": (frame(BINARY, b"l" * 60_000), (b"l" * 60_000,)),
    "suspend": (frame(TEXT, b"suspend") + frame(TEXT, b"unread"), (b"resumed", b"unread")),
    "compressed": (COMPRESSED + COMPRESSED, (b"\x81\x04done",)),
    "failure": (frame(CONTINUATION, b"of nothing"), (b"\x88",)),
    "reset": (b"", ()),
    "close": (frame(CLOSE, b"\x03\xe8"), (b"\x88\x02\x03\xe8",)),
}


async def in_a_callback(loop: Loop, function: Callable[[], object]) -> object:
    """Call the function from the loop and outside of any task, like the hub's iterations. Return its result."""
    done = loop.create_future()

    def call() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    loop.call_soon(call)
    return await done


async def hub_survives(loop: Loop, phase: str, number: int) -> bool:
    """Return True if the client got the normal result, and False if its connection ended."""
    sent, wanted = PHASES[phase]
    compression = CompressionConfig(threshold=100, client_context_takeover=True, server_context_takeover=True)
    hub = Hub(HubConfig(close_timeout_ms=300, handshake_timeout_ms=300, compression=compression))
    hub.configure_room("room", compression="shared")
    async with hub, hub.serve("127.0.0.1", 0, Handlers()) as server:
        bystander = Client(server.port)
        bystander.send(REQUEST)
        assert await bystander.until(b"\x81\x07welcome")
        client = Client(server.port)
        if phase != "open":
            client.send(OFFERING if phase == "compressed" else REQUEST)
            assert await client.until(b"\x81\x07welcome")
        if sent:
            client.send(sent)
        else:
            client.reset()
        await in_a_callback(loop, lambda: starve(number, loop.iteration))
        served = await client.until(*wanted) or not wanted
        if phase == "compressed":
            # The hub may compress differently when memory runs out, but the messages stay the same.
            assert set(messages_in(client.received.partition(b"\r\n\r\n")[2])) <= {b"welcome", b"done", LONG.encode()}
        client.socket.close()
        # Other connections carry on as usual.
        if not bystander.ended:
            bystander.send(frame(TEXT, b"still here"))
            await bystander.until(b"still here")
        bystander.socket.close()
        deadline = time.monotonic() + 2
        while hub.connection_count or hub.rooms:
            assert time.monotonic() < deadline, ("left behind", hub.stats(), hub.rooms)
            await asyncio.sleep(0.001)
    # A link that was not made must not close the descriptor that its field begins with.
    assert os.path.samestat(os.fstat(0), STANDARD_INPUT)
    return served


def hub(phase: str, seconds: float) -> None:
    """Let every allocation of one iteration fail in turn, until ``seconds`` have passed."""
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    served = clean = number = count = 0
    begun = time.monotonic()
    problems = []
    with asyncio.Runner(loop_factory=Loop) as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(lambda loop, context: None)
        while clean < CLEAN_IN_A_ROW and time.monotonic() - begun < seconds:
            print(f"{phase} {number}", file=sys.stderr)
            try:
                fine = runner.run(hub_survives(loop, phase, number))
            except Exception as error:
                problems.append((number, repr(error)[:300]))
                fine = False
            served += fine
            clean = clean + 1 if fine else 0
            number += 1
            count += 1
    print(f"{phase}: {count - served} of {count} allocations that failed ended the connection")
    for problem in problems:
        print("PROBLEM", *problem)
    assert not problems, problems


# Commands to an engine


async def engine_command(number: int, kind: str) -> tuple[bool, bool, int]:
    """Let one allocation fail while an envelope is sent to an engine.

    Return whether the envelope was taken, whether the connection goes on, and the bytes that were sent.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    lost: list[object] = []
    reactor = create_reactor(asyncio.get_running_loop(), LinkCounters(), native=True, clock=time.monotonic)
    stream = ByteStream(lambda _data: None, lost.append)
    await stream.open(reactor, ours)
    reader = RedisReader(None, b"", *[lambda *arguments: None] * 4)
    sender = EnvelopeSender(ChannelNames("wshub", 0, "hub"), 1 << 20)
    sender.attach(stream, reader)
    calls = StoreCalls(sender)
    calls.loaded_over = stream
    # The ring of replies is full, and the last frame has too little space.
    for _ in range(64):
        sender.send("first", b"x" * 200)
    actions: dict[str, Callable[[], object]] = {
        "counted": lambda: sender.send("room", b"y" * 20_000),
        "called": lambda: sender.send("room", b"y" * 20_000, lost.append),
        "kept": lambda: sender.send("room", b"y" * 20_000, (lost.append, "kept")),
        "stored": lambda: calls.store("room", b"*2\r\n$4\r\nhead\r\n", b"y" * 20_000),
    }
    before = reader.replies_due
    taken = starve(number, actions[kind])
    due = reader.replies_due - before
    for _ in range(3):
        await asyncio.sleep(0)
    goes_on = not lost
    theirs.setblocking(False)
    received = 0
    with contextlib.suppress(BlockingIOError):
        while data := theirs.recv(1 << 16):
            received += data.count(b"y")
    theirs.close()
    reactor.close()
    # Without a reply that is due, nothing may be sent: the replies would go to others.
    assert due == bool(taken), (kind, number, taken, due)
    return bool(taken), goes_on, received


def engine_commands() -> None:
    """Let every allocation fail that an envelope to an engine needs."""
    for kind in ("counted", "called", "kept", "stored"):
        number = clean = failed = 0
        while clean < CLEAN_IN_A_ROW:
            taken, goes_on, received = asyncio.run(engine_command(number, kind))
            fine = taken and goes_on
            assert received == (20_000 if fine else 0), (kind, number, taken, goes_on, received)
            failed += not fine
            clean = clean + 1 if fine else 0
            number += 1
        print(f"{kind}: {failed} of {number} allocations that failed lost the envelope")
        assert failed


if __name__ == "__main__":
    faulthandler.enable()
    if sys.argv[1] == "parser":
        parser_and_messages()
    elif sys.argv[1] == "broadcast":
        broadcasts()
    elif sys.argv[1] == "engine":
        engine_commands()
    else:
        for phase in PHASES:
            hub(phase, float(sys.argv[2]))
