"""Coroutine handlers of one connection never overlap, and get each message once and in order.

The peer sends messages of any length in pieces of any size, and reads or does not read. Each handler may be suspended
for as long as the test decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.raw_peers import REQUEST, masked
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import Clock
from wshub import Connection, EventHandler, Frame, Hub, HubConfig, Message, RateLimits

ANSWER = bytes(300_000)  # more than the kernel's buffers hold
DIGITS = 8

# The number of bytes that are not yet written.
held_back = st.sampled_from([0, 0, 1, 9_000, 9_000, 1 << 20])
says = st.tuples(st.just("say"), st.sampled_from([DIGITS, 40_000, 120_000]), st.booleans(), held_back)
steps = st.one_of(
    *(says, says),
    st.tuples(st.just("ping"), held_back),
    st.tuples(st.just("write"), st.sampled_from([1, 10_000, 1 << 20, 1 << 20])),
    st.tuples(st.just("read"), st.sampled_from([1_000, 1 << 20])),
    *[st.tuples(st.just("catch_up"))] * 2,
    *[st.tuples(st.just("wake"), st.integers(0, 1))] * 2,
    st.tuples(st.just("pass_time")),
)


class Handler(EventHandler):
    """Handlers that suspend as the test decides, and record every overlap of two of them.

    Args:
        receives: If true, ``on_open`` receives the messages and runs concurrently with ``on_ping`` and ``on_drain``.
            Otherwise ``on_message`` gets them.
        suspends: For each handler call in order, True if it suspends. Later calls do not suspend.
    """

    def __init__(self, *, receives: bool, suspends: list[bool]) -> None:
        super().__init__(**({} if receives else {"on_message": self.take}))
        self.receives = receives
        self.suspends = iter(suspends)
        self.suspended: list[asyncio.Future[None]] = []
        self.running: list[str] = []
        self.overlaps: list[str] = []
        self.handled: list[int] = []
        self.closed = 0

    @contextlib.asynccontextmanager
    async def runs(self, name: str) -> AsyncIterator[None]:
        beside = ["on_open"] if self.receives and name in ("on_ping", "on_drain") else []
        if self.running not in ([], beside):
            self.overlaps.append(f"{name} beside {self.running}")
        self.running.append(name)
        try:
            await self.pause()
            yield
        finally:
            self.running.remove(name)

    async def pause(self) -> None:
        if next(self.suspends, False):
            self.suspended.append(asyncio.get_running_loop().create_future())
            await self.suspended[-1]

    async def on_open(self, connection: Connection) -> None:
        async with self.runs("on_open"):
            if self.receives:
                async for message in connection:
                    self.note(connection, message)
                    await self.pause()

    async def take(self, connection: Connection, message: Message) -> None:
        async with self.runs("on_message"):
            self.note(connection, message)

    async def on_ping(self, connection: Connection, payload: bytes) -> None:
        async with self.runs("on_ping"):
            pass

    async def on_drain(self, connection: Connection) -> None:
        async with self.runs("on_drain"):
            pass

    async def on_close(self, connection: Connection, code: int, reason: str) -> None:
        async with self.runs("on_close"):
            self.closed += 1
            self.code = code

    def note(self, connection: Connection, message: Message) -> None:
        self.handled.append(int(bytes(message)[:DIGITS]))
        if isinstance(message.data, str):
            connection.send(ANSWER)


class Scene:
    """A connection and its peer."""

    def __init__(self, hub: Hub, handler: Handler, clock: Clock, path: str) -> None:
        self.hub = hub
        self.handler = handler
        self.clock = clock
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self.unwritten = REQUEST
        self.said = 0

    async def say(self, size: int, is_answered: bool, held_back: int) -> None:
        self.said += 1
        text = f"{self.said:0{DIGITS}}".ljust(size, ".")
        self.send(Frame.text(text) if is_answered else Frame.binary(text.encode()), held_back)

    async def ping(self, held_back: int) -> None:
        self.send(Frame.ping(b"p"), held_back)

    def send(self, frame: Frame, held_back: int) -> None:
        self.unwritten += masked(frame)
        self.write_now(len(self.unwritten) - held_back)

    def write_now(self, most: int) -> None:
        if most > 0 and self.unwritten:
            with contextlib.suppress(BlockingIOError):
                self.unwritten = self.unwritten[self.socket.send(self.unwritten[:most]) :]

    async def write(self, most: int) -> None:
        self.write_now(most)

    async def read(self, most: int) -> bool:
        with contextlib.suppress(BlockingIOError):
            return bool(self.socket.recv(most))
        return False

    async def catch_up(self) -> None:
        """Read all available data."""
        while await self.read(1 << 20):
            await self.settle()

    async def wake(self, which: int) -> None:
        """Resume a suspended handler."""
        if self.handler.suspended:
            self.handler.suspended.pop(which % len(self.handler.suspended)).set_result(None)

    async def pass_time(self) -> None:
        # Call it from the loop, as the hub calls handlers.
        asyncio.get_running_loop().call_soon(self.clock.pass_for, 0.5, self.hub)

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    async def finish(self) -> None:
        """Write the rest, and run until all of it is read and handled."""
        self.handler.suspends = iter(())
        while self.unwritten or len(self.handler.handled) < self.said or self.handler.suspended:
            assert not self.handler.closed, self.handler.code
            await self.wake(0)
            await self.write(1 << 20)
            await self.catch_up()
            await self.pass_time()
            await self.settle()


async def play(*, native: bool, receives: bool, rates: RateLimits, suspends: list[bool], story: list[Any]) -> None:
    clock = Clock()
    config = HubConfig(
        use_reactor=native,
        rates=rates,
        max_message_size=1 << 17,
        # A handler that receives also answers all messages that were already read, however large.
        max_send_buffer=1 << 24 if receives else 1 << 20,
        send_timeout_ms=0,
        ping_interval_ms=2**31,
        close_timeout_ms=1_000,
    )
    handler = Handler(receives=receives, suspends=suspends)
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "hub")
        hub = Hub(config, clock=clock)
        async with hub.serve(unix=path, handler=handler):
            scene = Scene(hub, handler, clock, path)
            await scene.write(len(REQUEST))
            for kind, *arguments in story:
                await getattr(scene, kind)(*arguments)
                await scene.settle()
            await scene.finish()
            assert handler.handled == list(range(1, scene.said + 1))
            scene.socket.close()
            while not handler.closed:
                await scene.pass_time()
                await scene.settle()
    assert (handler.overlaps, handler.running, handler.closed) == ([], [], 1)


@pytest.mark.parametrize("receives", [False, True], ids=["on_message", "receives"])
@pytest.mark.parametrize(
    "native", [pytest.param(True, id="reactor", marks=needs_reactor), pytest.param(False, id="asyncio")]
)
@settings(max_examples=150)
@given(
    rates=st.sampled_from([RateLimits(control_frames=0), RateLimits(messages=5, bytes=100_000, burst_ms=100)]),
    suspends=st.lists(st.booleans(), max_size=30),
    story=st.lists(steps, max_size=60),
)
def test_handlers_of_a_connection_run_one_at_a_time_and_in_order(
    native: bool, receives: bool, rates: RateLimits, suspends: list[bool], story: list[Any]
) -> None:
    asyncio.run(
        asyncio.wait_for(play(native=native, receives=receives, rates=rates, suspends=suspends, story=story), 60)
    )
