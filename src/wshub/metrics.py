"""Metrics of hubs for Prometheus: ``pip install "wshub[metrics]"``.

::

    hub = Hub()
    HubCollector(hub)
    app.mount("/metrics", metrics_endpoint())

The table of metrics is in ``wshub.metrics_table``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from typing import Any
from weakref import WeakSet

from prometheus_client import REGISTRY, CollectorRegistry, make_asgi_app, multiprocess, values
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.utils import floatToGoString

from wshub.core.stats_types import Histogram
from wshub.errors import MisuseError
from wshub.hub import Hub
from wshub.metrics_table import METRICS, Metric

__all__ = ["HubCollector", "metrics_endpoint"]

_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

# One class for a kind of metric.
_FAMILIES: dict[str, Callable[..., Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class HubCollector:
    """Reports the counts of hubs to Prometheus, under names that begin with ``wshub_``.

    Each metric has the label ``hub``, the name of its hub. Creating a collector makes its hubs measure times, as
    ``Hub.measure_times`` does. Each scrape reads ``Hub.stats``; nothing is done for it in between.

    If ``PROMETHEUS_MULTIPROC_DIR`` is set, as it must be with ``wshub serve --workers``, the collector belongs to no
    registry. Instead each process writes its counts to that directory once a second while its hub is in use. Any of the
    processes can then report those of all: with ``metrics_endpoint``, or with a ``MultiProcessCollector`` of
    prometheus-client.

    Args:
        hubs: one hub or several, each with a name of its own.
        registry: that the collector is registered with.

    Raises:
        MisuseError: there is no hub, or two have the same name.
    """

    def __init__(self, *hubs: Hub, registry: CollectorRegistry = REGISTRY) -> None:
        if not hubs or not all(isinstance(hub, Hub) for hub in hubs):
            raise MisuseError(f"HubCollector() takes hubs, not {hubs!r}")
        if len({hub.name for hub in hubs}) < len(hubs):
            raise MisuseError("two hubs have the same name, and their counts would mix: Hub(name=...) gives them names")
        self._hubs = hubs
        self._shared = _SharedCounts() if _has_several_processes() else None
        for hub in hubs:
            hub.measure_times()
        if self._shared is None:
            registry.register(self)
            return
        _PUBLISHING.add(self)
        for hub in hubs:
            hub._watch(self.publish)

    def describe(self) -> Iterator[Family]:
        """Yield the metrics without values, for the registry."""
        return (_family_of(metric) for metric in METRICS)

    def collect(self) -> Iterator[Family]:
        """Yield the metrics, for the registry. It may be called in any thread."""
        counts = [(hub.name, hub.stats()) for hub in self._hubs]
        for metric in METRICS:
            family = _family_of(metric)
            for hub, stats in counts:
                value = metric.read(stats)
                if isinstance(value, Histogram):
                    family.add_metric([hub], _cumulative(value), value.sum)
                elif isinstance(value, Mapping):
                    for key, number in value.items():
                        family.add_metric([hub, str(key)], number)
                elif value is not None:
                    family.add_metric([hub], value)
            yield family

    def publish(self) -> None:
        """Write the counts to the directory of the processes. With a single process it does nothing."""
        if self._shared is None:
            return
        for hub in self._hubs:
            stats = hub.stats()
            for metric in METRICS:
                self._shared.write(metric, hub.name, metric.read(stats))
        _forget_dead_processes(os.environ[_DIRECTORY])


def metrics_endpoint(
    registry: CollectorRegistry = REGISTRY,
) -> Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]:
    """Return an ASGI application that answers with the metrics of a registry, to be mounted at ``/metrics``.

    If ``PROMETHEUS_MULTIPROC_DIR`` is set, it answers with those of all processes, which are not in the registry.
    """

    async def answer(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        source = registry
        if _has_several_processes():
            for collector in tuple(_PUBLISHING):
                collector.publish()
            source = CollectorRegistry()
            multiprocess.MultiProcessCollector(source)  # type: ignore[no-untyped-call]
        await make_asgi_app(source)(scope, receive, send)

    return answer


class _SharedCounts:
    """The counts of this process in the directory of all processes, in the form of prometheus-client."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._totals: dict[tuple[str, tuple[str, ...]], _Total] = {}

    def write(self, metric: Metric, hub: str, value: Any) -> None:
        """Write what a metric of a hub is now."""
        if isinstance(value, Histogram):
            for bound, count in zip(_bounds(value), value.counts, strict=True):
                self._set(metric, "_bucket", {"hub": hub, "le": bound}, count)
            self._set(metric, "_sum", {"hub": hub}, value.sum)
        elif isinstance(value, Mapping):
            for key, number in value.items():
                self._set(metric, "_total", {"hub": hub, str(metric.label): str(key)}, number)
        elif value is not None:
            self._set(metric, "_total" if metric.kind == "counter" else "", {"hub": hub}, value)

    def _set(self, metric: Metric, suffix: str, labels: dict[str, str], number: float) -> None:
        name = metric.name + suffix
        key = (name, tuple(labels.values()))
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = values.ValueClass(
                metric.kind, metric.name, name, tuple(labels), key[1], metric.help, multiprocess_mode=metric.merged
            )
        if metric.kind != "gauge":
            number = self._totals.setdefault(key, _Total()).of(number)
        value.set(number)


class _Total:
    """A count that goes on when the hub begins anew, and counts from zero: a sum over processes must not fall."""

    __slots__ = ("_before", "_last")

    def __init__(self) -> None:
        self._before = 0.0
        self._last = 0.0

    def of(self, number: float) -> float:
        if number < self._last:
            self._before += self._last
        self._last = number
        return self._before + number


_PUBLISHING: WeakSet[HubCollector] = WeakSet()


def _has_several_processes() -> bool:
    # prometheus-client has chosen its class of values when it was imported.
    return _DIRECTORY in os.environ and getattr(values.ValueClass, "_multiprocess", False)


def _family_of(metric: Metric) -> Any:
    labels = ["hub", metric.label] if metric.label is not None else ["hub"]
    return _FAMILIES[metric.kind](metric.name, metric.help, labels=labels)


def _bounds(histogram: Histogram) -> list[str]:
    """Return the bounds of all buckets, as text."""
    return [floatToGoString(bound) for bound in (*histogram.bounds, float("inf"))]  # type: ignore[no-untyped-call]


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Return the buckets as Prometheus has them: each counts those before it too."""
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip(_bounds(histogram), histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def _forget_dead_processes(directory: str) -> None:
    """Remove the gauges of processes that were killed. Their counters stay, since totals must not fall."""
    for name in os.listdir(directory):
        pid = name.removesuffix(".db").rpartition("_")[2]
        if not name.startswith("gauge_live") or not pid.isdecimal():
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            # Another process may have removed them at the same moment.
            with contextlib.suppress(FileNotFoundError):
                multiprocess.mark_process_dead(int(pid), directory)  # type: ignore[no-untyped-call]
        except PermissionError:
            # It lives, as another user.
            pass
