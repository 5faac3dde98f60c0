"""Compare a hub with its model under random operations, and count every message.

The operations are joins, leaves, sends, broadcasts and closes, from outside and from handlers. They run under each
policy, for clients that read and clients that do not.

The clients are sockets, and every byte that they receive is checked. After each step, all counters of the hub and its
rooms equal the model's. Each client has received the messages of the model, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.core.model import MAX_SEND_BUFFER, HubModel, Queue
from tests.core.model import Frame as QueuedFrame
from tests.support.raw_peers import REQUEST, masked
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import Clock
from wshub import Connection, ConnectionClosed, ConnectionState, EventHandler, Frame, Hub, HubConfig, Message, Opcode

CLIENTS = range(3)
ROOMS = {"a": None, "b": "latest", "c": "drop_oldest", "d": "drop_newest"}
CLOSE_TIMEOUT = 10.0
RUNS = int(os.environ.get("WSHUB_MODEL_RUNS", "150"))

Action = tuple[str, tuple[Any, ...]]

clients = st.sampled_from(CLIENTS)
rooms = st.sampled_from(sorted(ROOMS))
hub_policies = st.sampled_from(["close", "drop_newest", "drop_oldest", "latest"])
policies = st.sampled_from([None, None, None, "close", "drop_newest", "drop_oldest", "latest", "latest"])
keys = st.sampled_from([None, None, "x", "y"])
sizes = st.sampled_from([10, 125, 126, 1000, 4000])
levels = st.sampled_from([1, MAX_SEND_BUFFER // 2, MAX_SEND_BUFFER - 1000, MAX_SEND_BUFFER, MAX_SEND_BUFFER])
ACTIONS = {
    "send": st.tuples(clients, sizes, policies, keys),
    "broadcast": st.tuples(st.one_of(st.none(), rooms), st.one_of(st.none(), clients), sizes, policies, keys),
    "join": st.tuples(clients, rooms),
    "leave": st.tuples(clients, rooms),
    "ping": st.tuples(clients, st.integers(0, 125)),
    "close": st.tuples(clients),
}
# A closed connection tests nothing more, so operations that close one are rare.
KINDS = ["send"] * 6 + ["broadcast"] * 12 + ["join"] * 4 + ["leave"] * 2 + ["ping"] * 2 + ["close"]
actions = st.sampled_from(KINDS).flatmap(lambda kind: st.tuples(st.just(kind), ACTIONS[kind]))


class Client:
    """The other end of a connection."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self.socket.send(REQUEST)
        self.connection: Any = None
        self.unparsed = b""
        self.received: list[int] = []
        self.said: list[int] = []
        self.heard: list[int] = []
        self.half_closed = False
        self.says_close = False
        self.gone = False  # its socket is closed
        self.timed_out = False
        self.told_close = False
        self.behind = False  # a message had to wait for it since on_drain was called

    def write(self, data: bytes) -> None:
        if not self.half_closed:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                assert self.socket.send(data) == len(data)

    def read(self, most: int) -> int:
        """Read at most ``most`` bytes, and record the messages in them; return the number of bytes."""
        try:
            data = self.socket.recv(most)
        except (BlockingIOError, ConnectionResetError):
            return 0
        self.unparsed += data
        while (found := Frame.decode(self.unparsed)) is not None:
            frame, length = found
            self.unparsed = self.unparsed[length:]
            assert not self.told_close, "a frame followed the close frame"
            if frame.opcode is Opcode.CLOSE:
                self.told_close = True
                self.leave()
            elif frame.opcode is Opcode.PING:
                self.write(masked(Frame.pong(frame.payload)))
            elif frame.opcode is Opcode.BINARY:
                self.received.append(int(frame.payload[:10]))
        return len(data)

    def leave(self) -> None:
        """Answer a close frame, and close the socket."""
        self.write(masked(Frame.close(1000)))
        self.hang_up()

    def half_close(self) -> None:
        self.half_closed = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        self.gone = True
        self.socket.close()


class Waiter:
    """A task in drain(), and the frames that were queued when it began."""

    def __init__(self, client: Client, queue: Queue) -> None:
        self.client = client
        self.queue = queue
        self.frames = list(queue.frames)
        self.drops = queue.drops
        self.task = asyncio.ensure_future(client.connection.drain())

    def is_owed(self, frames: list[QueuedFrame]) -> bool:
        """Return True if one of the frames was queued when the task began."""
        return any(frame is other for frame in self.frames for other in frames)


class HubMachine(RuleBasedStateMachine):
    """Random actions of the clients and of the application."""

    loop_factory = staticmethod(asyncio.new_event_loop)

    def __init__(self) -> None:
        super().__init__()
        self.loop = self.loop_factory()
        self.directory = tempfile.TemporaryDirectory()
        self.path = str(Path(self.directory.name) / "hub")
        self.clients: dict[int, Client] = {}
        self.clock = Clock()
        self.number = 0
        self.commands: list[Action] = []
        self.reading: int | None = None  # the client that reads while the loop runs
        self.waiters: list[Waiter] = []

    @initialize(
        policy=hub_policies,
        members=st.lists(st.tuples(clients, rooms), min_size=6, max_size=18),
        behind=st.dictionaries(clients, levels, min_size=1, max_size=2),
    )
    def start(self, policy: str, members: list[tuple[int, str]], behind: dict[int, int]) -> None:
        self.model = HubModel(policy, ROOMS)
        self.hub = Hub(
            HubConfig(
                slow_consumer=policy,  # type: ignore[arg-type]
                max_send_buffer=MAX_SEND_BUFFER,
                send_timeout_ms=0,
                ping_interval_ms=2**31,
                close_timeout_ms=int(CLOSE_TIMEOUT * 1000),
            ),
            clock=self.clock,
        )
        for name, room_policy in ROOMS.items():
            self.hub.configure_room(name, slow_consumer=room_policy)  # type: ignore[arg-type]
        self.loop.run_until_complete(self.serve())
        for client, room in members:
            self.join(client, room)
        for client, level in behind.items():
            self.a_client_falls_behind(client, level)

    async def serve(self) -> None:
        handler = EventHandler(on_open=self.on_open, on_message=self.on_message, on_drain=self.on_drain)
        self.server = self.hub.serve(unix=self.path, handler=handler)
        await self.server.__aenter__()
        for number in CLIENTS:
            await self.connect(number)

    async def connect(self, number: int) -> None:
        self.clients[number] = client = Client(self.path)
        self.model.add_client(number)
        self.newcomer = client
        while client.connection is None:
            await asyncio.sleep(0)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                answer += client.socket.recv(1000)
        assert answer.startswith(b"HTTP/1.1 101 ")

    def on_open(self, connection: Connection) -> None:
        self.newcomer.connection = connection

    def on_drain(self, connection: Connection) -> None:
        assert connection.buffered == 0
        for client in self.clients.values():
            client.behind = client.behind and client.connection is not connection

    # Effects of the hub's own work

    async def settle(self) -> None:
        """Let the loop run until the hub has nothing left to do."""
        for _ in range(8):
            await asyncio.sleep(0)
        self.observe()
        for number, queue in self.model.queues.items():
            queue.blocked = bool(queue.frames)
            self.clients[number].behind |= queue.blocked

    def observe(self) -> None:
        """Report to the model what the kernel has accepted, and which clients have left."""
        for number, client in self.clients.items():
            queue = self.model.queues[number]
            state = client.connection.state.name
            if state == "CLOSED":
                if (client.gone and not client.told_close) or client.timed_out:
                    queue.drop_all("closed")
                else:
                    assert client.half_closed or client.says_close or client.told_close
                    if number in self.model.open and client.says_close:
                        self.model.close(number)
                    queue.take_down_to(0)
                self.model.end(number)
                continue
            if number in self.model.open and state == "CLOSING":
                assert client.half_closed or client.says_close or client.gone
                self.model.end(number)
                if client.says_close and client.connection.close_code != 1006:
                    self.model.close(number)
            if client.timed_out:
                # Its link is closed already; handlers that run before on_close can see that.
                continue
            queue.take_down_to(client.connection.buffered)
            if not queue.frames:
                queue.blocked = False

    # Actions of the application

    def act(self, action: Action) -> bool:
        """Perform the action; return False if its outcome depends on what the kernel will accept."""
        self.observe()
        kind, arguments = action
        policy: str | None = None
        if kind == "broadcast":
            name, exclude = arguments[:2]
            targets = self.model.receivers(name, exclude)
            policy = arguments[3] or (ROOMS[name] if name is not None else None)
        else:
            targets = {arguments[0]} if kind in ("send", "ping") else set()
            policy = arguments[2] if kind == "send" else None
        policy = policy or self.model.policy
        for target in targets & self.model.open:
            queue = self.model.queues[target]
            if queue.is_full and not queue.blocked:
                return False
            if target == self.reading and queue.frames and (queue.is_full or policy == "latest"):
                return False
        getattr(self, kind)(*arguments)
        return True

    def join(self, client: int, room: str) -> None:
        connection = self.clients[client].connection
        if client in self.model.open:
            connection.join(room)
            self.model.join(client, room)
        else:
            with pytest.raises(ConnectionClosed):
                connection.join(room)

    def leave(self, client: int, room: str) -> None:
        self.clients[client].connection.leave(room)
        self.model.leave(client, room)

    def message(self, size: int) -> tuple[int, bytes]:
        self.number += 1
        return self.number, b"%10d" % self.number + bytes(size - 10)

    def send(self, client: int, size: int, policy: Any, key: str | None) -> None:
        number, data = self.message(size)
        connection = self.clients[client].connection
        if client in self.model.open:
            connection.send(data, slow_consumer=policy, key=key)
            self.model.send(client, number, size, policy, key)
        else:
            with pytest.raises(ConnectionClosed):
                connection.send(data, slow_consumer=policy, key=key)

    def ping(self, client: int, size: int) -> None:
        if client in self.model.open:
            self.clients[client].connection.send_ping(bytes(size))
            self.model.ping(client, size)

    def broadcast(self, room: str | None, exclude: int | None, size: int, policy: Any, key: str | None) -> None:
        number, data = self.message(size)
        excluded = None if exclude is None else self.clients[exclude].connection
        count = self.hub.broadcast(data, room=room, exclude=excluded, slow_consumer=policy, key=key)
        assert count == self.model.broadcast(room, number, size, exclude, policy, key)

    def close(self, client: int) -> None:
        self.clients[client].connection.close()
        if client in self.model.open:
            self.model.close(client)

    def on_message(self, connection: Connection, message: Message) -> None:
        command = int(bytes(message))
        next(client for client in self.clients.values() if client.connection is connection).heard.append(command)
        self.act(self.commands[command])

    # The rules

    def run(self, *steps: Callable[[], Any], reading: int | None = None) -> None:
        """Let the loop run, perform the steps in one iteration of it, and let it run again."""

        async def turn() -> None:
            await self.settle()
            self.reading = reading
            for step in steps:
                step()
            await self.settle()
            self.reading = None

        self.loop.run_until_complete(asyncio.wait_for(turn(), 30))

    @rule(burst=st.lists(actions, min_size=1, max_size=8))
    def the_application_acts(self, burst: list[Action]) -> None:
        def act_all() -> None:
            for action in burst:
                self.act(action)

        self.run(act_all)

    @rule(client=clients, burst=st.lists(actions, min_size=1, max_size=4))
    def a_client_has_a_handler_act(self, client: int, burst: list[Action]) -> None:
        speaker = self.clients[client]
        if speaker.gone or speaker.half_closed or speaker.says_close:
            return

        def say() -> None:
            for action in burst:
                speaker.said.append(len(self.commands))
                speaker.write(masked(Frame.text(str(len(self.commands)))))
                self.commands.append(action)

        self.run(say)

    @rule(client=clients)
    def the_application_waits(self, client: int) -> None:
        async def wait() -> None:
            self.observe()
            if client in self.model.open:
                self.waiters.append(Waiter(self.clients[client], self.model.queues[client]))
                await asyncio.sleep(0)

        self.run()
        self.loop.run_until_complete(wait())
        self.run()

    @rule(client=clients, level=levels)
    def a_client_falls_behind(self, client: int, level: int) -> None:
        """Fill the client's queue up to ``level`` while it reads nothing."""
        queue = self.model.queues[client]
        while client in self.model.open and (not queue.blocked or queue.charge < level):
            # The kernel accepts only a part of a long message.
            size = 1000 if queue.blocked else 50_000
            self.run(lambda size=size: self.act(("send", (client, size, "drop_newest", "x"))))

    @rule(client=clients, most=st.sampled_from([1, 100, 10_000, 100_000, 1_000_000]))
    def a_client_reads(self, client: int, most: int) -> None:
        reader = self.clients[client]
        if not reader.gone:
            self.run(lambda: reader.read(most), reading=client)

    @rule(client=clients)
    def a_client_catches_up(self, client: int) -> None:
        reader = self.clients[client]
        while not reader.gone and reader.read(1 << 20):
            self.run(reading=client)

    @rule(client=clients, how=st.sampled_from(["comes", "comes", "comes", "half closes", "closes", "disconnects"]))
    def a_client_comes_or_goes(self, client: int, how: str) -> None:
        subject = self.clients[client]
        if how == "comes":
            if subject.connection.state is ConnectionState.CLOSED:
                subject.socket.close()
                self.loop.run_until_complete(self.connect(client))
                self.run()
        elif subject.gone:
            pass
        elif how == "half closes":
            self.run(subject.half_close)
        elif how == "disconnects":
            self.run(subject.hang_up)
        elif not subject.half_closed:
            subject.says_close = True
            self.run(lambda: subject.write(masked(Frame.close(1000))))

    @rule()
    def time_for_closing_is_over(self) -> None:
        def pass_time() -> None:
            for number, client in self.clients.items():
                if number not in self.model.open:
                    client.timed_out = True
            self.clock.pass_for(CLOSE_TIMEOUT + 1, self.hub)

        self.run(pass_time)

    # Invariants

    @invariant()
    def the_hub_and_its_model_agree(self) -> None:
        stats = self.hub.stats().asdict()
        for name, value in self.model.counters.as_stats().items():
            assert stats[name] == value, (name, stats[name], value)
        assert self.hub.rooms == self.model.rooms.keys()
        for name, room in self.model.rooms.items():
            members = {number for number, client in self.clients.items() if client.connection.in_room(name)}
            assert {self.clients[number].connection for number in room.members} == set(self.hub.room_members(name))
            assert members >= room.members
            counts = {"connections": len(room.members), **room.counters.as_stats()}
            assert self.hub.stats(room=name).asdict() == counts
        for number, client in self.clients.items():
            taken = self.model.queues[number].taken
            assert client.received == taken[: len(client.received)]
            assert client.heard == client.said[: len(client.heard)]

    @invariant()
    def drain_and_on_drain_tell_what_has_left(self) -> None:
        for number in self.model.open:
            assert self.model.queues[number].frames or not self.clients[number].behind
        for waiter in list(self.waiters):
            queue = waiter.queue
            if not waiter.task.done():
                # A policy may drop frames that drain() waits for; it then waits for as many bytes queued later.
                assert queue.frames
                assert waiter.is_owed(queue.frames) or queue.drops > waiter.drops
                continue
            self.waiters.remove(waiter)
            if waiter.task.exception() is None:
                assert not waiter.is_owed(queue.frames + queue.lost)
            else:
                assert waiter.client.connection.state is not ConnectionState.OPEN
                assert isinstance(waiter.task.exception(), ConnectionClosed)

    def teardown(self) -> None:
        try:
            for number, client in self.clients.items():
                self.a_client_catches_up(number)
                if number in self.model.open:
                    assert client.heard == client.said
                if not client.gone:
                    self.run(lambda number=number: self.close(number))
                    self.a_client_catches_up(number)
                    assert client.received == self.model.queues[number].taken
            if self.clients:
                self.run()
                self.the_hub_and_its_model_agree()
                self.drain_and_on_drain_tell_what_has_left()
                assert not self.waiters
                assert self.hub.stats().messages_pending == 0
        finally:
            for client in self.clients.values():
                client.socket.close()
            if hasattr(self, "server"):
                self.loop.run_until_complete(self.server.__aexit__(None, None, None))
            self.loop.close()
            self.directory.cleanup()


@needs_reactor
@pytest.mark.parametrize(
    "loop_factory", [pytest.param(asyncio.new_event_loop, marks=pytest.mark.long), uvloop.new_event_loop]
)
def test_every_client_gets_what_the_model_says_whatever_happens(loop_factory) -> None:
    class Machine(HubMachine):
        pass

    Machine.loop_factory = staticmethod(loop_factory)
    run_state_machine_as_test(Machine, settings=settings(max_examples=RUNS, stateful_step_count=50))
