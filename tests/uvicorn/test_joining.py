"""Hubs join other nodes when a uvicorn server starts, and close when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute

from tests.support.serving_hub import connected
from tests.support.uvicorn_server import listening
from tests.support.ways_to_serve import live, status_of
from wshub import Hub
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.workers import WorkersBroker
from wshub.uvicorn.running import PROTOCOL_CLASS

PAGE = b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(autouse=True)
def _no_other_hubs() -> Iterator[None]:
    """Let no unused hub of another test be there."""
    gc.collect()
    yield
    gc.collect()


def hub_of(engine: MemoryEngine, name: str = "hub") -> Hub:
    return Hub(broker=MemoryBroker(engine), name=name)


def sockets_of(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.suffix == ".sock"]


def application(*hubs: Hub) -> Any:
    """Return an application with an endpoint for each hub: no route names the hub."""

    def endpoint_of(hub: Hub) -> Any:
        async def endpoint(websocket: Any) -> None:
            await live(await hub.accept(websocket))

        return endpoint

    routes = [WebSocketRoute(f"/{hub.name}", endpoint_of(hub)) for hub in hubs]
    return Starlette(routes=[Route("/page", lambda request: PlainTextResponse("page")), *routes])


async def test_every_unused_hub_with_a_broker_joins_and_closes_with_the_server() -> None:
    engine = MemoryEngine()
    chat, games, alone = hub_of(engine, "chat"), hub_of(engine, "games"), Hub(broker="none", name="alone")
    async with listening(application(chat, games, alone)):
        assert chat.is_in_use
        assert games.is_in_use
        assert not alone.is_in_use
        await chat.broker_started()
    assert not chat.is_in_use
    assert not games.is_in_use


async def test_a_hub_that_has_joined_does_not_count_as_a_connection() -> None:
    hub = hub_of(MemoryEngine())
    async with listening(application(hub), limit_concurrency=2) as address:
        assert hub.is_in_use
        assert await status_of(int(address.rpartition(":")[2]), PAGE) == 200


async def test_the_application_may_have_a_hub_in_use_and_keeps_it() -> None:
    async with hub_of(MemoryEngine()) as hub:
        async with listening(application(hub)):
            pass
        assert hub.is_in_use


async def test_the_application_may_use_its_hubs_from_its_start_to_its_end() -> None:
    engine = MemoryEngine()
    begun, unused = hub_of(engine, "begun"), hub_of(engine, "unused")

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        begun.broadcast("the application starts")
        yield
        for hub in (begun, unused):
            await hub.publish("the application ends")
            assert not hub.is_closing

    app = Starlette(lifespan=lifespan, routes=application(begun, unused).routes)
    async with listening(app, lifespan="on"):
        assert begun.is_in_use
        assert unused.is_in_use
    assert not begun.is_in_use
    assert not unused.is_in_use


async def test_of_two_hubs_with_one_name_and_place_the_one_that_is_used_joins(socket_directory) -> None:
    """Such as those of a main module that a worker imports a second time."""
    first, second = Hub(broker=WorkersBroker(socket_directory)), Hub(broker=WorkersBroker(socket_directory))
    async with listening(application(second)) as address:
        assert not first.is_in_use
        assert not second.is_in_use
        async with connected(f"ws://{address}/hub"):
            await second.broker_started()
    assert not second.is_in_use


async def test_the_hub_of_a_route_joins_although_another_one_has_its_name_and_place(socket_directory) -> None:
    first, second = Hub(broker=WorkersBroker(socket_directory)), Hub(broker=WorkersBroker(socket_directory))
    async with listening(Starlette(routes=[WebSocketRoute("/", second.asgi(live))])):
        assert not first.is_in_use
        assert second.is_in_use
    assert not second.is_in_use


async def test_a_hub_of_another_event_loop_stays_there() -> None:
    hub = hub_of(MemoryEngine())
    app = Starlette(routes=[*application().routes, WebSocketRoute("/", hub.asgi(live))])
    in_use, done = threading.Event(), threading.Event()

    async def use() -> None:
        async with hub:
            in_use.set()
            await asyncio.to_thread(done.wait)

    other = threading.Thread(target=asyncio.run, args=[use()])
    other.start()
    try:
        await asyncio.to_thread(in_use.wait)
        async with listening(app) as address:
            assert await status_of(int(address.rpartition(":")[2]), PAGE) == 200
        assert hub.is_in_use
    finally:
        done.set()
        await asyncio.to_thread(other.join)
    assert not hub.is_in_use


async def test_hubs_that_other_threads_have_made_are_left_to_them() -> None:
    hub: Hub = await asyncio.to_thread(hub_of, MemoryEngine())
    async with listening(application(hub)) as address:
        assert not hub.is_in_use
        async with connected(f"ws://{address}/hub"):
            assert hub.is_in_use


async def test_a_server_closes_a_hub_that_has_had_its_connections() -> None:
    hub = hub_of(MemoryEngine())
    async with listening(application(hub)):
        async with listening(application(hub)) as address, connected(f"ws://{address}/hub"):
            assert hub.is_in_use
        assert not hub.is_in_use


async def test_an_unused_hub_stays_until_both_servers_that_have_found_it_have_ended() -> None:
    hub = hub_of(MemoryEngine())
    async with listening(application(hub)):
        async with listening(application()):
            pass
        assert hub.is_in_use
    assert not hub.is_in_use


async def test_a_server_of_another_protocol_class_leaves_hubs_alone() -> None:
    hub = hub_of(MemoryEngine())
    async with listening(application(hub), ws="websockets-sansio"):
        assert not hub.is_in_use


async def test_a_broker_that_never_starts_delays_nothing() -> None:
    engine = MemoryEngine()
    engine.stop()
    hub = hub_of(engine)
    async with listening(application(hub)) as address:
        assert hub.is_in_use
        assert await status_of(int(address.rpartition(":")[2]), PAGE) == 200


def test_hubs_leave_the_other_nodes_even_if_the_server_is_cancelled_with_the_program(run, socket_directory) -> None:
    async def program() -> asyncio.Task[None]:
        hub = Hub(broker=WorkersBroker(socket_directory))
        config = uvicorn.Config(application(hub), port=0, ws=PROTOCOL_CLASS, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        assert sockets_of(socket_directory)
        # Nobody calls its shutdown().
        for listening_one in server.servers:
            listening_one.close()
        return serving

    assert run(program()).cancelled()
    assert not sockets_of(socket_directory)
