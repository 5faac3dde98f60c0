"""The metrics of a hub: their names, and how each is read from ``Hub.stats``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from wshub.core.cluster_types import ClusterStats
from wshub.core.history_types import HistoryStats
from wshub.core.presence_types import PresenceStats
from wshub.core.stats_types import Histogram, HubStats

__all__ = ["METRICS", "Metric", "Value"]

Value: TypeAlias = float | Mapping[Any, float] | Histogram | None
"""A number; a number for each value of the label; a histogram; or None, if there is nothing to report."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a hub. It has the label ``hub``, and perhaps another one."""

    kind: Literal["counter", "gauge", "histogram"]

    name: str
    """Without the suffix of its kind, such as ``_total``."""

    help: str

    read: Callable[[HubStats], Value]

    label: str | None = None
    """The label whose values are the keys of what ``read`` returns."""

    merged: Literal["livesum", "livemax", "livemin"] = "livesum"
    """How a gauge is made of those of several processes."""


def _of_cluster(read: Callable[[ClusterStats], Value]) -> Callable[[HubStats], Value]:
    """Return a function that reads the cluster's counts, or nothing without a broker."""

    def read_cluster(stats: HubStats) -> Value:
        return read(stats.cluster) if stats.cluster is not None else None

    return read_cluster


def _of_history(read: Callable[[HistoryStats], Value]) -> Callable[[HubStats], Value]:
    """Return a function that reads the counts of histories, or nothing if no room has one."""

    def read_history(stats: HubStats) -> Value:
        return read(stats.history) if stats.history is not None else None

    return read_history


def _of_presence(read: Callable[[PresenceStats], Value]) -> Callable[[HubStats], Value]:
    """Return a function that reads the counts of presences, or nothing if no room has one."""

    def read_presence(stats: HubStats) -> Value:
        return read(stats.presence) if stats.presence is not None else None

    return read_presence


def _seconds(milliseconds: float | None) -> float | None:
    return milliseconds / 1000 if milliseconds is not None else None


METRICS: tuple[Metric, ...] = (
    Metric("gauge", "wshub_connections", "Connections now, including those that are closing.", lambda s: s.connections),
    Metric("gauge", "wshub_rooms", "Rooms that have a member.", lambda s: s.rooms),
    Metric("counter", "wshub_connections_opened", "Connections that have opened.", lambda s: s.connections_opened),
    Metric("counter", "wshub_connections_closed", "Connections that ended, by close code.", lambda s: s.closes, "code"),
    Metric(
        "counter", "wshub_handshakes_refused", "Handshakes that were refused, by status.", lambda s: s.refused, "status"
    ),
    Metric(
        "histogram",
        "wshub_handshake_duration_seconds",
        "From a complete handshake request to its 101.",
        lambda s: s.handshake_seconds,
    ),
    Metric("counter", "wshub_received_messages", "Messages received from clients.", lambda s: s.messages_received),
    Metric("counter", "wshub_received_bytes", "Bytes received from clients.", lambda s: s.bytes_received),
    Metric("histogram", "wshub_handler_duration_seconds", "Duration of on_message.", lambda s: s.handler_seconds),
    Metric("counter", "wshub_sent_messages", "Messages sent, once for each receiver.", lambda s: s.messages_accepted),
    Metric("counter", "wshub_delivered_messages", "Sent messages that have left.", lambda s: s.messages_delivered),
    Metric(
        "counter",
        "wshub_dropped_messages",
        "Sent messages that were not delivered, by reason.",
        lambda s: asdict(s.dropped),
        "reason",
    ),
    Metric("counter", "wshub_sent_bytes", "Bytes sent to clients.", lambda s: s.bytes_sent),
    Metric("gauge", "wshub_send_queue_messages", "Messages in the send queues.", lambda s: s.messages_pending),
    Metric("gauge", "wshub_send_queue_bytes", "Bytes in the send queues.", lambda s: s.bytes_pending),
    Metric("counter", "wshub_rates_exceeded", "How often a client exceeded its rates.", lambda s: s.rates_exceeded),
    Metric("histogram", "wshub_ping_duration_seconds", "From a ping of the hub to its pong.", lambda s: s.ping_seconds),
    Metric(
        "counter", "wshub_compressed_messages", "Messages that were compressed.", lambda s: s.compression.compressions
    ),
    Metric(
        "counter", "wshub_compression_input_bytes", "Their bytes before compression.", lambda s: s.compression.bytes_in
    ),
    Metric(
        "counter", "wshub_compression_output_bytes", "Their bytes after compression.", lambda s: s.compression.bytes_out
    ),
    Metric(
        "gauge",
        "wshub_cluster_nodes",
        "Nodes that were heard lately.",
        _of_cluster(lambda c: c.nodes),
        merged="livemax",
    ),
    Metric("counter", "wshub_cluster_published", "Envelopes made for other nodes.", _of_cluster(lambda c: c.published)),
    Metric("counter", "wshub_cluster_rejected", "Those that the broker rejected.", _of_cluster(lambda c: c.rejected)),
    Metric("counter", "wshub_cluster_received", "Envelopes that have arrived.", _of_cluster(lambda c: c.received)),
    Metric("counter", "wshub_cluster_delivered", "Those for this node.", _of_cluster(lambda c: c.delivered)),
    Metric(
        "counter",
        "wshub_cluster_ignored",
        "Those that reached no connection, by reason.",
        _of_cluster(lambda c: asdict(c.ignored)),
        "reason",
    ),
    Metric(
        "counter",
        "wshub_cluster_interruptions",
        "How often messages between nodes may have been lost, by reason.",
        _of_cluster(lambda c: c.interruptions),
        "reason",
    ),
    Metric(
        "gauge",
        "wshub_cluster_lag_seconds",
        "How long a recent message took from another node, by the clocks of both.",
        _of_cluster(lambda c: _seconds(c.lag_ms)),
        merged="livemax",
    ),
    Metric(
        "gauge",
        "wshub_broker_probe_seconds",
        "How long the last probe took through the broker and back.",
        _of_cluster(lambda c: _seconds(c.probe_ms)),
        merged="livemax",
    ),
    Metric(
        "gauge",
        "wshub_broker_connected",
        "1 if the broker works, else 0.",
        _of_cluster(lambda c: float(c.connected)),
        merged="livemin",
    ),
    Metric(
        "counter",
        "wshub_broker_sent",
        "Envelopes given to the engine or to peers.",
        _of_cluster(lambda c: c.broker.sent),
    ),
    Metric("counter", "wshub_broker_received", "Envelopes received.", _of_cluster(lambda c: c.broker.received)),
    Metric("counter", "wshub_broker_sent_bytes", "Bytes sent.", _of_cluster(lambda c: c.broker.bytes_sent)),
    Metric("counter", "wshub_broker_received_bytes", "Bytes received.", _of_cluster(lambda c: c.broker.bytes_received)),
    Metric(
        "counter",
        "wshub_broker_dropped",
        "Envelopes that were not sent, by reason.",
        _of_cluster(lambda c: c.broker.dropped),
        "reason",
    ),
    Metric("counter", "wshub_broker_reconnects", "Connections made again.", _of_cluster(lambda c: c.broker.reconnects)),
    Metric(
        "gauge", "wshub_broker_subscriptions", "Channels subscribed to.", _of_cluster(lambda c: c.broker.subscriptions)
    ),
    Metric("gauge", "wshub_broker_peers", "Open connections of the broker.", _of_cluster(lambda c: c.broker.peers)),
    Metric(
        "gauge", "wshub_history_rooms", "Rooms with history that have a member here.", _of_history(lambda h: h.rooms)
    ),
    Metric("counter", "wshub_history_reads", "Times that a history was read.", _of_history(lambda h: h.reads)),
    Metric(
        "counter",
        "wshub_history_catch_ups",
        "Times that a room read messages which had not arrived.",
        _of_history(lambda h: h.caught_up),
    ),
    Metric(
        "counter",
        "wshub_history_gaps",
        "Times that such messages were not kept any more, by reason.",
        _of_history(lambda h: h.gaps),
        "reason",
    ),
    Metric(
        "counter",
        "wshub_history_recoveries",
        "Clients that came back to a room, by outcome.",
        _of_history(lambda h: h.recoveries),
        "outcome",
    ),
    Metric(
        "counter",
        "wshub_history_recovered_messages",
        "Messages sent to clients that had missed them.",
        _of_history(lambda h: h.recovered),
    ),
    Metric(
        "gauge",
        "wshub_history_kept_messages",
        "Messages that the process keeps in its memory.",
        _of_history(lambda h: h.kept),
    ),
    Metric("gauge", "wshub_history_kept_bytes", "Bytes of these messages.", _of_history(lambda h: h.kept_bytes)),
    Metric(
        "gauge",
        "wshub_presence_members",
        "Connections that count as present, once for each room.",
        _of_presence(lambda p: p.members),
    ),
    Metric(
        "gauge",
        "wshub_presence_pending_changes",
        "Joins and leaves that other nodes have not been told yet.",
        _of_presence(lambda p: p.pending),
    ),
    Metric(
        "counter",
        "wshub_presence_taken_over",
        "Members of nodes that have died.",
        _of_presence(lambda p: p.taken_over),
    ),
)
