"""Counts, metrics, health and traces."""

from collections.abc import Mapping
from typing import assert_type

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Mount

from wshub import Hub, HubConfig, HubStats
from wshub.app import App
from wshub.core.stats_types import Histogram
from wshub.health import health_endpoint
from wshub.metrics import HubCollector, metrics_endpoint
from wshub.tracing import trace_hub

hub = Hub(HubConfig(access_log=True))
hub.measure_times()
stats = hub.stats()
assert_type(stats, HubStats)
assert_type(stats.connections_opened, int)
assert_type(stats.dropped.total, int)
assert_type(stats.closes, Mapping[int, int])
assert_type(stats.handshake_seconds, Histogram | None)
stats.connections = 5  # type: ignore[misc]
stats["connections"]  # type: ignore[index]
if stats.cluster is not None:
    assert_type(stats.cluster.broker.sent, int)

registry = CollectorRegistry()
HubCollector(hub, registry=registry)
HubCollector("hub")  # type: ignore[arg-type]
trace_hub(hub, messages=True)

app = App()
app.mount("/metrics", metrics_endpoint(registry))
app.mount("/health", health_endpoint(hub))
Starlette(routes=[Mount("/metrics", metrics_endpoint()), Mount("/health", health_endpoint(hub))])
hub.serve("127.0.0.1", 8080, health_path="/health")
