"""An engine in memory. It carries envelopes between the hubs of one process, and fails when a test wants it to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from wshub.brokers.envelope import encode_stored
from wshub.brokers.history_interface import HistoryQuery
from wshub.brokers.history_store import HistoryStore
from wshub.brokers.interface import PATTERN_CHANNELS, HistoryConfig, Published
from wshub.brokers.presence_store import PresenceStore
from wshub.brokers.room_patterns import RoomPattern, matching_channels, pattern_of

__all__ = [
    "Answer",
    "Answered",
    "Arrived",
    "Ask",
    "Command",
    "EngineConnection",
    "MemoryEngine",
    "Probe",
    "ProbeAnswer",
    "Read",
    "Refused",
    "Send",
    "Store",
    "Subscribe",
    "Subscribed",
    "Unsubscribe",
]

# Bytes that an answer counts for in a queue, besides those of its envelope.
ANSWER_CHARGE = 64


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Give the connection the envelopes of a channel. The answer has the number of the request."""

    channel: str
    request: int


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Give the connection no more envelopes of a channel."""

    channel: str


@dataclass(frozen=True, slots=True)
class Send:
    """Give an envelope to the other subscribers. Only one with the number of a request is answered."""

    channel: str
    envelope: bytes
    request: int | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """Store an envelope, and give it to all subscribers. Only one with the number of a request is answered."""

    channel: str
    envelope: bytes
    config: HistoryConfig
    idempotency_key: str = ""
    request: int | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """Answer with what is stored of a channel."""

    channel: str
    config: HistoryConfig
    query: HistoryQuery
    request: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Call a method of the hub's PresenceStore. The engine adds the time to those that take one."""

    method: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    request: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask for an answer, and which of these channels the connection has not subscribed to."""

    request: int
    channels: frozenset[str]


Command: TypeAlias = Subscribe | Unsubscribe | Send | Store | Read | Ask | Probe


@dataclass(frozen=True, slots=True)
class Arrived:
    """An envelope of a channel."""

    channel: str
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The answer to ``Subscribe``."""

    channel: str
    request: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The other answer to ``Subscribe``."""

    channel: str
    request: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to ``Send``, ``Store``, ``Read`` and ``Ask``."""

    request: int
    result: Any


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """The answer to ``Probe``."""

    request: int
    missing: frozenset[str]


Answer: TypeAlias = Arrived | Subscribed | Refused | Answered | ProbeAnswer


class EngineClient(Protocol):
    """The owner of a connection. Each method is called on the loop of the connection, from the loop."""

    def answers_arrived(self, connection: EngineConnection, answers: Sequence[tuple[int, Answer]]) -> None:
        """Take answers with their numbers. A number that is missing before one is that of an answer that was lost."""

    def connection_lost(self, connection: EngineConnection, reason: str) -> None:
        """Note that the engine has ended the connection. Everything that was under way is lost."""

    def can_send(self, connection: EngineConnection) -> None:
        """Note that the engine takes commands again."""


class EngineConnection:
    """A connection to a ``MemoryEngine``. All but ``client`` and ``loop`` belongs to the engine and its lock."""

    def __init__(self, engine: MemoryEngine, client: EngineClient, hub: str, loop: asyncio.AbstractEventLoop) -> None:
        self.client = client
        self.loop = loop
        self.hub = hub
        self.is_closed = False
        self.channels: set[str] = set()
        # Whether an envelope of this connection was lost before the engine took it.
        self.has_gap = False
        self.next_number = 0
        self.under_way: deque[tuple[float, int, Answer]] = deque()
        self.under_way_bytes = 0
        self._engine = engine
        self._is_woken = False
        self._timer: asyncio.TimerHandle | None = None

    def take(self, commands: Sequence[Command]) -> int:
        """Give commands to the engine. Return how many of them it has taken, from the first one on."""
        return self._engine.take(self, commands)

    def close(self) -> None:
        """End the connection. No method of the client is called after this. Call it on the loop, or when that ended."""
        self._engine.end(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def wake(self) -> None:
        """Have what is under way delivered in a later iteration of the loop. Any thread that has the lock calls it."""
        if not self._is_woken:
            self._is_woken = self.call_soon(self._deliver)

    def call_soon(self, function: object, *arguments: object) -> bool:
        """Call a function in a later iteration of the loop. Return False if the loop has closed."""
        try:
            self.loop.call_soon_threadsafe(function, *arguments)  # type: ignore[arg-type]
        except RuntimeError:
            return False
        return True

    def _deliver(self) -> None:
        """Give the client what is due."""
        with self._engine.lock:
            self._is_woken = False
            self._timer = None
            due = self._engine.pop_due(self)
            if self.under_way and not self.is_closed:
                self._is_woken = True
                self._timer = self.loop.call_later(max(0.0, self.under_way[0][0] - time.monotonic()), self._deliver)
        if due:
            self.client.answers_arrived(self, due)


class MemoryEngine:
    """Joins the hubs of one process whose brokers are ``MemoryBroker(engine)``.

    It is for tests of applications, and it shows what a broker owes to a hub. The hubs may have loops and threads of
    their own. An envelope arrives in a later iteration of the receiver's loop.

    Every fault lasts until ``heal()``, except for ``cut()``, ``drop_under_way()`` and ``forget()``, which happen once.
    A fault that names a broker applies to its later connections too. Any thread may cause and heal faults.

    Args:
        max_undelivered_bytes: bytes that may be under way to one broker. One that takes them too slowly is cut off.
    """

    def __init__(self, *, max_undelivered_bytes: int = 32 * 1024 * 1024) -> None:
        self.lock = threading.RLock()
        self._max_undelivered_bytes = max_undelivered_bytes
        self._connections: dict[EngineConnection, None] = {}
        self._subscribers: dict[tuple[str, str], dict[EngineConnection, None]] = {}
        # The patterns of each hub, by its name, and by channel.
        self._patterns: dict[str, dict[str, RoomPattern]] = {}
        # The histories of each hub, by its name.
        self._stores: dict[str, HistoryStore] = {}
        self._presences: dict[str, PresenceStore] = {}
        # Seconds that the engine's clock was set forward.
        self._skipped = 0.0
        self._lost: Counter[str] = Counter()
        self._is_running = True
        self._is_frozen = False
        self._pace: int | None = None
        self._delay = 0.0
        self._deaf: set[object] = set()
        self._muted: set[object] = set()
        self._refused: set[str] = set()

    @property
    def lost(self) -> dict[str, int]:
        """Envelopes that faults have lost, by fault. One that was under way to two brokers counts twice."""
        with self.lock:
            return dict(self._lost)

    def stop(self) -> None:
        """End all connections, and refuse new ones."""
        with self.lock:
            self._is_running = False
            for connection in list(self._connections):
                self._lose(connection, "stopped")

    def cut(self, broker: object) -> None:
        """End the broker's connection. It may connect again at once."""
        with self.lock:
            for connection in self._connections_of(broker):
                self._lose(connection, "cut")

    def freeze(self) -> None:
        """Take nothing from the brokers. Their connections stay open, and what is under way arrives."""
        with self.lock:
            self._is_frozen = True

    def slow_down(self, commands_per_iteration: int) -> None:
        """Take at most that many commands, such as envelopes, of a broker in one iteration of its loop.

        Raises:
            ValueError: the number is not positive. ``freeze()`` takes nothing at all.
        """
        if commands_per_iteration < 1:
            raise ValueError(f"commands_per_iteration must be at least 1, not {commands_per_iteration}")
        with self.lock:
            self._pace = commands_per_iteration

    def delay(self, seconds: float) -> None:
        """Deliver everything so many seconds later, in the same order."""
        with self.lock:
            self._delay = seconds

    def deafen(self, broker: object) -> None:
        """Lose everything that the engine sends to the broker. The connection stays open."""
        with self.lock:
            self._deaf.add(broker)

    def mute(self, broker: object) -> None:
        """Lose everything that the broker sends to the engine. The connection stays open."""
        with self.lock:
            self._muted.add(broker)

    def refuse(self, channel: str) -> None:
        """Refuse to subscribe anybody to the channel. Subscriptions that exist stay."""
        with self.lock:
            self._refused.add(channel)

    def forget(self, broker: object, channel: str) -> None:
        """Lose the broker's subscription to the channel, and say nothing."""
        with self.lock:
            for connection in self._connections_of(broker):
                self._unsubscribe(connection, channel)

    def skip(self, seconds: float) -> None:
        """Set the clock of the engine forward, by which nodes are dead."""
        with self.lock:
            self._skipped += seconds

    def lose_presences(self) -> None:
        """Lose all entries of members."""
        with self.lock:
            self._presences.clear()

    def lose_histories(self) -> None:
        """Lose all that is stored. Each channel begins a new epoch."""
        with self.lock:
            self._stores.clear()

    def drop_under_way(self) -> int:
        """Lose what is under way to all brokers. Return how many envelopes that were."""
        with self.lock:
            return sum(self._drop_under_way(connection, "dropped") for connection in self._connections)

    def heal(self) -> None:
        """End every fault."""
        with self.lock:
            self._is_running = True
            self._is_frozen = False
            self._pace = None
            self._delay = 0.0
            self._deaf.clear()
            self._muted.clear()
            self._refused.clear()
            for connection in list(self._connections):
                if not connection.call_soon(connection.client.can_send, connection):
                    self.end(connection)

    def connect(self, client: EngineClient, hub: str, loop: asyncio.AbstractEventLoop) -> EngineConnection:
        """Open a connection for a broker, whose loop that is.

        Raises:
            ConnectionRefusedError: the engine is stopped.
        """
        with self.lock:
            if not self._is_running:
                raise ConnectionRefusedError("the engine is stopped")
            connection = EngineConnection(self, client, hub, loop)
            self._connections[connection] = None
            return connection

    def take(self, connection: EngineConnection, commands: Sequence[Command]) -> int:
        """Carry out commands of a connection. Return how many were taken, from the first one on."""
        with self.lock:
            if connection.is_closed or self._is_frozen:
                return 0
            count = len(commands) if self._pace is None else min(self._pace, len(commands))
            for command, _ in zip(commands, range(count), strict=False):
                self._carry_out(connection, command)
            return count

    def end(self, connection: EngineConnection) -> None:
        """Forget a connection, and drop everything that is under way to it."""
        with self.lock:
            if connection.is_closed:
                return
            connection.is_closed = True
            self._connections.pop(connection, None)
            for channel in list(connection.channels):
                self._unsubscribe(connection, channel)
            connection.under_way.clear()
            connection.under_way_bytes = 0

    def pop_due(self, connection: EngineConnection) -> list[tuple[int, Answer]]:
        """Remove the answers whose time has come, and return them with their numbers."""
        now = time.monotonic()
        due = []
        while connection.under_way and connection.under_way[0][0] <= now:
            _, number, answer = connection.under_way.popleft()
            connection.under_way_bytes -= charge_of(answer)
            due.append((number, answer))
        return due

    def _connections_of(self, broker: object) -> list[EngineConnection]:
        return [connection for connection in self._connections if connection.client is broker]

    def _carry_out(self, connection: EngineConnection, command: Command) -> None:
        if connection.client in self._muted:
            if isinstance(command, Send | Store):
                connection.has_gap = True
                self._lost["muted"] += 1
            return
        if connection.has_gap:
            connection.has_gap = False
            self._tell_gap(connection)
        if isinstance(command, Send):
            self._send(connection, command)
        elif isinstance(command, Store):
            self._store(connection, command)
        elif isinstance(command, Read):
            self._read(connection, command)
        elif isinstance(command, Ask):
            self._ask(connection, command)
        elif isinstance(command, Subscribe):
            self._subscribe(connection, command)
        elif isinstance(command, Unsubscribe):
            self._unsubscribe(connection, command.channel)
        else:
            for channel in connection.channels - command.channels:
                self._unsubscribe(connection, channel)
            self._put(connection, ProbeAnswer(command.request, command.channels - connection.channels))

    def _tell_gap(self, sender: EngineConnection) -> None:
        """Have the other nodes of the hub find a number missing, because envelopes of the sender were lost."""
        for connection in self._connections:
            if connection.hub == sender.hub and connection is not sender:
                connection.next_number += 1

    def _send(self, sender: EngineConnection, command: Send) -> None:
        receivers = self._deliver(sender.hub, command.channel, command.envelope, but=sender)
        if command.request is not None:
            self._put(sender, Answered(command.request, Published(receivers=len(receivers))))

    def _deliver(
        self, hub: str, channel: str, envelope: bytes, *, but: EngineConnection | None = None
    ) -> set[EngineConnection]:
        """Have an envelope arrive at all who have subscribed to its channel or to a pattern. Return who they are."""
        receivers: set[EngineConnection] = set()
        for name in (channel, *matching_channels(self._patterns.get(hub, {}), channel)):
            # One that is too slow is cut off, and has subscribed to nothing then.
            for connection in tuple(self._subscribers.get((hub, name), ())):
                if connection is not but:
                    receivers.add(connection)
                    self._put(connection, Arrived(name, envelope))
        return receivers

    def _store(self, sender: EngineConnection, command: Store) -> None:
        store = self._stores.setdefault(sender.hub, HistoryStore())
        stored = store.store(
            command.channel, command.envelope, command.config, time.monotonic(), command.idempotency_key
        )
        position = stored.position
        receivers: set[EngineConnection] = set()
        if not stored.is_duplicate:
            envelope = encode_stored(
                command.envelope, offset=position.offset, previous=stored.previous, epoch=position.epoch
            )
            receivers = self._deliver(sender.hub, command.channel, envelope)
        if command.request is not None:
            published = Published(receivers=len(receivers), position=position, is_duplicate=stored.is_duplicate)
            self._put(sender, Answered(command.request, published))

    def _read(self, connection: EngineConnection, command: Read) -> None:
        store = self._stores.setdefault(connection.hub, HistoryStore())
        found = store.read(command.channel, command.config, command.query, time.monotonic())
        self._put(connection, Answered(command.request, found))

    def _ask(self, connection: EngineConnection, command: Ask) -> None:
        store = self._presences.setdefault(connection.hub, PresenceStore())
        arguments = command.arguments
        if command.method in ("enter", "beat", "take_over"):
            arguments += (time.monotonic() + self._skipped,)
        self._put(connection, Answered(command.request, getattr(store, command.method)(*arguments, **command.keywords)))

    def _subscribe(self, connection: EngineConnection, command: Subscribe) -> None:
        if command.channel in self._refused:
            self._put(connection, Refused(command.channel, command.request))
            return
        connection.channels.add(command.channel)
        self._subscribers.setdefault((connection.hub, command.channel), {})[connection] = None
        if command.channel.startswith(PATTERN_CHANNELS):
            self._patterns.setdefault(connection.hub, {})[command.channel] = pattern_of(command.channel)
        self._put(connection, Subscribed(command.channel, command.request))

    def _unsubscribe(self, connection: EngineConnection, channel: str) -> None:
        connection.channels.discard(channel)
        key = (connection.hub, channel)
        if (subscribers := self._subscribers.get(key)) is not None:
            subscribers.pop(connection, None)
            if not subscribers:
                del self._subscribers[key]
                self._patterns.get(connection.hub, {}).pop(channel, None)

    def _put(self, connection: EngineConnection, answer: Answer) -> None:
        """Send an answer on its way."""
        if connection.loop.is_closed():
            # The broker was not closed. Its connection ends here, because nobody takes the answers.
            self.end(connection)
        if connection.is_closed:
            return
        number = connection.next_number
        connection.next_number += 1
        if connection.client in self._deaf:
            self._lost["deaf"] += isinstance(answer, Arrived)
            return
        connection.under_way.append((time.monotonic() + self._delay, number, answer))
        connection.under_way_bytes += charge_of(answer)
        if connection.under_way_bytes > self._max_undelivered_bytes:
            self._lose(connection, "too slow")
        else:
            connection.wake()

    def _lose(self, connection: EngineConnection, reason: str) -> None:
        """End a connection, and tell its client."""
        self._drop_under_way(connection, reason)
        self.end(connection)
        connection.call_soon(connection.client.connection_lost, connection, reason)

    def _drop_under_way(self, connection: EngineConnection, reason: str) -> int:
        envelopes = sum(isinstance(answer, Arrived) for _, _, answer in connection.under_way)
        self._lost[reason] += envelopes
        connection.under_way.clear()
        connection.under_way_bytes = 0
        return envelopes


def charge_of(answer: Answer) -> int:
    """Return the bytes that an answer counts for."""
    return ANSWER_CHARGE + (len(answer.envelope) if isinstance(answer, Arrived) else 0)
