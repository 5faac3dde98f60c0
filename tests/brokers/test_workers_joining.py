"""A hub accepts once the other workers can hand over to it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.serving_hub import connected
from wshub import EventHandler, HistoryConfig, Hub, HubConfig, MisuseError
from wshub.brokers.workers import WorkersBroker
from wshub.brokers.workers_directory import SocketDirectory

ROOMS = [f"room:{number}" for number in range(20)]


def worker(path: Path) -> Hub:
    hub = Hub(HubConfig(close_timeout_ms=5_000), broker=WorkersBroker(path, several_in_process=True))
    hub.configure_room("room:*", history=HistoryConfig(), presence=True)
    return hub


@contextlib.asynccontextmanager
async def begun(way: str, hub: Hub) -> AsyncIterator[None]:
    """Have a hub begin in one of the ways, and close it at the end."""
    if way == "Hub.serve":
        async with hub.serve("127.0.0.1", 0, EventHandler(), close_hub=True):
            yield
    else:
        async with hub:
            yield


@pytest.fixture
def hung_worker(socket_directory: Path) -> Iterator[None]:
    """A worker that takes connections and says nothing."""
    directory = SocketDirectory(str(socket_directory), "hub", "0" * 16)
    directory.prepare()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(directory._path(directory._name))
        silent.listen()
        yield


async def positions_of(hub: Hub) -> list[tuple[str, int]]:
    """Publish in each room. Return the epochs and the offsets."""
    published = [await hub.publish("message", room=room) for room in ROOMS]
    return [(one.position.epoch, one.position.offset) for one in published if one.position is not None]


@pytest.mark.parametrize("way", ["Hub.serve", "async with"])
async def test_a_worker_that_has_just_begun_gets_the_histories_of_one_that_leaves(way, socket_directory) -> None:
    first, second = worker(socket_directory), worker(socket_directory)
    async with begun(way, first):
        before = await positions_of(first)
        async with begun(way, second):
            await first.close()
            assert await positions_of(second) == [(epoch, offset + 1) for epoch, offset in before]


@pytest.mark.parametrize("way", ["Hub.serve", "async with"])
async def test_a_worker_that_has_just_begun_can_get_the_presence_of_one_that_leaves(way, socket_directory) -> None:
    first, second = worker(socket_directory), worker(socket_directory)
    async with begun(way, first), begun(way, second):
        cluster = second.stats().cluster
        assert cluster is not None
        assert isinstance(first.broker, WorkersBroker)
        assert first.broker._session is not None
        assert cluster.node in first.broker._session.presences.members.candidates()


@pytest.mark.parametrize("run", ["asyncio"], indirect=True)
@pytest.mark.usefixtures("hung_worker")
async def test_a_worker_that_hangs_keeps_no_other_from_serving(socket_directory) -> None:
    async def echo(connection) -> None:
        async for message in connection:
            connection.send(message)

    hub = worker(socket_directory)
    async with (
        hub.serve("127.0.0.1", 0, echo, close_hub=True) as server,
        connected(f"ws://127.0.0.1:{server.port}/") as client,
    ):
        await client.send("hello")
        assert await client.recv() == "hello"


@pytest.mark.usefixtures("hung_worker")
async def test_a_hub_that_is_closed_while_it_joins_does_not_begin_to_listen(socket_directory) -> None:
    hub = worker(socket_directory)
    server = hub.serve("127.0.0.1", 0, EventHandler())
    starting = asyncio.create_task(server.start_serving())
    while not hub.is_in_use:
        await asyncio.sleep(0)
    await hub.close()
    with pytest.raises(MisuseError):
        await starting
    assert not server.is_serving()


async def test_a_hub_is_closed_if_the_wait_for_the_other_workers_is_cancelled(socket_directory) -> None:
    hub = worker(socket_directory)
    entering = asyncio.create_task(hub.__aenter__())
    while not hub.is_in_use:
        await asyncio.sleep(0)
    entering.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await entering
    assert not hub.is_in_use
    assert [path for path in socket_directory.iterdir() if path.suffix == ".sock"] == []
