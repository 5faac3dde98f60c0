"""Commands between the hubs of a cluster: heartbeats, surveys, and what they do about users.

A command is JSON in an envelope. A node ignores a command that it does not know, and fields that it does not know. Each
command can be carried out twice without harm.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from wshub.brokers.envelope import encode_envelope
from wshub.brokers.interface import ALL_NODES, Broker, NodeInfo, Published, node_channel, user_channel
from wshub.core.cluster_surveys import Answer, Surveys
from wshub.core.cluster_types import Node, RoomChange, Survey
from wshub.core.command_fields import check_name, check_reason, integer_in, list_in, mapping_in, number_in, text_in
from wshub.errors import BrokerUnavailable

if TYPE_CHECKING:
    from wshub.core.hub_core import HubCore

__all__ = ["HEARTBEAT_PERIOD", "MAX_NODES", "NODE_TIMEOUT", "ClusterCommands"]

logger = logging.getLogger("wshub.broker")

HEARTBEAT_PERIOD = 3.0
"""Seconds between two heartbeats of a node."""

NODE_TIMEOUT = 10.0
"""Seconds after which a node that was not heard counts as gone."""

MAX_NODES = 1024
"""Other nodes that a node knows at most. It ignores the heartbeats of further ones."""

MAX_MISSED = 32
"""Nodes without a goodbye that a heartbeat names at most: those that were lost last. It keeps a heartbeat short."""


class CommandSender(Protocol):
    """The part of a Cluster that the commands need."""

    info: NodeInfo
    broker: Broker

    def send(self, channel: str, envelope: bytes) -> bool:
        """Give an envelope to the broker. Return whether the broker has taken it."""

    def next_number(self) -> int:
        """Return the number of the next envelope."""

    async def publish(self, channel: str, envelope: bytes) -> Published:
        """Give an envelope to the broker, and return when the broker has it. Raises ``BrokerError``."""


class _KnownNode:
    """Another node, as its heartbeats tell."""

    __slots__ = ("connections", "found_at", "heard_at", "hears_this_node", "info")

    def __init__(self, info: NodeInfo, now: float) -> None:
        self.info = info
        self.connections = 0
        self.found_at = now
        self.heard_at = now
        self.hears_this_node = True


class ClusterCommands:
    """The commands of one node. Their names are those of the methods that begin with ``_do_``.

    Args:
        cluster: that sends them.
        hub: that carries out what other nodes ask for.
        answers: what the application answers surveys with, by topic. The hub may change it, and keeps it for later.
    """

    def __init__(self, cluster: CommandSender, hub: HubCore, answers: dict[str, Answer]) -> None:
        self.nodes: dict[str, _KnownNode] = {}
        # Nodes that are silent and have not said goodbye, the last one at the end. Either they or this one are deaf, or
        # they are dead.
        self._missed: dict[str, None] = {}
        self._cluster = cluster
        self._hub = hub
        self._next_heartbeat = 0.0
        self._is_closed = False
        self._is_limit_logged = False
        self._surveys = Surveys(cluster.info.id, self._send, answers, hub.room_size)

    def greet(self) -> None:
        """Tell all nodes that this one is there."""
        if self._is_closed:
            return
        self._next_heartbeat = self._hub.now() + HEARTBEAT_PERIOD
        # The other nodes find out whether this one hears them.
        self._send(ALL_NODES, {**self._heartbeat(), "hears": len(self.nodes), "misses": list(self._missed)})

    def close(self) -> None:
        """Tell all nodes that this one goes, end the surveys, and send nothing more."""
        if self._is_closed:
            return
        self._send(ALL_NODES, {"do": "goodbye"})
        self._is_closed = True
        self._surveys.close()

    def sweep(self, now: float) -> None:
        """Send the heartbeat that is due, and forget the nodes that are silent."""
        if self._is_closed:
            return
        for name, node in tuple(self.nodes.items()):
            if now - node.heard_at > NODE_TIMEOUT:
                logger.info("node %s is gone: not heard for %d s", name, NODE_TIMEOUT)
                self._forget(name)
                self._missed[name] = None
                if len(self._missed) > MAX_MISSED:
                    del self._missed[next(iter(self._missed))]
                if not self.nodes:
                    # This node may be deaf. The others hear of it now.
                    self._next_heartbeat = now
        if now >= self._next_heartbeat:
            self.greet()

    def known_nodes(self) -> list[Node]:
        """Return the nodes of the cluster, this one first."""
        now = self._hub.now()
        own = Node(info=self._cluster.info, connections=self._hub.connection_count, heard_ms=0)
        others = (
            Node(
                info=node.info,
                connections=node.connections,
                heard_ms=int((now - node.heard_at) * 1000),
                hears_this_node=node.hears_this_node,
            )
            for node in self.nodes.values()
        )
        return [own, *others]

    async def survey(self, topic: str, body: Any, timeout: float) -> Survey:
        """Ask all nodes. Return when each has answered, cannot answer or is gone, or after ``timeout`` seconds.

        After ``close()`` it returns at once, and all nodes are missing.

        Raises:
            BrokerUnavailable: the other nodes cannot be asked. An answer of this node alone would look complete.
            MisuseError: the topic is no str.
            TypeError, ValueError: the body is no JSON.
        """
        if not self._is_closed:
            health = self._cluster.broker.health()
            if not health.ok:
                raise BrokerUnavailable(f"the other nodes cannot be asked: {health.reason or health.state}")
        return await self._surveys.ask(topic, body, timeout, self.nodes.keys())

    async def disconnect_user(self, user: str, code: int, reason: str) -> None:
        """Have the other nodes close the connections of a user.

        Raises:
            BrokerError: the other nodes may not have been told.
            TypeError: the user or the reason is no str.
        """
        user = check_name("user", user)
        command = {"do": "disconnect", "user": user, "code": code, "reason": check_reason(reason)}
        await self._cluster.publish(user_channel(user), self._envelope(command))

    def change_rooms(self, change: RoomChange, user: str, room: str) -> None:
        """Have the connections of a user at the other nodes join or leave a room.

        Raises:
            TypeError: the user or the room is no str.
        """
        user = check_name("user", user)
        self._send(user_channel(user), {"do": change, "user": user, "room": check_name("room", room)})

    # Commands of other nodes

    def received(self, node: str, body: bytes) -> None:
        """Carry out a command of another node. After ``close()`` it is ignored.

        Raises:
            ValueError: it is no JSON, or a field is missing or of the wrong type.
        """
        if self._is_closed:
            return
        try:
            command = json.loads(body)
        except RecursionError:
            raise ValueError("a command that is nested too deeply") from None
        name = command.get("do") if isinstance(command, dict) else None
        carry_out = getattr(self, f"_do_{name}", None) if isinstance(name, str) and name.isidentifier() else None
        if carry_out is None:
            logger.debug("node %s has sent a command that is not known here: %.100r", node, name)
            return
        carry_out(node, command)

    def _do_heartbeat(self, node: str, command: dict[str, Any]) -> None:
        info = _info_from(node, mapping_in(command, "info"))
        connections = integer_in(command, "connections", 0)
        # The reply to a new node does not say which nodes are heard.
        is_reply = "hears" not in command
        heard_count = integer_in(command, "hears", 0)
        misses = list_in(command, "misses")
        now = self._hub.now()
        known = self.nodes.get(node)
        if known is None:
            if len(self.nodes) >= MAX_NODES:
                self._log_limit()
                return
            known = self.nodes[node] = _KnownNode(info, now)
            if not is_reply:
                # The new node is to know this one before its next heartbeat.
                self._send(node_channel(node), self._heartbeat())
        known.connections = connections
        known.heard_at = now
        self._missed.pop(node, None)
        if is_reply:
            return
        # A new node has not heard everything yet.
        is_new = now - known.found_at < NODE_TIMEOUT
        hears = is_new or (heard_count > 0 and self._cluster.info.id not in misses)
        if known.hears_this_node and not hears:
            logger.warning("node %s (%s, process %d) does not hear this node", node, known.info.host, known.info.pid)
        known.hears_this_node = hears

    def _do_goodbye(self, node: str, _command: dict[str, Any]) -> None:
        self._forget(node)
        self._missed.pop(node, None)

    def _do_survey(self, node: str, command: dict[str, Any]) -> None:
        self._surveys.asked(node, text_in(command, "topic"), integer_in(command, "number"), command.get("body"))

    def _do_answer(self, node: str, command: dict[str, Any]) -> None:
        self._surveys.answered(node, integer_in(command, "number"), command)

    def _do_disconnect(self, _node: str, command: dict[str, Any]) -> None:
        code, reason = integer_in(command, "code"), text_in(command, "reason")
        for connection in self._hub.user_connections(text_in(command, "user")):
            connection.close(code, reason)

    def _do_join(self, _node: str, command: dict[str, Any]) -> None:
        room = text_in(command, "room")
        for connection in self._hub.user_connections(text_in(command, "user")):
            connection.join(room)

    def _do_leave(self, _node: str, command: dict[str, Any]) -> None:
        room = text_in(command, "room")
        for connection in self._hub.user_connections(text_in(command, "user")):
            connection.leave(room)

    # Inside

    def _heartbeat(self) -> dict[str, Any]:
        return {
            "do": "heartbeat",
            "info": asdict(self._cluster.info),
            "connections": self._hub.connection_count,
        }

    def _forget(self, node: str) -> None:
        self.nodes.pop(node, None)
        self._surveys.forget(node)

    def _log_limit(self) -> None:
        if not self._is_limit_logged:
            self._is_limit_logged = True
            logger.warning("more than %d other nodes send heartbeats: the further ones are ignored", MAX_NODES)

    def _envelope(self, command: dict[str, Any]) -> bytes:
        return encode_envelope(
            "control",
            "",
            json.dumps(command, separators=(",", ":")).encode(),
            node=int(self._cluster.info.id, 16),
            number=self._cluster.next_number(),
            sent_at=time.time_ns() // 1000,
        )

    def _send(self, channel: str, command: dict[str, Any]) -> bool:
        """Send a command. Return whether the broker has taken it. After ``close()`` nothing is sent."""
        return not self._is_closed and self._cluster.send(channel, self._envelope(command))


def _info_from(node: str, fields: dict[str, Any]) -> NodeInfo:
    """Return the NodeInfo in a heartbeat. Raises ``ValueError`` for a field of the wrong type."""
    return NodeInfo(
        id=node,
        hub=text_in(fields, "hub", ""),
        host=text_in(fields, "host", ""),
        pid=integer_in(fields, "pid", 0),
        started_at=number_in(fields, "started_at", 0.0),
    )
