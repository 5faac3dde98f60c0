"""The connection of a publisher: its start, its failures and its end, on loops and in threads."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.publisher.hub_with_member import Member, nothing_is_left
from wshub import BrokerError, BrokerUnavailable, BrokerUncertain, ConfigurationError, Hub, MisuseError
from wshub.brokers.interface import Published
from wshub.brokers.memory import MemoryBroker
from wshub.publisher import AsyncPublisher, Publisher


async def test_a_publisher_connects_again_after_it_was_closed(directory) -> None:
    member = Member(directory)
    async for client in member.clients():
        publisher = Publisher(member.url)
        for text in ("first", "second"):
            await asyncio.to_thread(publisher.publish, text, room="lobby")
            await asyncio.to_thread(publisher.close)
            assert await client.recv() == text


async def test_the_health_of_a_publisher_has_it_connect(engine) -> None:
    publisher = AsyncPublisher("memory")
    assert publisher.health().state == "starting"
    async with publisher:
        assert publisher.health().ok
    await nothing_is_left()


def test_a_broker_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    monkeypatch.setattr("wshub.publisher.session.START_TIMEOUT", 0.2)
    with Publisher(f"redis://127.0.0.1:{unused_port}") as publisher, pytest.raises(BrokerUnavailable):
        publisher.publish("message", room="lobby")


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
