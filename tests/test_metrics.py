"""Metrics for Prometheus: what is scraped is what the hub has counted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.support.raw_peers import REQUEST
from tests.support.redis_engine import RedisEngine
from tests.support.serving_hub import Clock, connected, serving
from tests.support.ways_to_serve import WAYS, served, status_of
from tests.support.wshub_serve import serving as wshub_serve
from wshub import Connection, EventHandler, HistoryConfig, Hub, MisuseError, Position
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.redis import RedisBroker
from wshub.brokers.workers import WorkersBroker
from wshub.metrics import HubCollector, _Total, metrics_endpoint
from wshub.metrics_table import METRICS

ECHO = EventHandler(on_message=lambda connection, message: connection.send(message))

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(registry: CollectorRegistry) -> Samples:
    return parse(generate_latest(registry).decode())


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted({"hub": "hub", **labels}.items()))]


async def all_gone(hub: Hub) -> None:
    while hub.connection_count:
        await asyncio.sleep(0)


@pytest.mark.parametrize("way", WAYS)
async def test_a_scrape_has_what_the_hub_has_counted(way: str) -> None:
    registry = CollectorRegistry()
    settings = {"allowed_origins": ("https://a",), "allow_missing_origin": True, "enable_compression": True}
    async with served(way, ECHO, prepare=lambda hub: HubCollector(hub, registry=registry), **settings) as (hub, port):
        assert await status_of(port, REQUEST[:-2] + b"Origin: https://b\r\n\r\n") == 403
        async with connected(f"ws://127.0.0.1:{port}/") as one, connected(f"ws://127.0.0.1:{port}/"):
            await one.send("hello")
            await one.recv()
            during = scrape(registry)
        await all_gone(hub)
        after = scrape(registry)
    assert value(during, "wshub_connections") == 2
    assert value(during, "wshub_received_messages_total") == 1
    assert value(during, "wshub_sent_messages_total") == value(during, "wshub_delivered_messages_total") == 1
    assert value(after, "wshub_connections") == 0
    assert value(after, "wshub_connections_opened_total") == 2
    assert value(after, "wshub_connections_closed_total", code="1000") == 2
    assert value(after, "wshub_handshakes_refused_total", status="403") == 1
    assert value(after, "wshub_received_bytes_total") == hub.stats().bytes_received > 0
    assert value(after, "wshub_sent_bytes_total") == hub.stats().bytes_sent > 0
    assert value(after, "wshub_handshake_duration_seconds_count") == 2
    assert value(after, "wshub_handler_duration_seconds_count") == 1
    assert value(after, "wshub_dropped_messages_total", reason="slow") == 0


async def test_histograms_count_what_took_how_long() -> None:
    clock = Clock()
    hub = Hub(clock=clock)
    registry = CollectorRegistry()
    HubCollector(hub, registry=registry)
    for seconds in (0.00001, 0.003, 0.003, 5.0, 100.0):
        hub._count_handshake_time(seconds)
    samples = scrape(registry)
    name = "wshub_handshake_duration_seconds_bucket"
    assert value(samples, name, le="1e-05") == 1
    assert value(samples, name, le="0.0025") == 1
    assert value(samples, name, le="0.005") == 3
    assert value(samples, name, le="10.0") == 4
    assert value(samples, name, le="+Inf") == 5
    assert value(samples, "wshub_handshake_duration_seconds_count") == 5
    assert value(samples, "wshub_handshake_duration_seconds_sum") == pytest.approx(105.00601)


@pytest.mark.parametrize("kind", ["function", "coroutine", "suspended", "failing", "failing later"])
async def test_the_time_of_a_handler_is_measured_to_its_end(kind: str) -> None:
    clock = Clock()

    def function(connection: Any, message: Any) -> None:
        clock.now += 0.3

    async def coroutine(connection: Any, message: Any) -> None:
        clock.now += 0.3

    async def suspended(connection: Any, message: Any) -> None:
        clock.now += 0.1
        await asyncio.sleep(0.01)
        clock.now += 0.2

    def failing(connection: Any, message: Any) -> None:
        clock.now += 0.3
        raise ValueError("on purpose")

    async def failing_later(connection: Any, message: Any) -> None:
        await suspended(connection, message)
        raise ValueError("on purpose")

    handlers = [function, coroutine, suspended, failing, failing_later]
    handler = {each.__name__.replace("_", " "): each for each in handlers}[kind]
    async with serving(EventHandler(on_message=handler), clock=clock) as (hub, url):
        hub.measure_times()
        async with connected(url) as client:
            await client.send("x")
            while not hub.stats().handler_seconds.count:
                await asyncio.sleep(0)
        found = hub.stats().handler_seconds
    assert found is not None
    assert (found.count, found.sum) == (1, pytest.approx(0.3))


async def test_the_round_trip_of_a_ping_is_measured_once() -> None:
    clock = Clock()
    async with serving(EventHandler(), clock=clock, ping_interval_ms=1000) as (hub, url):
        hub.measure_times()
        async with connected(url) as client:
            clock.pass_for(1, hub)
            # The client has answered the ping when it has answered this one.
            while not hub.stats().ping_seconds.count:
                await asyncio.sleep(0.001)
            await client.pong(b"")
            await client.pong(b"another")
            await client.send("behind them")
            while not hub.stats().messages_received:
                await asyncio.sleep(0)
        assert hub.stats().ping_seconds.count == 1


async def test_no_clock_is_read_for_a_message_unless_times_are_measured() -> None:
    reads = 0

    def clock() -> float:
        nonlocal reads
        reads += 1
        return 1000.0

    async with serving(ECHO, clock=clock) as (hub, url), connected(url) as client:

        async def reads_of(messages: int) -> int:
            before = reads
            for _ in range(messages):
                await client.send("x")
                await client.recv()
            return reads - before

        # A sweep reads it once in a while.
        assert await reads_of(200) < 100
        assert hub.stats().handshake_seconds is hub.stats().handler_seconds is None
        hub.measure_times()
        assert await reads_of(200) >= 400
        assert hub.stats().handler_seconds.count == 200


async def test_a_scrape_in_another_thread_works_while_clients_come_and_go() -> None:
    registry = CollectorRegistry()
    async with serving(ECHO) as (hub, url):
        HubCollector(hub, registry=registry)
        failures: list[BaseException] = []
        stop = threading.Event()

        def scrape_on() -> None:
            try:
                while not stop.is_set():
                    scrape(registry)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=scrape_on)
        thread.start()
        try:
            for _ in range(20):
                async with contextlib.AsyncExitStack() as stack:
                    for _ in range(10):
                        client = await stack.enter_async_context(connected(url))
                        await client.send("x")
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)
        assert failures == []


async def test_the_counts_of_a_broker_are_metrics() -> None:
    engine = MemoryEngine()
    registry = CollectorRegistry()
    async with Hub(broker=MemoryBroker(engine)) as first, Hub(broker=MemoryBroker(engine)) as second:
        HubCollector(first, registry=registry)
        await first.broker_started()
        await second.broker_started()
        await first.publish("hello")
        samples = scrape(registry)
    assert value(samples, "wshub_broker_connected") == 1
    assert value(samples, "wshub_cluster_published_total") >= 1
    assert value(samples, "wshub_broker_sent_total") >= 1


async def test_the_counts_of_histories_are_metrics() -> None:
    positions = [Position(0, "unknown!")]

    async def serve(connection: Connection) -> None:
        await connection.recover("room", positions.pop())

    registry = CollectorRegistry()
    async with serving(serve) as (hub, url):
        HubCollector(hub, registry=registry)
        assert not any(name.startswith("wshub_history") for name, _ in scrape(registry))
        hub.configure_room("room", history=HistoryConfig(size=2, encode_gap=lambda gap: gap))
        async with connected(url) as client:
            await client.wait_closed()
        for _ in range(3):
            published = await hub.publish("hello", room="room")
        assert published.position is not None
        positions.append(Position(1, published.position.epoch))
        async with connected(url) as client:
            await client.wait_closed()
        samples = scrape(registry)
    assert value(samples, "wshub_history_recoveries_total", outcome="epoch") == 1
    assert value(samples, "wshub_history_recoveries_total", outcome="complete") == 1
    assert value(samples, "wshub_history_recovered_messages_total") == 2
    assert value(samples, "wshub_history_kept_messages") == 2
    assert value(samples, "wshub_history_kept_bytes") > 2 * len("hello")
    assert value(samples, "wshub_history_catch_ups_total") == 0
    assert ("wshub_history_rooms", (("hub", "hub"),)) in samples


async def test_messages_that_a_worker_keeps_are_counted_where_they_are_kept(socket_directory: Path) -> None:
    registry = CollectorRegistry()
    brokers = [WorkersBroker(socket_directory, several_in_process=True) for _ in range(2)]
    hubs = [Hub(name="hub", broker=broker) for broker in brokers]
    for hub in hubs:
        hub.configure_room("room *", history=HistoryConfig(size=2))
    HubCollector(hubs[0], registry=registry)
    async with hubs[0], hubs[1]:
        for hub in hubs:
            await hub.broker_started()
        for room in range(20):
            for _ in range(3):
                await hubs[0].publish("hello", room=f"room {room}")
        kept = [hub.stats().history.kept for hub in hubs]  # type: ignore[union-attr]
        assert sum(kept) == 40
        assert value(scrape(registry), "wshub_history_kept_messages") == kept[0]


async def test_an_engine_keeps_messages_outside_of_the_process(redis_engine: RedisEngine) -> None:
    registry = CollectorRegistry()
    hub = Hub(broker=RedisBroker(redis_engine.url))
    hub.configure_room("room", history=HistoryConfig())
    HubCollector(hub, registry=registry)
    async with hub:
        await hub.broker_started()
        await hub.publish("hello", room="room")
        samples = scrape(registry)
    assert not any("kept" in name for name, _ in samples)
    assert ("wshub_history_rooms", (("hub", "hub"),)) in samples


async def test_the_counts_of_presences_are_metrics() -> None:
    engine = MemoryEngine()
    registry = CollectorRegistry()
    hub = Hub(broker=MemoryBroker(engine))
    handler = EventHandler(on_open=lambda connection: connection.join("room"))
    async with hub, hub.serve("127.0.0.1", 0, handler) as server:
        await hub.broker_started()
        HubCollector(hub, registry=registry)
        assert not any(name.startswith("wshub_presence") for name, _ in scrape(registry))
        hub.configure_room("room", presence=True)
        url = f"ws://127.0.0.1:{server.port}/"
        async with connected(url), connected(url):
            while (await hub.presence_counts("room")).connections < 2:
                await asyncio.sleep(0)
            while value(samples := scrape(registry), "wshub_presence_pending_changes"):
                await asyncio.sleep(0)
            assert value(samples, "wshub_presence_members") == 2
            assert value(samples, "wshub_presence_taken_over_total") == 0
            engine.stop()
            async with connected(url) as third:
                await (await third.ping())
                samples = scrape(registry)
            assert value(samples, "wshub_presence_members") == 3
            assert value(samples, "wshub_presence_pending_changes") >= 1


def test_a_hub_without_a_broker_has_no_metrics_of_one() -> None:
    registry = CollectorRegistry()
    HubCollector(Hub(), registry=registry)
    assert not any(name.startswith(("wshub_broker", "wshub_cluster")) for name, _ in scrape(registry))


def test_two_hubs_are_told_apart_by_their_names() -> None:
    registry = CollectorRegistry()
    HubCollector(Hub(name="chat"), Hub(name="prices"), registry=registry)
    samples = scrape(registry)
    assert value(samples, "wshub_connections", hub="chat") == value(samples, "wshub_connections", hub="prices") == 0


@pytest.mark.parametrize("hubs", [(), (Hub(), Hub()), ("hub",), (Hub,)])
def test_a_collector_takes_hubs_of_different_names(hubs: Any) -> None:
    with pytest.raises(MisuseError):
        HubCollector(*hubs, registry=CollectorRegistry())


def test_a_second_collector_in_a_registry_is_refused() -> None:
    registry = CollectorRegistry()
    HubCollector(Hub(), registry=registry)
    with pytest.raises(ValueError, match="wshub_connections"):
        HubCollector(Hub(), registry=registry)


def test_names_follow_the_conventions_of_prometheus() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.startswith("wshub_")
        assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket", "_milliseconds", "_ms"))
        assert metric.kind != "histogram" or metric.name.endswith("_seconds")
        assert metric.help.endswith(".")


def test_the_endpoint_answers_with_the_metrics_of_a_registry(run) -> None:
    registry = CollectorRegistry()
    HubCollector(Hub(name="chat"), registry=registry)
    app = Starlette(routes=[Mount("/metrics", metrics_endpoint(registry))])

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a", follow_redirects=True) as client:
            return await client.get("/metrics")

    response = run(ask())
    assert response.headers["content-type"].startswith("text/plain")
    assert value(parse(response.text), "wshub_connections", hub="chat") == 0


# Several processes

PROGRAM = """
import os
from wshub.app import App
from wshub.metrics import HubCollector, metrics_endpoint

app = App()
hub = app.enable_websocket()
HubCollector(hub)
app.mount("/metrics", metrics_endpoint())


@app.websocket("/chat")
async def chat(connection):
    connection.send(str(os.getpid()))
    connection.join("lobby")
    async for message in connection:
        hub.broadcast(message, room="lobby")
"""


def test_a_count_never_falls_when_a_hub_begins_anew() -> None:
    total = _Total()
    assert [total.of(number) for number in (0, 5, 9, 2, 2, 7, 0, 1)] == [0, 5, 9, 11, 11, 16, 16, 17]


async def test_any_worker_reports_the_counts_of_all(tmp_path: Path, socket_directory: Path, monkeypatch) -> None:
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(metrics))
    monkeypatch.setenv("TMPDIR", str(socket_directory))
    with wshub_serve("program:app", "--app-dir", str(tmp_path), "--workers", "2") as server:

        async def until(condition: Any) -> Samples:
            async with asyncio.timeout(30), httpx.AsyncClient(trust_env=False, follow_redirects=True) as http:
                while True:
                    samples = parse((await http.get(f"http://{server.address}/metrics/")).text)
                    if condition(samples):
                        return samples
                    await asyncio.sleep(0.1)

        async with contextlib.AsyncExitStack() as stack:
            processes = []
            url = f"ws://{server.address}/chat"
            while len(set(processes)) < 2 or len(processes) < 8:
                client = await stack.enter_async_context(websockets.connect(url, proxy=None))
                processes.append(int(await client.recv()))
            count = len(processes)
            samples = await until(
                lambda samples: (
                    value(samples, "wshub_sent_messages_total") == count
                    and value(samples, "wshub_connections") == count
                    and value(samples, "wshub_cluster_nodes") == 2
                )
            )
            assert value(samples, "wshub_handshake_duration_seconds_count") == count
            assert value(samples, "wshub_handshake_duration_seconds_bucket", le="+Inf") == count
            assert value(samples, "wshub_broker_connected") == 1
            # The gauges of a process that was killed go with it, and its counts stay.
            os.kill(processes[0], signal.SIGKILL)
            left = count - processes.count(processes[0])
            samples = await until(lambda samples: value(samples, "wshub_connections") == left)
            assert value(samples, "wshub_connections_opened_total") == count
        key = ("wshub_connections_closed_total", (("code", "1000"), ("hub", "hub")))
        samples = await until(lambda samples: samples.get(key) == left)
        assert value(samples, "wshub_connections") == 0
