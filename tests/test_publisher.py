"""Messages from programs without a hub."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import websockets

from tests.support.programs import free_port
from tests.support.serving_hub import connected
from wshub import (
    BrokerError,
    BrokerUnavailable,
    BrokerUncertain,
    ConfigurationError,
    EventHandler,
    Hub,
    InvalidMessageError,
    MisuseError,
)
from wshub.brokers.interface import Published
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.workers import WorkersBroker
from wshub.publisher import AsyncPublisher, Publisher


@pytest.fixture
def directory(socket_directory: Path) -> str:
    return str(socket_directory)


class Member:
    """A hub with one client, who is a member of ``lobby`` and the user ``ann``."""

    def __init__(self, directory: str) -> None:
        self.hub = Hub(broker=WorkersBroker(directory))
        self.url = f"workers:{directory}"

    async def clients(self) -> AsyncIterator[Any]:
        def opened(connection: Any) -> None:
            connection.user = "ann"
            connection.join("lobby")

        async with self.hub.serve("127.0.0.1", 0, EventHandler(on_open=opened)) as server:
            await self.hub.broker_started()
            async with connected(f"ws://127.0.0.1:{server.port}/") as client:
                await (await client.ping())
                yield client


async def test_a_coroutine_publishes_to_rooms_users_and_all(directory) -> None:
    member = Member(directory)
    async for client in member.clients():
        async with AsyncPublisher(member.url) as publisher:
            await publisher.publish("room", room="lobby")
            await publisher.publish(b"user", user="ann")
            await publisher.publish("all")
        assert [await client.recv(), await client.recv(), await client.recv()] == ["room", b"user", "all"]


async def test_a_program_without_asyncio_publishes_from_any_thread(directory) -> None:
    member = Member(directory)

    def publish_all() -> None:
        with Publisher(member.url) as publisher:
            threads = [
                threading.Thread(target=publisher.publish, args=(str(number),), kwargs={"room": "lobby"})
                for number in range(10)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    async for client in member.clients():
        await asyncio.to_thread(publish_all)
        assert {await client.recv() for _ in range(10)} == {str(number) for number in range(10)}


async def test_a_publisher_connects_again_after_it_was_closed(directory) -> None:
    member = Member(directory)
    async for client in member.clients():
        publisher = Publisher(member.url)
        for text in ("first", "second"):
            await asyncio.to_thread(publisher.publish, text, room="lobby")
            await asyncio.to_thread(publisher.close)
            assert await client.recv() == text


def publish_in_child(publisher: Publisher) -> None:
    publisher.publish("from the child", room="lobby")
    publisher.close()


async def test_a_forked_process_connects_anew(directory) -> None:
    member = Member(directory)
    async for client in member.clients():
        publisher = Publisher(member.url)
        await asyncio.to_thread(publisher.publish, "from the parent", room="lobby")
        child = multiprocessing.get_context("fork").Process(target=publish_in_child, args=(publisher,))
        child.start()
        await asyncio.to_thread(child.join, 20)
        assert child.exitcode == 0
        await asyncio.to_thread(publisher.publish, "the parent again", room="lobby")
        await asyncio.to_thread(publisher.close)
        assert [await client.recv() for _ in range(3)] == ["from the parent", "from the child", "the parent again"]


async def test_a_publisher_closes_the_connections_of_a_user(directory) -> None:
    member = Member(directory)
    async for client in member.clients():
        async with AsyncPublisher(member.url) as publisher:
            await publisher.disconnect_user("ben", 4001, "not this one")
            await publisher.publish("still there", room="lobby")
            assert await client.recv() == "still there"
            assert (await publisher.disconnect_user("ann", 4000, "bye")).receivers == 1
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await client.recv()
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "bye")


async def test_a_program_without_asyncio_closes_the_connections_of_a_user(directory) -> None:
    member = Member(directory)
    async for client in member.clients():
        with Publisher(member.url) as publisher:
            await asyncio.to_thread(publisher.disconnect_user, "ann")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd.code == 1008


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("",), MisuseError),
        ((7,), TypeError),
        (("ann", 1006), InvalidMessageError),
        (("ann", 4000, "x" * 124), InvalidMessageError),
        (("ann", 4000, 7), TypeError),
    ],
)
async def test_a_command_that_cannot_be_sent_is_refused(directory, arguments: Any, error: type[Exception]) -> None:
    async with AsyncPublisher(f"workers:{directory}") as publisher:
        with pytest.raises(error):
            await publisher.disconnect_user(*arguments)


async def test_the_health_of_a_publisher_has_it_connect(engine) -> None:
    publisher = AsyncPublisher("memory")
    assert publisher.health().state == "starting"
    async with publisher:
        assert publisher.health().ok
    await nothing_is_left()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"room": "a", "user": "b"}, MisuseError),
        ({"user": ""}, MisuseError),
        ({"room": 7}, TypeError),
        ({"user": 7}, TypeError),
        ({"slow_consumer": 7}, MisuseError),
        ({"compress": "yes"}, MisuseError),
        ({"key": 7}, MisuseError),
    ],
)
async def test_what_cannot_be_sent_is_refused(directory, options: Any, error: type[Exception]) -> None:
    async with AsyncPublisher(f"workers:{directory}") as publisher:
        with pytest.raises(error):
            await publisher.publish("message", **options)


async def test_an_unknown_policy_is_refused_with_the_choices(directory) -> None:
    async with AsyncPublisher(f"workers:{directory}") as publisher:
        with pytest.raises(MisuseError, match='"close", "drop_newest", "drop_oldest" or "latest", not \'bogus\''):
            await publisher.publish("message", slow_consumer="bogus")


class Name(StrEnum):
    ROOM = "lobby"
    USER = "ann"
    TEXT = "text"
    POLICY = "latest"

    def __str__(self) -> str:
        return "another text"

    def encode(self, *arguments: Any) -> bytes:
        return b"another text"


async def test_a_str_of_a_subclass_counts_as_what_it_holds(directory) -> None:
    member = Member(directory)
    async for client in member.clients():
        async with AsyncPublisher(member.url) as publisher:
            options: dict[str, Any] = {"slow_consumer": Name.POLICY, "key": Name.TEXT}
            assert (await publisher.publish(Name.TEXT, room=Name.ROOM, **options)).receivers == 1
            assert await client.recv() == "text"
            assert (await publisher.publish("to the user", user=Name.USER)).receivers == 1
            assert await client.recv() == "to the user"


@pytest.mark.parametrize("url", ["none", "", "http://localhost"])
def test_a_url_that_names_no_broker_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Publisher(url)


def test_a_broker_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    monkeypatch.setattr("wshub.publisher.session.START_TIMEOUT", 0.2)
    with Publisher(f"redis://127.0.0.1:{unused_port}") as publisher, pytest.raises(BrokerUnavailable):
        publisher.publish("message", room="lobby")


@pytest.fixture
def unused_port() -> int:
    return free_port()


# Failures, and the end


def test_errors_of_a_publisher_leave_no_cycles(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    monkeypatch.setattr("wshub.publisher.session.START_TIMEOUT", 0.05)
    gc.collect()
    gc.disable()
    try:
        with Publisher(f"redis://127.0.0.1:{unused_port}") as publisher:
            errors = []
            for call in (lambda: publisher.publish("message"), lambda: publisher.disconnect_user("ann")):
                try:
                    call()
                except BrokerUnavailable as error:
                    errors.append(weakref.ref(error))
            deadline = time.monotonic() + 10
            while any(error() is not None for error in errors):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            assert len(errors) == 2
    finally:
        gc.enable()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MemoryEngine:
    """The engine of all publishers that the test makes."""
    engine = MemoryEngine()
    monkeypatch.setattr("wshub.publisher.publishers.broker_from_url", lambda url: MemoryBroker(engine))
    return engine


@pytest.fixture
def use_broker(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """A function that has all publishers use brokers of a class."""
    return lambda broker: monkeypatch.setattr(
        "wshub.publisher.publishers.broker_from_url", lambda url: broker(MemoryEngine())
    )


async def nothing_is_left() -> None:
    """Wait until the task of the test is the only one."""
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)


async def started_broker(publisher: AsyncPublisher) -> Any:
    """Return the broker of a publisher that waits for its first connection."""
    while publisher._session is None or publisher._session.broker._loop is None:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    return publisher._session.broker


async def test_a_publisher_is_no_receiver(engine) -> None:
    async with Hub(broker=MemoryBroker(engine)) as hub, AsyncPublisher("memory") as publisher:
        await hub.broker_started()
        assert (await hub.publish("to all")).receivers == 0
        assert (await publisher.publish("to all")).receivers == 1
    await nothing_is_left()


async def test_a_message_that_waits_for_the_connection_fails_when_the_publisher_closes(engine) -> None:
    engine.stop()
    publisher = AsyncPublisher("memory")
    waiting = [asyncio.create_task(publisher.publish("message")) for _ in range(3)]
    await started_broker(publisher)
    await publisher.close()
    for task in waiting:
        with pytest.raises(BrokerUnavailable, match="closed"):
            await task
    await nothing_is_left()


async def test_messages_and_ends_in_any_order_leave_nothing_behind(engine) -> None:
    publisher = AsyncPublisher("memory")
    tasks: list[asyncio.Task[Any]] = []
    for number in range(200):
        tasks.append(asyncio.create_task(publisher.publish(str(number))))
        if number % 5 == 0:
            tasks.append(asyncio.create_task(publisher.close()))
        for _ in range(number % 7):
            await asyncio.sleep(0)
    for task in tasks:
        with contextlib.suppress(BrokerError):
            assert isinstance(await task, Published | None)
    await publisher.close()
    assert publisher._session is None
    await nothing_is_left()
    assert engine._connections == {}


async def test_a_close_that_is_cancelled_goes_on(engine) -> None:
    publisher = AsyncPublisher("memory")
    await publisher.publish("message")
    closing = asyncio.create_task(publisher.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await publisher.close()
    await nothing_is_left()
    assert engine._connections == {}


async def test_a_block_that_is_not_entered_leaves_nothing_behind(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wshub.publisher.session.START_TIMEOUT", 0.05)
    engine.stop()
    with pytest.raises(BrokerUnavailable):
        async with AsyncPublisher("memory"):
            pass
    await nothing_is_left()


async def test_a_start_that_has_failed_is_tried_again(directory) -> None:
    path = Path(directory) / "sockets"
    path.write_text("no directory")
    publisher = AsyncPublisher(f"workers:{path}")
    for _ in range(2):
        with pytest.raises(ConfigurationError):
            await publisher.publish("message")
        await nothing_is_left()
    path.unlink()
    assert (await publisher.publish("message")).receivers == 0
    await publisher.close()
    await nothing_is_left()


async def test_a_broker_that_fails_to_start_is_unavailable(use_broker, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(MemoryBroker):
        async def start(self, node: Any, events: Any) -> None:
            raise ZeroDivisionError

    use_broker(Failing)
    publisher = AsyncPublisher("memory")
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            await publisher.publish("message")
    await publisher.close()
    await nothing_is_left()
    assert "ZeroDivisionError" in caplog.text


async def test_a_sweep_that_fails_is_logged_once_and_goes_on(
    use_broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("wshub.publisher.session.SWEEP_PERIOD", 0.001)
    swept = asyncio.Semaphore(0)

    class Failing(MemoryBroker):
        def sweep(self, now: float) -> None:
            swept.release()
            raise ZeroDivisionError

    use_broker(Failing)
    with caplog.at_level(logging.ERROR, "wshub.broker"):
        async with AsyncPublisher("memory") as publisher:
            for _ in range(5):
                await swept.acquire()
            await publisher.publish("message")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("closes", [False, True])
def test_a_publisher_may_be_used_on_one_loop_after_another(closes: bool, directory) -> None:
    publisher = AsyncPublisher(f"workers:{directory}")

    async def publish() -> None:
        await publisher.publish("message")
        if closes:
            await publisher.close()

    for _ in range(3):
        asyncio.run(publish())
    asyncio.run(publisher.close())
    assert [path for path in Path(directory).rglob("*") if path.is_socket()] == []


async def test_a_publisher_belongs_to_one_loop_at_a_time(engine) -> None:
    async with AsyncPublisher("memory") as publisher:
        for call in (lambda: publisher.publish("message"), publisher.close):
            with pytest.raises(MisuseError, match="another loop"):
                await asyncio.to_thread(lambda call=call: asyncio.run(call()))
        await publisher.publish("message")


def publisher_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "wshub publisher"]


def test_threads_may_publish_while_another_one_closes(directory) -> None:
    publisher = Publisher(f"workers:{directory}")
    outcomes: list[object] = []

    def publish() -> None:
        for number in range(100):
            try:
                outcomes.append(publisher.publish(str(number)))
            except BrokerError as error:
                outcomes.append(error)
            except BaseException as error:
                outcomes.append(("unexpected", error))

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        publisher.close()
    publisher.close()
    assert [outcome for outcome in outcomes if isinstance(outcome, tuple)] == []
    assert len(outcomes) == 400
    assert publisher_threads() == []


def wait_for_call(publisher: Publisher) -> None:
    """Wait until a call has begun on the loop of the publisher."""
    deadline = time.monotonic() + 10
    while (thread := publisher._state().thread) is None or not thread._tasks:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def outcome_of_call_at_close(publisher: Publisher, wait: Callable[[Publisher], object]) -> BaseException | None:
    """Return what a call raises that is under way when the publisher closes, once ``wait`` has returned."""
    outcomes: list[BaseException] = []

    def publish() -> None:
        try:
            publisher.publish("message")
        except BaseException as error:
            outcomes.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    wait(publisher)
    publisher.close()
    thread.join(10)
    assert publisher_threads() == []
    return outcomes[0] if outcomes else None


def test_a_thread_that_waits_for_the_connection_gets_an_error_at_the_close(unused_port: int) -> None:
    publisher = Publisher(f"redis://127.0.0.1:{unused_port}")
    assert isinstance(outcome_of_call_at_close(publisher, wait_for_call), BrokerUnavailable)


def test_a_thread_that_waits_for_an_answer_gets_an_error_at_the_close(use_broker) -> None:
    reached = threading.Event()

    class Hanging(MemoryBroker):
        async def publish(self, channel: str, envelope: bytes) -> Published:
            reached.set()
            return await asyncio.get_running_loop().create_future()

    use_broker(Hanging)
    outcome = outcome_of_call_at_close(Publisher("memory"), lambda _: reached.wait(10))
    assert isinstance(outcome, BrokerUncertain)


async def test_a_process_that_was_forked_within_a_call_connects_anew(directory) -> None:
    member = Member(directory)
    async with contextlib.aclosing(member.clients()) as clients:
        async for client in clients:
            publisher = Publisher(member.url)
            await asyncio.to_thread(publisher.publish, "from the parent", room="lobby")
            # As if another thread were within publish() at the moment of the fork.
            with publisher._state().lock:
                child = multiprocessing.get_context("fork").Process(target=publish_in_child, args=(publisher,))
                child.start()
            await asyncio.to_thread(child.join, 20)
            exitcode = child.exitcode
            child.kill()
            assert exitcode == 0
            await asyncio.to_thread(publisher.close)
            assert [await client.recv() for _ in range(2)] == ["from the parent", "from the child"]


def publish_on_a_loop_in_child(publisher: AsyncPublisher) -> None:
    async def publish() -> None:
        await publisher.publish("from the child", room="lobby")
        await publisher.close()

    asyncio.run(publish())


async def test_a_process_that_was_forked_from_a_loop_connects_anew(directory) -> None:
    member = Member(directory)
    async with contextlib.aclosing(member.clients()) as clients:
        async for client in clients:
            publisher = AsyncPublisher(member.url)
            await publisher.publish("from the parent", room="lobby")
            child = multiprocessing.get_context("fork").Process(target=publish_on_a_loop_in_child, args=(publisher,))
            child.start()
            await asyncio.to_thread(child.join, 20)
            exitcode = child.exitcode
            child.kill()
            assert exitcode == 0
            await publisher.publish("the parent again", room="lobby")
            await publisher.close()
            assert [await client.recv() for _ in range(3)] == ["from the parent", "from the child", "the parent again"]
