"""The channel layer: what Channels and its consumers call."""

from __future__ import annotations

import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

try:
    from channels.exceptions import ChannelFull, MessageTooLarge
    from channels.layers import BaseChannelLayer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"a channel layer needs Channels: pip install channels ({error})") from error

from wshub.brokers.choosing import NO_BROKER, broker_from_url, broker_url_of_environment
from wshub.brokers.interface import Broker, NodeInfo
from wshub.django.exchange import Exchange
from wshub.django.groups import Groups
from wshub.django.mailboxes import Mailboxes
from wshub.django.messages import decode_message, encode_message
from wshub.django.stats import ChannelLayerStats
from wshub.errors import ConfigurationError, MisuseError
from wshub.protocol.validation import check_integer, check_str
from wshub.publisher.forks import fork_count

__all__ = ["ChannelLayer"]

NODE_DIGITS = 16
HEXADECIMAL = frozenset("0123456789abcdef")

NewBroker: TypeAlias = Callable[[], Broker]


class ChannelLayer(BaseChannelLayer):  # type: ignore[misc]
    """A channel layer for Django Channels over one of wshub's brokers.

    Each process holds the messages and the groups of its own consumers. The broker carries messages between processes,
    and stores nothing.

    Any event loop and any thread may use it: ``async_to_sync(layer.group_send)(...)`` works in views, tasks and cron
    jobs. One connection to the broker serves the whole process. A process that was forked connects anew.

    Args:
        broker: a URL such as ``"redis://localhost"``, ``"workers:DIRECTORY"``, or ``"none"`` for a single process; or a
            function that returns a new broker. If not given, the environment names it: ``WSHUB_BROKER``, or
            ``wshub serve --workers``. Without either, the layer joins no other process.
        name: of the layer. Layers of one name and one broker belong together.
        expiry: seconds after which a message that was not read is dropped.
        group_expiry: seconds after which a channel leaves a group, unless it was added again.
        capacity: the number of messages that may wait in a channel.
        channel_capacity: another capacity for the channels whose names match a glob pattern, or a compiled regular
            expression. The first pattern that matches counts.
        max_message_size: bytes of the largest message, as JSON.

    Raises:
        ConfigurationError: an argument is not valid.
    """

    extensions: ClassVar[list[str]] = ["groups", "flush"]
    """The optional parts of the specification that it has."""

    ChannelFull = ChannelFull
    """The exception of ``send`` for a channel that is full."""

    MessageTooLarge = MessageTooLarge
    """The exception of ``send`` and ``group_send`` for a message of too many bytes."""

    def __init__(
        self,
        broker: str | NewBroker | None = None,
        *,
        name: str = "default",
        expiry: float = 60,
        group_expiry: float = 86_400,
        capacity: int = 100,
        channel_capacity: Mapping[Any, int] | None = None,
        max_message_size: int = 4 << 20,
    ) -> None:
        capacity = check_integer("capacity", capacity, 1, 1 << 31)
        capacities = _check_capacities(channel_capacity)
        super().__init__(expiry=_check_seconds("expiry", expiry), capacity=capacity)
        self.group_expiry = _check_seconds("group_expiry", group_expiry)
        self.channel_capacity = self.compile_capacities(capacities)
        self._name = check_str("name", name)
        self._max_message_size = check_integer("max_message_size", max_message_size, 1, 15 << 20)
        self._new_broker, self._place = _broker_factory(broker)
        # One state for each process, by the number of forks that led to it. A child never uses that of its parent, and
        # keeps it, so that nothing there is closed.
        self._processes: dict[int, _Process] = {}

    def __repr__(self) -> str:
        return f"<ChannelLayer {self._name!r} {self._place}>"

    # Channels

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send a message to a channel.

        A channel that ``new_channel`` has named belongs to one process. Any other channel may be read by several
        processes, and one of them gets the message. If nothing reads it yet, the message waits in this process.

        Raises:
            ChannelFull: too many messages wait in the channel.
            MessageTooLarge: the message has more than ``max_message_size`` bytes.
            BrokerUnavailable: another process was to get it, and the broker has no connection.
            BrokerUncertain: the answer was lost, so it may have arrived.
            MisuseError: it is the name of a process-specific channel that no layer has made.
            TypeError: the name or the message is not valid.
        """
        self.require_valid_channel_name(channel)
        payload = self._encode(message)
        process = self._process()
        if "!" in channel:
            await self._send_to_process(process, channel, payload)
            return
        if process.exchange is not None and not process.mailboxes.is_read(channel):
            outcome = await process.exchange.run(process.exchange.send_to_reader(channel, payload))
            if outcome == "taken":
                return
            if outcome == "full":
                raise ChannelFull(channel)
        if not process.mailboxes.put(channel, payload):
            raise ChannelFull(channel)

    async def _send_to_process(self, process: _Process, channel: str, payload: bytes) -> None:
        node = _node_of(channel)
        if node == process.node.id:
            if not process.mailboxes.put(channel, payload):
                raise ChannelFull(channel)
        elif process.exchange is None:
            # The process that has made it has ended: there was one process at a time.
            process.unreachable += 1
        elif await process.exchange.run(process.exchange.send_to_channel(node, channel, payload)) == "full":
            raise ChannelFull(channel)

    async def receive(self, channel: str) -> dict[str, Any]:
        """Return the next message of a channel. A call that is cancelled takes none.

        Raises:
            MisuseError: the channel belongs to another process.
            TypeError: the name is not valid.
        """
        process = self._process()
        # Consumers call it for each message, with a name that new_channel() has made.
        if not isinstance(channel, str) or process.own_mark not in channel:
            self.require_valid_channel_name(channel)
            if "!" in channel and _node_of(channel) != process.node.id:
                raise MisuseError(
                    f"the channel {channel!r} belongs to another process: receive() of its layer reads it"
                )
            if process.exchange is not None and not process.mailboxes.is_read(channel):
                await process.exchange.run(process.exchange.read(channel))
        return decode_message(await process.mailboxes.get(channel))

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a new channel that this process reads.

        Args:
            prefix: the beginning of the name.

        Raises:
            TypeError: the prefix has characters that no name may have, or is too long.
            ConfigurationError: the broker cannot work, such as with a wrong password.
        """
        process = self._process()
        channel = f"{prefix}.{process.node.id}!{uuid.uuid4().hex}"
        self.require_valid_channel_name(channel)
        if process.exchange is not None and not process.has_connected:
            # Other processes can send to it as soon as they have the name.
            await process.exchange.run(process.exchange.connect())
            process.has_connected = True
        return channel

    # Groups

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group, and return when messages to the group arrive.

        While the broker has no connection it returns at once: messages of other processes arrive once there is one.
        Add a channel that several processes read in the process that is to read the messages.

        Raises:
            BrokerUnavailable, BrokerUncertain: the channel belongs to another process, which was not told.
            ConfigurationError: the broker cannot work.
            MisuseError: it is the name of a process-specific channel that no layer has made.
            TypeError: a name is not valid.
        """
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        process = self._process()
        exchange = process.exchange
        node = _node_of(channel) if "!" in channel else process.node.id
        if node != process.node.id:
            if exchange is not None:
                await exchange.run(exchange.change_group(node, "add", group, channel))
        elif not process.groups.add(group, channel) and exchange is not None:
            await exchange.run(exchange.subscribe_to_group(group))

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group, if it is there.

        Raises:
            BrokerUnavailable, BrokerUncertain, ConfigurationError, MisuseError, TypeError: as ``group_add``.
        """
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        process = self._process()
        exchange = process.exchange
        node = _node_of(channel) if "!" in channel else process.node.id
        if node == process.node.id:
            process.groups.discard(group, channel)
        elif exchange is not None:
            await exchange.run(exchange.change_group(node, "discard", group, channel))

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send a message to all channels of a group, and return when the broker has it.

        The channels of this process get it at once, also if it raises. A channel that is full does not get it, which
        is counted.

        Raises:
            MessageTooLarge: the message has more than ``max_message_size`` bytes.
            BrokerUnavailable: no other process gets it: the broker has no connection.
            BrokerUncertain: the answer was lost, so other processes may get it.
            ConfigurationError: the broker cannot work.
            TypeError: the name or the message is not valid.
        """
        self.require_valid_group_name(group)
        payload = self._encode(message)
        process = self._process()
        process.groups.put(group, payload)
        if process.exchange is not None:
            await process.exchange.run(process.exchange.send_to_group(group, payload))

    # The end

    async def flush(self) -> None:
        """Forget all messages and all groups, in every process, and return when each has done so.

        Raises:
            BrokerUnavailable: the other processes were not told.
            BrokerUncertain: some of them have not answered.
            ConfigurationError: the broker cannot work.
        """
        process = self._process()
        process.groups.clear()
        if process.exchange is not None:
            await process.exchange.run(process.exchange.flush())

    async def close(self) -> None:
        """Leave the broker, and end the thread of this process. The next call connects again.

        A program need not call it: the layer leaves when nothing refers to it, and when the program ends.
        """
        process = self._process()
        with process.lock:
            exchange = process.exchange
            if exchange is not None:
                process.exchange = self._new_exchange(process)
                process.has_connected = False
        if exchange is not None:
            await exchange.close()

    def stats(self) -> ChannelLayerStats:
        """Return the counts of this process."""
        process = self._process()
        mailboxes, exchange = process.mailboxes, process.exchange
        broker = exchange.stats() if exchange is not None else None
        return ChannelLayerStats(
            queued=mailboxes.queued,
            full=mailboxes.full,
            expired=mailboxes.expired,
            unreachable=process.unreachable + (exchange.unreachable if exchange is not None else 0),
            unreadable=exchange.unreadable if exchange is not None else 0,
            waiting=mailboxes.waiting,
            groups=process.groups.count,
            broker=broker[0] if broker is not None else None,
            health=broker[1] if broker is not None else None,
        )

    # Inside

    def _encode(self, message: dict[str, Any]) -> bytes:
        payload = encode_message(message)
        if len(payload) > self._max_message_size:
            raise MessageTooLarge(
                f"the message has {len(payload)} bytes, and max_message_size is {self._max_message_size}"
            )
        return payload

    def _process(self) -> _Process:
        """Return the state of this process, and drop what has expired."""
        forks = fork_count()
        process = self._processes.get(forks)
        if process is None:
            process = self._new_process(forks)
        process.groups.expire(time.monotonic())
        return process

    def _new_process(self, forks: int) -> _Process:
        process = _Process(self)
        if self._new_broker is not None:
            process.exchange = self._new_exchange(process)
        # setdefault() is atomic: two threads get the same one.
        return self._processes.setdefault(forks, process)

    def _new_exchange(self, process: _Process) -> Exchange:
        assert self._new_broker is not None
        exchange = Exchange(self._new_broker, process.node, process.mailboxes, process.groups)
        # The end of the interpreter ends it too, and waits a moment.
        weakref.finalize(self, exchange.end_soon).atexit = False
        return exchange


class _Process:
    """The state of a layer in one process.

    Args:
        layer: is not kept, so that it can be collected.
    """

    def __init__(self, layer: ChannelLayer) -> None:
        patterns: list[tuple[Any, int]] = layer.channel_capacity
        capacity: int = layer.capacity

        def capacity_of(channel: str) -> int:
            return next((limit for pattern, limit in patterns if pattern.match(channel)), capacity)

        lock = threading.Lock()
        # Guards the change of the exchange.
        self.lock = threading.Lock()
        self.node = NodeInfo.of_this_process(f"channels:{layer._name}")
        # The names of this process's channels have it in common.
        self.own_mark = f".{self.node.id}!"
        self.mailboxes = Mailboxes(lock, capacity_of, layer.expiry)
        self.groups = Groups(lock, self.mailboxes, layer.group_expiry, layer.expiry)
        self.exchange: Exchange | None = None
        self.has_connected = False
        self.unreachable = 0


def _node_of(channel: str) -> str:
    """Return the id of the process that reads a process-specific channel."""
    head, _, local = channel.partition("!")
    node = head.rpartition(".")[2]
    if len(node) != NODE_DIGITS or not HEXADECIMAL.issuperset(node) or not local:
        raise MisuseError(
            f"{channel!r} is no name that new_channel() has returned: only these may have an exclamation mark"
        )
    return node


def _broker_factory(broker: str | NewBroker | None) -> tuple[NewBroker | None, str]:
    """Return what makes the broker, and a text that tells the broker without its password."""
    if callable(broker):
        return broker, f"over {broker!r}"
    if broker is not None and not isinstance(broker, str):
        raise ConfigurationError(f"broker must be a URL, or a function that returns a broker, not {broker!r}")
    url = broker if broker is not None else broker_url_of_environment()
    if url is None or url == NO_BROKER:
        return None, "alone"

    def new_broker() -> Broker:
        made = broker_from_url(url)
        assert made is not None
        return made

    # A URL that names no broker is refused here rather than at the first message.
    return new_broker, f"over {new_broker()!r}"


def _check_seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigurationError(f"{name} must be a number of seconds above 0, not {value!r}")
    return value


def _check_capacities(capacities: Mapping[Any, int] | None) -> dict[Any, int]:
    if capacities is not None and not isinstance(capacities, Mapping):
        raise ConfigurationError(f"channel_capacity must be a dict of patterns and numbers, not {capacities!r}")
    return {
        pattern: check_integer(f"channel_capacity[{pattern!r}]", capacity, 1, 1 << 31)
        for pattern, capacity in (capacities or {}).items()
    }
