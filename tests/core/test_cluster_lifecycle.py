"""A hub and its broker: how they start, close and start again, and what a broker that misbehaves may cause."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.odd_strings import Lobby
from tests.support.raw_peers import REQUEST
from tests.support.serving_hub import connected
from wshub import BrokerUnavailable, ConfigurationError, Connection, EventHandler, Hub, HubConfig, MisuseError
from wshub.brokers.interface import NodeInfo
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.workers import WorkersBroker


@contextlib.asynccontextmanager
async def connection_of(hub: Hub) -> AsyncIterator[tuple[Connection, Any]]:
    """Serve the hub to one client. Yields the connection and the client."""
    async with (
        hub.serve("127.0.0.1", 0, EventHandler()) as server,
        connected(f"ws://127.0.0.1:{server.port}/") as client,
    ):
        await (await client.ping())
        (connection,) = [hub.get_connection(number) for number in range(1, hub.connection_count + 1)]
        assert connection is not None
        yield connection, client


async def test_a_room_that_opened_and_emptied_at_once_is_subscribed_when_it_opens_again() -> None:
    engine = MemoryEngine()
    async with (
        Hub(broker=MemoryBroker(engine)) as sender,
        connection_of(Hub(broker=MemoryBroker(engine))) as (
            connection,
            client,
        ),
    ):
        await connection.hub.broker_started()
        await sender.broker_started()
        connection.join("room")
        connection.leave("room")
        connection.user = "ann"
        connection.user = None
        await asyncio.sleep(0)
        connection.join("room")
        connection.user = "ann"
        await connection.hub.subscribed("room")
        sender.broadcast("room", room="room")
        sender.send_to_user("ann", "user")
        assert {await client.recv(), await client.recv()} == {"room", "user"}


async def test_a_hub_that_only_sends_is_bound_by_its_first_message() -> None:
    engine = MemoryEngine()
    async with connection_of(Hub(broker=MemoryBroker(engine))) as (connection, client):
        await connection.hub.broker_started()
        sender = Hub(broker=MemoryBroker(engine))
        assert not sender.health().ok
        await sender.broker_started()
        assert sender.health().ok
        sender.broadcast("hello")
        assert await client.recv() == "hello"
        await sender.close()


async def test_the_first_message_that_is_published_waits_for_the_broker() -> None:
    engine = MemoryEngine()
    async with connection_of(Hub(broker=MemoryBroker(engine))) as (connection, client):
        await connection.hub.broker_started()
        sender = Hub(broker=MemoryBroker(engine))
        await sender.publish("hello")
        assert await client.recv() == "hello"
        await sender.close()
        with pytest.raises(BrokerUnavailable, match="closed"):
            await sender.publish("after")
        assert sender.broadcast("after") == 0


async def test_publish_takes_only_options_of_a_message() -> None:
    hub = Hub(broker="none")
    with pytest.raises(TypeError):
        await hub.publish("for a room", romo="private")  # type: ignore[call-arg]


@pytest.mark.parametrize("room", [Lobby.NAME, "\ud800"])
async def test_any_str_names_a_room_and_a_user_on_every_node(room: str) -> None:
    engine = MemoryEngine()
    async with (
        Hub(broker=MemoryBroker(engine)) as sender,
        connection_of(Hub(broker=MemoryBroker(engine))) as (
            connection,
            client,
        ),
    ):
        await sender.broker_started()
        connection.join(room)
        connection.user = room
        await connection.hub.broker_started()
        await connection.hub.subscribed(room)
        sender.broadcast("1", room=room)
        await sender.publish("2", room=room)
        await sender.publish("3", user=room)
        assert {await client.recv() for _ in range(3)} == {"1", "2", "3"}


@pytest.mark.parametrize("make", [lambda path: f"workers:{path}", WorkersBroker], ids=["by URL", "made"])
async def test_two_hubs_of_one_name_at_one_engine_are_refused(make, socket_directory) -> None:
    async with Hub(broker=make(socket_directory)):
        with pytest.raises(ConfigurationError, match=r"Hub\(name="):
            Hub(broker=make(socket_directory)).bind()
        async with Hub(broker=make(socket_directory), name="other") as other:
            await other.broker_started()
    async with Hub(broker=make(socket_directory)) as again:
        await again.broker_started()


async def test_a_directory_has_one_hub_of_a_name_however_it_is_spelled(socket_directory) -> None:
    other_spelling = socket_directory / ".." / socket_directory.name
    async with Hub(broker=WorkersBroker(socket_directory)):
        for broker in (f"workers:{other_spelling}", WorkersBroker(other_spelling)):
            with pytest.raises(ConfigurationError, match=r"Hub\(name="):
                Hub(broker=broker).bind()
        async with Hub(broker=WorkersBroker(socket_directory, several_in_process=True)) as other:
            await other.broker_started()


FORKING = """
import asyncio, os, sys, threading
from wshub import Hub
from wshub.core.brokers_in_use import BROKERS_IN_USE

url = "workers:" + sys.argv[1]
held, end = threading.Event(), threading.Event()

def hold():
    with BROKERS_IN_USE._lock:
        held.set()
        end.wait()

async def child():
    # The parent's hub has the same name, and its loop was not closed here.
    async with Hub(broker=url) as hub:
        await hub.broker_started()

async def parent():
    async with Hub(broker=url) as hub:
        await hub.broker_started()
        threading.Thread(target=hold).start()
        held.wait()

        process = os.fork()
        if not process:
            asyncio._set_running_loop(None)
            try:
                asyncio.run(child())
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
            os._exit(0)
        end.set()
        _, status = await asyncio.to_thread(os.waitpid, process, 0)
        print(status)

asyncio.run(parent())
"""


def test_a_child_that_is_forked_while_a_hub_starts_in_a_thread_has_hubs_of_its_own(socket_directory) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKING, str(socket_directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.communicate(timeout=30)[0] == "0\n"
        finally:
            # A child that hangs ends too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


async def test_one_broker_for_two_hubs_is_refused() -> None:
    broker = MemoryBroker(MemoryEngine())
    async with Hub(broker=broker):
        with pytest.raises(ConfigurationError, match="same broker"):
            Hub(broker=broker, name="other").bind()
    async with Hub(broker=broker, name="other") as other:
        await other.broker_started()
    with pytest.raises(MisuseError):
        Hub(broker=MemoryBroker)  # type: ignore[arg-type]


async def test_the_user_may_be_set_from_any_thread() -> None:
    async with connection_of(Hub(broker=MemoryBroker(MemoryEngine()))) as (connection, _client):
        hub = connection.hub

        def set_users(name: str) -> None:
            for number in range(100):
                connection.user = f"{name} {number}"
            hub.join_user(f"{name} 99", "room")

        threads = [threading.Thread(target=set_users, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await asyncio.sleep(0)
        names = [f"{name} {number}" for name in "abc" for number in range(100)]
        assert [name for name in names if hub.user_connections(name)] == [connection.user]


async def test_a_loop_that_closed_before_the_hub_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(broker=MemoryBroker(MemoryEngine()))
    raised: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: raised.append(unraisable.exc_value))
    client = socket.socket()

    async def leave_open() -> None:
        joined = asyncio.get_running_loop().create_future()

        def join(connection: Connection) -> None:
            connection.join("room")
            joined.set_result(None)

        server = hub.serve("127.0.0.1", 0, EventHandler(on_open=join))
        await server.__aenter__()
        client.connect(("127.0.0.1", server.port))
        client.sendall(REQUEST)
        await joined

    await asyncio.to_thread(asyncio.run, leave_open())
    async with hub:
        await hub.broker_started()
        assert hub.connection_count == 0
    client.close()
    gc.collect()
    assert [error for error in raised if not isinstance(error, ResourceWarning)] == []


class Hanging(MemoryBroker):
    """A broker that does not close, or does not start."""

    def __init__(self, *, starts: bool) -> None:
        super().__init__(MemoryEngine())
        self._starts = starts

    async def start(self, node: NodeInfo, events: Any) -> None:
        while not self._starts:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
        await super().start(node, events)

    async def close(self) -> None:
        await asyncio.sleep(3600)


async def test_a_broker_that_hangs_does_not_keep_the_hub_from_closing() -> None:
    hub = Hub(HubConfig(close_timeout_ms=50), broker=Hanging(starts=True))
    await hub.broker_started()
    async with asyncio.timeout(5):
        await hub.close()


async def test_what_waits_for_a_broker_is_told_when_the_hub_closes() -> None:
    engine = MemoryEngine()
    engine.stop()
    hub = Hub(broker=MemoryBroker(engine))
    hub.bind()
    waits = asyncio.create_task(hub.broker_started())
    await asyncio.sleep(0)
    await hub.close()
    with pytest.raises(BrokerUnavailable, match="closed"):
        await waits


class Failing(MemoryBroker):
    """A broker whose methods raise."""

    def send(self, channel: str, envelope: bytes) -> bool:
        raise OSError("send")

    def subscribe(self, channel: str) -> None:
        if channel.startswith("room:"):
            raise OSError("subscribe")
        super().subscribe(channel)

    def sweep(self, now: float) -> None:
        raise OSError("sweep")


async def test_a_broker_that_raises_is_logged_once_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(broker=Failing(MemoryEngine()))
    async with connection_of(hub) as (connection, client):
        await hub.broker_started()
        for number in range(10):
            connection.join(f"room {number}")
            assert hub.broadcast(str(number), room=f"room {number}") == 1
            assert await client.recv() == str(number)
            hub._cluster.sweep(hub.now())  # type: ignore[union-attr]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


async def test_a_closed_hub_and_its_cluster_are_freed() -> None:
    hub = Hub(broker=MemoryBroker(MemoryEngine()))
    await hub.broker_started()
    await hub.close()
    reference = weakref.ref(hub)
    del hub
    await asyncio.sleep(0)
    gc.collect()
    assert reference() is None


async def test_lag_is_that_of_messages() -> None:
    engine = MemoryEngine()
    async with connection_of(Hub(broker=MemoryBroker(engine))) as (connection, client):
        async with Hub(broker=MemoryBroker(engine)) as sender:
            await sender.broker_started()
            await connection.hub.broker_started()
            sender.broadcast("hello")
            await client.recv()
        stats = connection.hub.stats().cluster
        assert stats is not None
        assert stats.lag_ms is not None
        assert 0 <= stats.lag_ms < 60_000
