"""Watches: a hub calls a function with every message to the rooms of a pattern, without members in these rooms."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_node import until
from tests.support.cluster_nodes import member, serving_node
from tests.support.serving_hub import connected
from wshub import (
    BrokerUnavailable,
    ConfigurationError,
    EventHandler,
    HistoryConfig,
    Hub,
    HubConfig,
    Message,
    MisuseError,
    RoomMessage,
    Watch,
)
from wshub.brokers.interface import Broker
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.redis import RedisBroker
from wshub.brokers.workers import WorkersBroker
from wshub.publisher import AsyncPublisher


class Seen:
    """A function that keeps what it was called with."""

    def __init__(self) -> None:
        self.messages: list[RoomMessage] = []

    def __call__(self, message: RoomMessage) -> None:
        self.messages.append(message)

    @property
    def texts(self) -> list[Any]:
        return [message.data for message in self.messages]

    async def after(self, count: int) -> list[tuple[str, Any]]:
        """Return the rooms and the data, once there are so many."""
        await until(lambda: len(self.messages) >= count)
        return [(message.room, message.data) for message in self.messages]


@contextlib.asynccontextmanager
async def hub_with(broker: Broker | None, **settings: Any) -> AsyncIterator[Hub]:
    async with Hub(HubConfig(**settings), broker=broker) as hub:
        await hub.broker_started()
        yield hub


@pytest.fixture(params=["alone", "memory", "workers"])
def pair(request: pytest.FixtureRequest, socket_directory: Path) -> Any:
    """Return a context with two hubs that a broker joins, or twice the same hub without one."""
    engine = MemoryEngine()

    @contextlib.asynccontextmanager
    async def joined(**settings: Any) -> AsyncIterator[tuple[Hub, Hub]]:
        if request.param == "alone":
            async with hub_with(None, **settings) as hub:
                yield hub, hub
            return
        brokers: list[Broker] = [MemoryBroker(engine), MemoryBroker(engine)]
        if request.param == "workers":
            brokers = [WorkersBroker(socket_directory, several_in_process=True) for _ in range(2)]
        async with hub_with(brokers[0], **settings) as one, hub_with(brokers[1], **settings) as two:
            yield one, two

    return joined


# What arrives


async def test_messages_of_every_node_to_matching_rooms_arrive_once(pair: Any) -> None:
    seen = Seen()
    async with pair() as (one, two):
        watch = await one.watch("prices:*", seen)
        for hub in (one, two):
            hub.broadcast("text é", room="prices:1")
            hub.broadcast(b"\x00\xff", room="prices:1", exclude=7, compress=False)
            await hub.publish(Message("sent"), room="prices:")
            hub.broadcast("no", room="price")
            hub.broadcast("no", room="other prices:1")
            hub.broadcast("no")
            hub.send_to_user("prices:1", "no")
            await hub.publish("end", room="prices:end")
            await until(lambda: seen.texts[-1:] == ["end"])
        expected = [("prices:1", "text é"), ("prices:1", b"\x00\xff"), ("prices:", "sent"), ("prices:end", "end")]
        assert await seen.after(8) == 2 * expected
        assert all(message.position is None and message.publisher is None for message in seen.messages)
        assert seen.messages[0].time == pytest.approx(seen.messages[-1].time, abs=60)
        assert (watch.pattern, watch.handled, watch.pending, watch.dropped) == ("prices:*", 8, 0, 0)


async def test_messages_to_rooms_with_history_come_with_their_position(pair: Any) -> None:
    seen = Seen()
    async with pair() as (one, two):
        for hub in (one, two):
            hub.configure_room("chat:*", history=HistoryConfig(encode=lambda publication: f"no {publication.offset}"))
        await one.watch("chat:*", seen)
        positions = []
        for number in range(5):
            for hub in (one, two):
                published = await hub.publish(f"{number}", room="chat:1", publisher="ann", idempotency_key=f"{number}")
                positions.append(published.position)
        two.broadcast("last", room="chat:1")
        await until(lambda: seen.texts[-1:] == ["last"])
        assert seen.texts == ["0", "1", "2", "3", "4", "last"]
        assert [message.position for message in seen.messages[:5]] == positions[::2]
        assert [message.publisher for message in seen.messages] == [*5 * ["ann"], None]


async def test_a_room_with_members_is_watched_too(socket_directory: Path) -> None:
    engine = MemoryEngine()
    for brokers in (
        [MemoryBroker(engine), MemoryBroker(engine)],
        [WorkersBroker(socket_directory, several_in_process=True) for _ in range(2)],
    ):
        seen = Seen()
        async with serving_node(brokers[0]) as one, serving_node(brokers[1]) as two, member(one, "a") as client:
            await one.hub.watch("*", seen)
            for number in range(20):
                (one, two)[number % 2].hub.broadcast(str(number), room="a")
                assert await client.recv() == str(number)
            await client.send("from the client")
            assert await client.recv() == "from the client"
            await seen.after(21)
            assert seen.texts == [*map(str, range(20)), "from the client"]


async def test_each_watch_gets_each_message_once(pair: Any) -> None:
    all_seen = [Seen() for _ in range(4)]
    async with pair() as (one, two):
        watches = [
            await one.watch(pattern, seen) for pattern, seen in zip(("*", "a*", "a*", "a1"), all_seen, strict=True)
        ]
        two.broadcast("1", room="a1")
        two.broadcast("2", room="b")
        two.broadcast("3", room="a2")
        await until(lambda: [len(seen.messages) for seen in all_seen] == [3, 2, 2, 1])
        await watches[1].close()
        await watches[1].close()
        await two.publish("4", room="a1")
        await until(lambda: [seen.texts[-1] for seen in all_seen] == ["4", "3", "4", "4"])
        assert [seen.texts for seen in all_seen] == [["1", "2", "3", "4"], ["1", "3"], ["1", "3", "4"], ["1", "4"]]
        assert [watch.is_closed for watch in watches] == [False, True, False, False]


async def test_messages_from_threads_and_other_programs_arrive(socket_directory: Path) -> None:
    seen = Seen()
    async with hub_with(WorkersBroker(socket_directory)) as hub:
        await hub.watch("a", seen)
        thread = threading.Thread(target=hub.broadcast, args=("from a thread",), kwargs={"room": "a"})
        thread.start()
        await seen.after(1)
        thread.join()
        async with AsyncPublisher(f"workers:{socket_directory}") as publisher:
            await publisher.publish("from a program", room="a")
            await seen.after(2)
        assert seen.texts == ["from a thread", "from a program"]


# The function


async def test_a_coroutine_function_is_called_with_one_message_after_the_other() -> None:
    running, order = 0, []

    async def handle(message: RoomMessage) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        order.append(message.data)
        running -= 1

    async with Hub() as hub, await hub.watch("*", handle) as watch:
        for number in range(100):
            hub.broadcast(str(number), room="a")
        await until(lambda: len(order) == 100)
        assert order == [str(number) for number in range(100)]
        assert (watch.handled, watch.failed) == (100, 0)


@pytest.mark.parametrize("error", [ValueError("a bad message"), asyncio.CancelledError()])
async def test_an_error_is_logged_and_the_next_message_is_handled(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()

    async def handle(message: RoomMessage) -> None:
        if message.data == "bad":
            raise error
        seen(message)

    async with Hub() as hub, await hub.watch("*", handle) as watch:
        for text in ("1", "bad", "2"):
            hub.broadcast(text, room="a")
        assert await seen.after(2) == [("a", "1"), ("a", "2")]
        assert (watch.handled, watch.failed) == (3, 1)
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.getMessage() == "the function that watches '*' has failed for a message to the room 'a'"
    assert record.exc_info is not None


async def test_a_slow_function_misses_messages_which_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    seen, go_on = Seen(), asyncio.Event()

    async def handle(message: RoomMessage) -> None:
        seen(message)
        await go_on.wait()

    async with Hub() as hub, await hub.watch("*", handle, max_pending=5 * (256 + 10)) as watch:
        hub.broadcast("first", room="a")
        await seen.after(1)
        for number in range(100):
            hub.broadcast(f"{number:010}", room="a")
        assert (watch.pending, watch.dropped) == (5, 95)
        go_on.set()
        await seen.after(6)
        hub.broadcast("x" * 5_000, room="a")
        await seen.after(7)
        # A message that is larger than the limit is handled if no other one waits.
        assert seen.texts == ["first", *(f"{number:010}" for number in range(5)), "x" * 5_000]
        assert watch.dropped == 95
    assert [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING] == [
        "the function that watches '*' is too slow: messages are dropped"
    ]


@pytest.mark.parametrize("room", ["a", "kept:a"])
async def test_the_limit_is_in_bytes_however_long_characters_are(pair: Any, room: str) -> None:
    async def handle(message: RoomMessage) -> None:
        await asyncio.Event().wait()

    async with pair(close_timeout_ms=50) as (one, two):
        for hub in (one, two):
            hub.configure_room("kept:*", history=HistoryConfig())
        watch = await one.watch(room, handle, max_pending=2 * (256 + 400))
        two.broadcast("first", room=room)
        await until(lambda: watch.handled == 1)
        for _ in range(4):
            two.broadcast("\N{GRINNING FACE}" * 100, room=room)
        await until(lambda: watch.pending + watch.dropped == 4)
        assert watch.pending == 2


@pytest.mark.parametrize("is_coroutine", [False, True])
async def test_a_function_that_never_waits_leaves_time_for_others(is_coroutine: bool) -> None:
    seen = Seen()

    async def handle(message: RoomMessage) -> None:
        seen(message)

    async with Hub() as hub:
        await hub.watch("*", handle if is_coroutine else seen)
        for number in range(10_000):
            hub.broadcast(str(number), room="a")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert 0 < len(seen.messages) < 1_000
        await seen.after(10_000)


# The end


async def test_close_returns_when_what_waits_was_handled() -> None:
    seen, go_on = Seen(), asyncio.Event()

    async def handle(message: RoomMessage) -> None:
        await go_on.wait()
        seen(message)

    async with Hub() as hub:
        watch = await hub.watch("*", handle)
        for number in range(3):
            hub.broadcast(str(number), room="a")
        closing = asyncio.create_task(watch.close())
        await asyncio.sleep(0)
        hub.broadcast("too late", room="a")
        go_on.set()
        await closing
        assert seen.texts == ["0", "1", "2"]
        assert hub._watches is None


async def test_a_close_that_is_cancelled_cancels_the_function() -> None:
    ended = asyncio.Event()

    async def handle(message: RoomMessage) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with Hub() as hub:
        watch = await hub.watch("*", handle)
        for number in range(3):
            hub.broadcast(str(number), room="a")
        await until(lambda: watch.handled == 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await watch.close()
        await ended.wait()
        await watch.close()
        assert (watch.handled, watch.dropped) == (1, 2)


@pytest.mark.parametrize("is_in_task", [False, True])
async def test_the_function_may_close_its_watch(*, is_in_task: bool) -> None:
    texts = []

    async def handle(message: RoomMessage) -> None:
        texts.append(message.data)
        if message.data == "stop":
            await (asyncio.create_task(watch.close()) if is_in_task else watch.close())

    async with Hub() as hub:
        watch = await hub.watch("*", handle)
        for text in ("1", "stop", "2"):
            hub.broadcast(text, room="a")
        await until(lambda: watch.is_closed)
        hub.broadcast("too late", room="a")
        await watch.close()
        assert texts == ["1", "stop", "2"]


async def test_a_hub_that_closes_has_the_last_messages_handled() -> None:
    seen = Seen()

    async def handle(message: RoomMessage) -> None:
        await asyncio.sleep(0)
        seen(message)

    hub = Hub()
    handler = EventHandler(on_close=lambda connection, code, reason: hub.broadcast("left", room="a"))
    async with hub.serve("127.0.0.1", 0, handler) as server:
        watch = await hub.watch("*", handle)
        async with connected(f"ws://127.0.0.1:{server.port}/") as client:
            await (await client.ping())
            await hub.close()
    assert seen.texts == ["left"]
    assert watch.is_closed
    with pytest.raises(BrokerUnavailable, match="closed"):
        await hub.watch("*", seen)


async def test_a_hub_that_closes_cancels_a_function_that_does_not_end(pair: Any) -> None:
    ended: list[Watch] = []

    async def handle(message: RoomMessage) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(watch)

    async with pair(close_timeout_ms=50) as (one, two):
        watch = await one.watch("*", handle)
        two.broadcast("1", room="a")
        await until(lambda: watch.handled)
    assert ended == [watch]


@pytest.mark.parametrize("is_first", [True, False])
async def test_the_function_may_close_the_hub(pair: Any, *, is_first: bool) -> None:
    seen, others = Seen(), Seen()

    async def handle(message: RoomMessage) -> None:
        if not is_first:
            closing = asyncio.create_task(one.close())
            await until(lambda: watch.is_closed)
            await one.close()
            await closing
        await one.close()
        seen(message)

    async with pair(close_timeout_ms=200) as (one, two):
        watch = await one.watch("*", handle)
        await one.watch("*", others)
        for text in ("1", "2"):
            two.broadcast(text, room="a")
        # It is not cancelled, and gets what waits.
        assert await seen.after(2) == await others.after(2) == [("a", "1"), ("a", "2")]
        assert watch.is_closed


async def test_a_watch_whose_function_cancels_its_task_has_ended(pair: Any) -> None:
    seen = Seen()

    async def handle(message: RoomMessage) -> None:
        seen(message)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with pair() as (one, two):
        watch = await one.watch("*", handle)
        for text in ("1", "2"):
            two.broadcast(text, room="a")
        await until(lambda: watch.is_closed)
        assert seen.texts == ["1"]
        assert one._watches is None


async def test_a_watch_whose_task_is_cancelled_before_it_runs_has_ended(pair: Any) -> None:
    async with pair() as (one, _):
        watch = await one.watch("*", Seen())
        one.broadcast("1", room="a")
        for task in asyncio.all_tasks():
            if task.get_name() == "wshub watch *":
                task.cancel()
        await watch.close()
        assert watch.is_closed
        assert (watch.handled, watch.dropped) == (0, 1)
        assert one._watches is None


@pytest.mark.parametrize("kind", ["memory", "workers"])
def test_a_hub_begins_anew_without_watches(kind: str, socket_directory: Path) -> None:
    seen = Seen()
    hub = Hub(broker=MemoryBroker(MemoryEngine()) if kind == "memory" else WorkersBroker(socket_directory))
    left: list[Watch] = []

    async def use() -> None:
        assert hub._watches is None
        left.append(await hub.watch("*", seen))
        hub.broadcast("1", room="a")
        await seen.after(1)

    async def use_again() -> None:
        # The loop of the first watch has closed without the hub.
        await left[0].close()
        async with hub, await hub.watch("*", seen):
            hub.broadcast("2", room="a")
            await hub.publish("3", room="a:1")
            await seen.after(3)

    hub.configure_room("a:*", history=HistoryConfig())
    asyncio.run(use())
    asyncio.run(use_again())
    assert seen.texts == ["1", "2", "3"]


async def test_nothing_is_left_of_a_watch_that_has_closed(pair: Any) -> None:
    async with pair() as (one, _):
        before = one.broker.stats().subscriptions if one.broker is not None else 0
        for _ in range(2):
            async with await one.watch("*", Seen()) as watch, await one.watch("a*", Seen()):
                assert repr(watch) == "<Watch '*' open, 0 messages wait>"
                if one.broker is not None:
                    assert one.broker.stats().subscriptions == before + 2
            assert repr(watch) == "<Watch '*' closed, 0 messages wait>"
            assert one._watches is None
            if one.broker is not None:
                assert one.broker.stats().subscriptions == before


# Failures


async def test_a_watch_outlives_an_interruption_and_counts_it() -> None:
    engine = MemoryEngine()
    seen, broker = Seen(), MemoryBroker(engine)
    async with hub_with(broker) as one, hub_with(MemoryBroker(engine)) as two:
        watch = await one.watch("a:*", seen)
        other = await one.watch("b:*", Seen())
        two.broadcast("1", room="a:1")
        await seen.after(1)
        engine.cut(broker)
        await until(lambda: watch.interruptions == 1)
        assert other.interruptions == 1
        await until(lambda: one.health().ok)
        assert one._watches is not None
        await broker.pattern_subscribed("a:*")
        two.broadcast("2", room="a:1")
        assert await seen.after(2) == [("a:1", "1"), ("a:1", "2")]


async def test_a_watch_that_the_engine_refuses_is_an_error() -> None:
    engine = MemoryEngine()
    async with hub_with(MemoryBroker(engine)) as hub:
        engine.refuse("match:secret:*")
        with pytest.raises(BrokerUnavailable, match="refused"):
            await hub.watch("secret:*", Seen())
        assert hub._watches is None
        engine.heal()
        async with await hub.watch("secret:*", Seen()) as watch:
            assert watch.interruptions == 0


async def test_a_watch_without_a_connection_is_an_error() -> None:
    engine = MemoryEngine()
    async with hub_with(MemoryBroker(engine)) as hub:
        engine.stop()
        await until(lambda: not hub.health().ok)
        with pytest.raises(BrokerUnavailable):
            await hub.watch("*", Seen())
        assert hub._watches is None


async def test_a_call_that_is_cancelled_leaves_no_watch() -> None:
    engine = MemoryEngine()
    async with hub_with(MemoryBroker(engine)) as hub:
        engine.freeze()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await hub.watch("*", Seen())
        assert hub._watches is None
        engine.heal()


async def test_redis_does_not_deliver_by_patterns() -> None:
    hub = Hub(broker=RedisBroker("redis://localhost:1"))
    with pytest.raises(MisuseError, match=r"NATS.*Redis.*give the rooms a history"):
        await hub.watch("*", Seen())
    assert not hub.is_in_use


async def test_arguments_are_checked() -> None:
    async with Hub() as hub:
        with pytest.raises(ConfigurationError, match="one"):
            await hub.watch("a*b*", Seen())
        with pytest.raises(TypeError):
            await hub.watch(b"a", Seen())  # type: ignore[arg-type]
        with pytest.raises(MisuseError, match="function"):
            await hub.watch("a", None)  # type: ignore[arg-type]
        with pytest.raises(MisuseError, match="function"):
            await hub.watch("a", lambda: None)  # type: ignore[arg-type, misc]
        with pytest.raises(ConfigurationError, match="max_pending"):
            await hub.watch("a", Seen(), max_pending=0)
        assert hub._watches is None
