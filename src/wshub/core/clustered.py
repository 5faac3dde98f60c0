"""The methods of a hub that reach the other hubs of its cluster: publishing, users, surveys and health."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from wshub.brokers.history_interface import HistoryQuery
from wshub.brokers.idempotency_keys import check_idempotency_key
from wshub.brokers.interface import History, NodeInfo, Position, Published, room_channel
from wshub.brokers.presence_interface import PresenceCounts, PresencePage
from wshub.brokers.room_patterns import RoomPattern
from wshub.core.cluster_surveys import ROOM_COUNT, Surveys, check_answer
from wshub.core.cluster_types import HubHealth, Node, RoomChange, Survey
from wshub.core.command_fields import check_name, check_reason
from wshub.core.config import SlowConsumer
from wshub.core.handler_checks import check_function
from wshub.core.histories import Histories
from wshub.core.history_recovery import recover, wait_live
from wshub.core.history_sending import is_kept, make_history_envelope
from wshub.core.history_types import Recovery, check_position
from wshub.core.lifecycle import ALONE, HubLifecycle
from wshub.core.presences import Presences
from wshub.core.watches import RoomMessage, Watch, Watches, pattern_broker_of
from wshub.errors import BrokerUnavailable, MisuseError
from wshub.protocol.close_code import CloseCode, encode_close_payload
from wshub.protocol.validation import check_integer, check_str

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from wshub.core.cluster import Cluster
    from wshub.core.connection import Connection
    from wshub.protocol.message import Message

__all__ = ["ClusteredHub"]


class ClusteredHub(HubLifecycle):
    """A hub that a broker may join to others. See :class:`wshub.Hub`."""

    async def broker_started(self) -> None:
        """Return when the hub has joined the other nodes. Without a broker it returns at once.

        The hub serves meanwhile: what is sent before reaches this node only. ``asyncio.timeout`` bounds the wait.

        Raises:
            ConfigurationError: the broker cannot work, such as with a wrong password.
            BrokerUnavailable: the broker has failed.
        """
        self.bind()
        if self._cluster is not None:
            await self._cluster.wait_started()

    async def subscribed(self, room: str) -> None:
        """Return when each message that any node sends to the room from now on arrives here.

        The room must have a member at this hub. Without a broker it returns at once.

        Raises:
            MisuseError: the room has no member here.
            BrokerUnavailable: the broker has no connection.
        """
        self.bind()
        if not self.room_size(room):
            raise MisuseError(f"the room {room!r} has no member at this hub: let a connection join it first")
        if self._cluster is not None:
            await self._cluster.subscribed(room_channel(room))
        if self._histories is not None and (history := self._histories.cursors.get(room)) is not None:
            await wait_live(history)

    async def watch(
        self, pattern: str, function: Callable[[RoomMessage], Any], *, max_pending: int = 8 * 1024 * 1024
    ) -> Watch:
        """Call a function with each message that any node sends to the rooms of a pattern::

            async def archive(message: RoomMessage) -> None:
                await database.insert(message.room, message.data)

            watch = await hub.watch("chat:*", archive)

        The rooms need no members here. It returns when every message that any node sends from now on arrives. The
        watch ends when it or the hub closes. After an interruption of the broker, it goes on by itself.

        The function gets each message once, as it was published, whomever ``exclude`` leaves out. A message to a room
        with history comes when it is stored, with its position. Messages that are lost on the way are not read again.

        The hub must have no broker, or one that delivers by patterns: NATS or worker processes.

        Args:
            pattern: of the names of rooms, as in ``configure_room``: one ``*`` stands for any characters.
            function: a function or a coroutine function that takes a ``RoomMessage``. It is called with one message
                after the other.
            max_pending: bytes that may wait for the function; each message counts for 256 more. Further messages are
                dropped and counted: ``Watch.dropped``.

        Raises:
            BrokerUnavailable: the broker has no connection, or refuses the subscription.
            ConfigurationError: a pattern with more than one ``*``, or the broker cannot work.
            MisuseError: the broker does not deliver by patterns, or ``function`` cannot be called with a message.
            TypeError: ``pattern`` is no str.
        """
        parsed = RoomPattern.parse(check_name("room", pattern))
        check_function("function", function, ("message",))
        max_pending = check_integer("max_pending", max_pending, 1, 1 << 40)
        if self.broker is not None:
            pattern_broker_of(self.broker)
        self._bind_unless_closed()
        if self._cluster is not None:
            await self._cluster.wait_patiently()
            self._bind_unless_closed()
        watches = self._watches if self._watches is not None else Watches(self, self._cluster)
        return await watches.open(parsed, function, max_pending)

    async def publish(
        self,
        message: str | Buffer | Message,
        *,
        room: str | None = None,
        user: str | None = None,
        exclude: Connection | int | None = None,
        compress: bool | None = None,
        slow_consumer: SlowConsumer | None = None,
        key: str | None = None,
        publisher: Connection | str | None = None,
        idempotency_key: str = "",
    ) -> Published:
        """Send a message as ``broadcast`` does, and return when the broker has taken it.

        The connections of this node get it at once, even if it raises. In a room with history, members get it once it
        is stored. A broker that has not started yet has five seconds for that, from the hub's first use on.

        Args:
            message: a str, bytes or another buffer, or a Message.
            room: the name of a room; or
            user: the name of a user; without either, all connections get it.
            exclude: a Connection of this hub, or its id, that does not get it.
            compress, slow_consumer, key: as in ``Connection.send``.
            publisher: as in ``broadcast``.
            idempotency_key: names this message, for a room with history. The room stores one message for a key within
                five minutes. So you may try again after an error. It has at most 512 characters.

        Returns:
            A ``Published``. For a room with history it has the position of the message.

        Raises:
            BrokerUnavailable: the broker has not taken it: no other node gets it. In a room with history, nobody does.
            BrokerUncertain: the answer was lost: other nodes may get it.
            ConfigurationError: the broker cannot work, such as with a wrong password.
            MisuseError: both a room and a user are given; or an idempotency key for what is not kept.
            InvalidMessageError: as ``broadcast``; or the idempotency key is too long.
            TypeError: as ``broadcast``.
        """
        if room is not None and user is not None:
            raise MisuseError("give publish() a room or a user, not both")
        check_idempotency_key(idempotency_key)
        self._bind_unless_closed()
        if room is not None and self._histories is not None and is_kept(self, room):
            stored = make_history_envelope(self, room, message, exclude, compress, slow_consumer, key, publisher)
            if self._cluster is not None:
                await self._cluster.wait_patiently()
            return await self._histories.publish(room, stored, idempotency_key)
        if idempotency_key:
            raise MisuseError("an idempotency key is for a message to a room with history")
        channel, envelope = self._send_to_own(
            message, room=room, user=user, exclude=exclude, compress=compress, slow_consumer=slow_consumer, key=key
        )
        if self._cluster is None or channel is None or envelope is None:
            return Published(receivers=0)
        return await self._cluster.publish(channel, envelope)

    async def history(
        self,
        room: str,
        *,
        since: Position | None = None,
        limit: int = 100,
        max_bytes: int = 1024 * 1024,
        reverse: bool = False,
    ) -> History:
        """Return the messages of a room that are kept.

        Args:
            room: the name of a room with history.
            since: return the messages behind this position; in reverse, those before it. None begins with the oldest
                message, or with the newest in reverse.
            limit: maximum number of messages. 0 asks for the position alone.
            max_bytes: maximum number of bytes. The first message is returned whatever its size.
            reverse: whether the newest message comes first.

        Returns:
            A ``History``: the publications, the position of the newest message of the room, and a gap if messages
            behind ``since`` are not kept any more. Go on reading behind the position of the last publication.

        Raises:
            MisuseError: the room has no history.
            BrokerUnavailable: the broker cannot be asked.
            TypeError: ``room`` is not a str, or ``since`` is no Position.
        """
        room, since = check_name("room", room), check_position("since", since)
        query = HistoryQuery(since=since, limit=limit, max_bytes=max_bytes, reverse=reverse)
        self._bind_unless_closed()
        return await self._kept().read(room, query)

    async def _recover(self, connection: Connection, room: str, position: Position | None, limit: int) -> Recovery:
        """Do what ``Connection.recover`` does."""
        position = check_position("position", position)
        limit = check_integer("limit", limit, 0, 1 << 63)
        self.bind()
        return await recover(self._kept(), connection, room, position, limit)

    def _kept(self) -> Histories:
        if self._histories is None:
            raise MisuseError("no room has a history: call hub.configure_room(..., history=HistoryConfig())")
        return self._histories

    async def presence(self, room: str, *, limit: int = 1000, cursor: str = "") -> PresencePage:
        """Return members of a room, on all nodes.

        Args:
            room: the name of a room with presence.
            limit: about how many members to return.
            cursor: empty for the first page; then the ``cursor`` of the page before.

        Raises:
            MisuseError: the room has no presence.
            BrokerUnavailable: the broker cannot be asked.
        """
        limit = check_integer("limit", limit, 1, 100_000)
        self._bind_unless_closed()
        return await self._known_presences().read(check_name("room", room), check_str("cursor", cursor), limit)

    async def presence_counts(self, room: str) -> PresenceCounts:
        """Return the number of connections and of users in a room, on all nodes.

        Raises:
            MisuseError: the room has no presence.
            BrokerUnavailable: the broker cannot be asked.
        """
        self._bind_unless_closed()
        return await self._known_presences().counts(check_name("room", room))

    def _copy_presence_info(self, room: str, info: Any) -> Any:
        """Return the info with which a connection is to join a room. The application may go on to change its own."""
        presences = self._known_presences()
        presences.check(room)
        return presences.copy_info(info)

    def _set_presence_info(self, room: str, connection: int, info: Any) -> None:
        """Set the info of a connection that has joined a room."""
        self._known_presences().set_info(room, connection, info)

    def _known_presences(self) -> Presences:
        if self._presences is None:
            raise MisuseError("no room has a presence: call hub.configure_room(..., presence=True)")
        return self._presences

    async def disconnect_user(self, user: str, code: int = CloseCode.POLICY_VIOLATION, reason: str = "") -> int:
        """Close every connection of a user, on every node. Return the number of those at this hub.

        A connection whose user is set at the same moment may be missed. So let ``on_upgrade`` refuse such a user too.
        An empty name is no user: nothing is closed.

        Args:
            user: the name of the user.
            code: a close code that an application may send (RFC 6455 section 7.4).
            reason: at most 123 bytes of UTF-8.

        Raises:
            InvalidMessageError: the code or the reason cannot be sent.
            TypeError: ``user`` or ``reason`` is no str.
            BrokerUnavailable, BrokerUncertain: other nodes have not been told, or may not have been. The connections of
                this hub are closing.
        """
        user, reason = check_name("user", user), check_reason(reason)
        encode_close_payload(code, reason)
        if not user:
            return 0
        self._bind_unless_closed()
        connections = self.user_connections(user)
        for connection in connections:
            connection.close(code, reason)
        if self._cluster is not None:
            await self._cluster.commands.disconnect_user(user, int(code), reason)
        return len(connections)

    def join_user(self, user: str, room: str) -> int:
        """Have every connection of a user join a room, on every node. Return the number of those at this hub.

        Connections that the user opens later do not join it. Other nodes carry it out a little later: a message to the
        room that you send next may arrive there before. Call it from any thread.
        """
        return self._change_rooms("join", user, room)

    def leave_user(self, user: str, room: str) -> int:
        """Have every connection of a user leave a room, on every node. Return the number of those at this hub."""
        return self._change_rooms("leave", user, room)

    def _change_rooms(self, change: RoomChange, user: str, room: str) -> int:
        """Have every connection of a user join or leave a room, on every node."""
        user, room = check_name("user", user), check_name("room", room)
        connections = self.user_connections(user)
        if not self._hand_over(partial(self._change_rooms, change, user, room)):
            for connection in connections:
                connection.join(room) if change == "join" else connection.leave(room)
            cluster = self._cluster_to_tell(user)
            if cluster is not None:
                cluster.commands.change_rooms(change, user, room)
        return len(connections)

    def _bind_unless_closed(self) -> None:
        """Bind the hub to the running loop. Raises ``BrokerUnavailable`` if it has closed there."""
        if self._has_closed:
            raise BrokerUnavailable("the hub has closed")
        self.bind()

    def _cluster_to_tell(self, user: str) -> Cluster | None:
        """Return the cluster that is to hear of a user; None without a broker, and for an empty name."""
        if not user:
            return None
        if self._cluster is None:
            self._bind_to_send()
        return self._cluster

    async def nodes(self) -> list[Node]:
        """Return the hubs that were heard within the last ten seconds, this one first."""
        self.bind()
        if self._cluster is not None:
            return self._cluster.commands.known_nodes()
        return [Node(info=NodeInfo(id=ALONE, hub=self.name), connections=self.connection_count, heard_ms=0)]

    def answer_survey(self, topic: str, answer: Callable[[Any], Any]) -> None:
        """Have this hub answer surveys on a topic, for as long as it lives. Call it once for each topic, at any time.

        Args:
            topic: any name that does not begin with ``wshub.``.
            answer: a function or coroutine function. It takes the body of the survey, and returns what JSON can hold.

        Raises:
            MisuseError: the topic is wshub's own or no str, or the answer is no function.
        """
        self._survey_answers[check_answer(topic, answer)] = answer

    async def survey(self, topic: str, body: Any = None, *, timeout_ms: int = 5_000) -> Survey:
        """Ask all nodes, and return their answers and which nodes have not answered.

        A node that has no answer on the topic, or whose answer fails, is among those that have not answered. Without a
        broker this hub answers alone.

        Args:
            topic: what ``answer_survey`` was called with at each node, this one included.
            body: goes to each node; anything that JSON can hold.
            timeout_ms: milliseconds to wait for answers.

        Raises:
            BrokerUnavailable: the other nodes cannot be asked.
            MisuseError: the topic is no str.
            TypeError, ValueError: the body is no JSON.
        """
        timeout_ms = check_integer("timeout_ms", timeout_ms, 1, 3_600_000)
        self._bind_unless_closed()
        if self._cluster is None:
            return await self._ask_alone(topic, body, timeout_ms / 1000)
        await self._cluster.wait_patiently()
        return await self._cluster.commands.survey(topic, body, timeout_ms / 1000)

    async def _ask_alone(self, topic: str, body: Any, timeout: float) -> Survey:
        surveys = Surveys(ALONE, lambda _channel, _command: True, self._survey_answers, self.room_size)
        try:
            return await surveys.ask(topic, body, timeout, ())
        finally:
            surveys.close()

    async def room_count(self, room: str, *, timeout_ms: int = 5_000) -> int:
        """Return the number of members of a room on all nodes. ``room_size`` counts those of this hub.

        Raises:
            BrokerUnavailable: the other nodes cannot be asked, or some of them have not answered in time.
            TypeError: ``room`` is not a str.
        """
        found = await self.survey(ROOM_COUNT, room, timeout_ms=timeout_ms)
        if found.missing:
            raise BrokerUnavailable(f"{len(found.missing)} nodes have not answered, so the count is not complete")
        return sum(found.answers.values())

    def health(self) -> HubHealth:
        """Return whether the hub and its broker work, for a readiness check.

        Called from the event loop before the hub's first use, it has the broker start.
        """
        if not self.is_in_use and not self._has_closed:
            self._bind_to_send()
        broker = self.broker.health() if self._cluster is not None and self.broker is not None else None
        ok = self.is_in_use and not self.is_closing and (broker is None or broker.ok)
        return HubHealth(ok=ok, connections=self.connection_count, broker=broker)
