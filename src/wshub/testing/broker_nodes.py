"""The nodes of a check: each has a broker, what a hub would have, and a record of what the broker has called."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

from wshub.brokers.interface import ALL_NODES, Broker, NodeInfo, node_channel, pattern_channel
from wshub.links.link import LinkCounters
from wshub.links.reactor_api import Reactor
from wshub.links.reactors import create_reactor
from wshub.testing.broker_faults import BrokerFaults

__all__ = [
    "Interrupted",
    "Left",
    "MakeBroker",
    "Matched",
    "Node",
    "Nodes",
    "Received",
    "Restored",
    "Sent",
    "dropped_by",
    "raised_by",
    "require",
]

MakeBroker: TypeAlias = Callable[[], Broker]

Result = TypeVar("Result")

# Seconds between two calls of sweep(). A hub makes them at least once a second by its clock: MAX_RATE keeps to that.
SWEEP_INTERVAL = 0.05
MAX_RATE = 10.0

# Seconds of real time that the clock of a check counts between two sweeps at most.
LONGEST_STEP = 4 * SWEEP_INTERVAL

# Seconds that close() may take at least: it may use one of them to send what waits.
CLOSED_WITHIN = 3.0

# Seconds without any event after which the checks take it that nothing more arrives.
QUIET = 0.1


def require(holds: object, what: str) -> None:
    """Raise AssertionError unless the condition holds. ``assert`` would do nothing under ``python -O``."""
    if not holds:
        raise AssertionError(what)


@dataclass(frozen=True, slots=True)
class Received:
    """A call of ``BrokerEvents.receive``."""

    envelope: bytes


@dataclass(frozen=True, slots=True)
class Matched:
    """An envelope that has arrived by a pattern."""

    pattern: str
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A call of ``BrokerEvents.interrupted``."""

    channels: frozenset[str] | None
    reason: str
    affected: frozenset[str]
    """The channels of the node that it concerns."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A call of ``BrokerEvents.restored``."""

    channels: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Sent:
    """An envelope that ``send()`` has taken, or dropped."""

    channel: str
    number: int
    accepted: bool
    dropped: int
    """Envelopes that the broker had counted as dropped before."""


@dataclass(frozen=True, slots=True)
class Left:
    """A channel that the node has left: an interruption of it is of no interest any more."""

    channel: str


Event: TypeAlias = Received | Matched | Interrupted | Restored | Sent | Left


class Clock:
    """The clock of all nodes of a check. It can run faster than time does, so that nobody waits for time-outs.

    While the process stands still, the clock does too: what is late then is not the broker's fault.
    """

    def __init__(self) -> None:
        self._rate = 1.0
        self._reading = 1000.0
        self._read_at = time.monotonic()

    def __call__(self) -> float:
        now = time.monotonic()
        self._reading += min(now - self._read_at, LONGEST_STEP) * self._rate
        self._read_at = now
        return self._reading

    def run_at(self, rate: float) -> None:
        """Let so many seconds pass in a second."""
        self()
        self._rate = rate


class Recorder:
    """The hub's side of a broker: ``BrokerEvents`` that are written down."""

    def __init__(self, reactor: Reactor, clock: Clock) -> None:
        self.reactor = reactor
        self.log: list[Event] = []
        # Mistakes of the broker, each once.
        self.wrong: dict[str, None] = {}
        self.is_closed = False
        # The channels of the node, as its hub knows them.
        self.channels: set[str] = set()
        # The method of the broker that is being called, if it must not call back before it returns.
        self.calling: str | None = None
        self._clock = clock
        self._loop = asyncio.get_running_loop()

    def now(self) -> float:
        return self._clock()

    def receive(self, envelope: bytes) -> None:
        self._check_call("receive")
        if type(envelope) is not bytes:
            self.wrong[f"receive() was called with {type(envelope).__name__}, not bytes"] = None
        self.log.append(Received(bytes(envelope)))

    def receive_matching(self, pattern: str, envelope: bytes) -> None:
        self._check_call("the function of a pattern")
        self.log.append(Matched(pattern, bytes(envelope)))

    def interrupted(self, channels: Collection[str] | None, reason: str) -> None:
        self._check_call("interrupted")
        if not reason or not isinstance(reason, str):
            self.wrong[f"interrupted() was called with the reason {reason!r}"] = None
        concerned = self._checked(channels)
        affected = self.channels if concerned is None else self.channels & concerned
        self.log.append(Interrupted(concerned, reason, frozenset(affected)))

    def restored(self, channels: Collection[str] | None) -> None:
        self._check_call("restored")
        self.log.append(Restored(self._checked(channels)))

    def _checked(self, channels: Collection[str] | None) -> frozenset[str] | None:
        if isinstance(channels, str) or (channels is not None and not channels):
            self.wrong[f"{channels!r} is neither None nor a collection of channels"] = None
        return None if channels is None else frozenset(channels)

    def _check_call(self, name: str) -> None:
        if self.calling is not None:
            self.wrong[f"{name}() was called from within {self.calling}()"] = None
        if self.is_closed:
            self.wrong[f"{name}() was called after close() had returned"] = None
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not self._loop:
            self.wrong[f"{name}() was not called on the loop of the hub"] = None


class Node:
    """A broker with its recorder, and envelopes that say who sent them and which one each is."""

    def __init__(self, nodes: Nodes, broker: Broker, hub: str) -> None:
        self.nodes = nodes
        self.broker = broker
        self.info = NodeInfo(
            id=secrets.token_hex(8), hub=hub, host=socket.gethostname(), pid=os.getpid(), started_at=time.time()
        )
        reactor = create_reactor(asyncio.get_running_loop(), LinkCounters(), native=True, clock=nodes.clock)
        self.recorder = Recorder(reactor, nodes.clock)
        self.recorder.channels |= {ALL_NODES, self.own_channel}
        self.is_started = False
        self.next_number = 0
        """The number of the next envelope, unless it is given one."""

    @property
    def own_channel(self) -> str:
        """The channel that this node alone has subscribed to."""
        return node_channel(self.info.id)

    @property
    def log(self) -> list[Event]:
        """All that has happened, in order."""
        return self.recorder.log

    async def start(self) -> None:
        """Start the broker."""
        self.is_started = True
        await self.nodes.finish(self.broker.start(self.info, self.recorder), "start() returns")

    async def close(self) -> None:
        """Close the broker. Nothing may be called after that."""
        await self.nodes.finish(self.broker.close(), "close() returns", within=max(CLOSED_WITHIN, self.nodes.patience))
        self.recorder.is_closed = True
        self.is_started = False

    def subscribe(self, *channels: str) -> None:
        """Subscribe to channels, and return at once."""
        for channel in channels:
            self._call("subscribe", channel)
        self.recorder.channels.update(channels)

    def unsubscribe(self, *channels: str) -> None:
        """Leave channels, and return at once."""
        for channel in channels:
            self._call("unsubscribe", channel)
            self.recorder.channels.discard(channel)
            self.log.append(Left(channel))

    def subscribe_pattern(self, pattern: str) -> None:
        """Subscribe to a pattern, and return at once."""
        self._call("subscribe_pattern", pattern, partial(self.recorder.receive_matching, pattern))
        self.recorder.channels.add(pattern_channel(pattern))

    def unsubscribe_pattern(self, pattern: str) -> None:
        """Leave a pattern, and return at once."""
        self._call("unsubscribe_pattern", pattern)
        self.recorder.channels.discard(pattern_channel(pattern))
        self.log.append(Left(pattern_channel(pattern)))

    async def join(self, *channels: str) -> None:
        """Subscribe to channels, and return when envelopes of all of them arrive."""
        self.subscribe(*channels)
        for channel in channels:
            await self.nodes.finish(self.broker.subscribed(channel), "subscribed() returns")

    def send(self, channel: str, number: int | None = None, size: int = 0) -> bool:
        """Send an envelope with a number, by default the next one. Return whether the broker has taken it."""
        if number is None:
            number = self.next_number
            self.next_number += 1
        dropped = dropped_by(self.broker)
        accepted = self._call("send", channel, self.envelope(number, size))
        require(isinstance(accepted, bool), f"send() returned {accepted!r}: it returns True or False")
        self.log.append(Sent(channel, number, accepted, dropped))
        return bool(accepted)

    async def send_all(self, channel: str, numbers: Iterable[int], size: int = 0) -> None:
        """Send envelopes with these numbers, as fast as the broker takes them."""
        for number in numbers:
            deadline = time.monotonic() + self.nodes.patience
            while not self.send(channel, number, size):
                require(time.monotonic() < deadline, "send() takes envelopes again soon after others have left")
                await asyncio.sleep(0.001)
            if number % 100 == 99:
                await asyncio.sleep(0)

    async def publish(self, channel: str, number: int) -> int | None:
        """Publish an envelope with that number. Return the number of receivers that the broker has told."""
        dropped = dropped_by(self.broker)
        published = await self.nodes.finish(
            self.broker.publish(channel, self.envelope(number)), "publish() returns or raises"
        )
        self.log.append(Sent(channel, number, True, dropped))
        return published.receivers

    def envelope(self, number: int, size: int = 0) -> bytes:
        """Return an envelope of at least that many bytes."""
        return f"{self.info.id} {number} ".encode().ljust(size, b".")

    def numbers(self, sender: Node) -> list[int]:
        """Return the numbers of the sender's envelopes that this node has received, in order."""
        received = (event.envelope for event in self.log if isinstance(event, Received))
        return numbers_of(sender, received)

    def matched(self, sender: Node, pattern: str) -> list[int]:
        """Return the numbers of the sender's envelopes that have arrived by a pattern, in order."""
        arrived = (event.envelope for event in self.log if isinstance(event, Matched) and event.pattern == pattern)
        return numbers_of(sender, arrived)

    def envelopes(self) -> list[bytes]:
        """Return all envelopes that this node has received, in order, without its own."""
        own = self.info.id.encode() + b" "
        return [
            event.envelope for event in self.log if isinstance(event, Received) and not event.envelope.startswith(own)
        ]

    def interruptions(self) -> list[Interrupted]:
        """Return the calls of ``interrupted()``."""
        return [event for event in self.log if isinstance(event, Interrupted)]

    async def receives(self, sender: Node, count: int, what: str = "all envelopes arrive") -> list[int]:
        """Wait until so many envelopes of the sender have arrived. Return their numbers."""

        def text() -> str:
            return f"{what}: {len(self.numbers(sender))} of {count} have arrived"

        await self.nodes.until(lambda: len(self.numbers(sender)) >= count, text)
        return self.numbers(sender)

    async def receives_number(self, sender: Node, number: int, what: str) -> None:
        """Wait until the sender's envelope with that number has arrived."""
        await self.nodes.until(lambda: number in self.numbers(sender), what)

    async def interrupted_after(self, count: int) -> None:
        """Wait until there were more interruptions than so many."""
        await self.nodes.until(lambda: len(self.interruptions()) > count, "the hub is told of a lost connection")

    def _call(self, name: str, *arguments: object) -> Any:
        """Call a method that neither raises nor waits, nor calls back."""
        self.recorder.calling = name
        try:
            return getattr(self.broker, name)(*arguments)
        except Exception as error:
            raise AssertionError(f"{name}() raised {error!r}: it raises nothing") from error
        finally:
            self.recorder.calling = None


class Nodes:
    """All nodes of one check. Their hub has a name of its own, so that nothing of an earlier check arrives."""

    def __init__(self, make: MakeBroker, faults: BrokerFaults | None, *, patience: float) -> None:
        self.clock = Clock()
        self.patience = patience
        self.hub = "check-" + secrets.token_hex(4)
        self.all: list[Node] = []
        self.maker = make
        self._faults = faults
        self._sweep_error: Exception | None = None
        self._sweeper = asyncio.create_task(self._sweep())

    @property
    def faults(self) -> BrokerFaults:
        """The faults. The check has said which it needs, so they are offered."""
        if self._faults is None:
            raise AssertionError("a check that needs faults was run without")
        return self._faults

    def make(self, hub: str | None = None) -> Node:
        """Make a node that is not started yet."""
        node = Node(self, self.maker(), self.hub if hub is None else hub)
        self.all.append(node)
        return node

    async def start(self, *, hub: str | None = None) -> Node:
        """Make a node, and start it."""
        node = self.make(hub)
        await node.start()
        return node

    async def two(self, *channels: str) -> tuple[Node, Node]:
        """Start two nodes. The second one has subscribed to the channels."""
        first, second = await self.start(), await self.start()
        await second.join(*channels)
        return first, second

    async def finish(self, awaitable: Awaitable[Result], what: str, *, within: float | None = None) -> Result:
        """Wait for an awaitable, but not longer than patience lasts."""
        limit_seconds = self.patience if within is None else within
        try:
            async with asyncio.timeout(limit_seconds) as limit:
                return await awaitable
        except TimeoutError as error:
            require(not limit.expired(), f"{what}: it has not after {limit_seconds:g} s")
            raise AssertionError(f"{what}: it raised {error!r}") from error

    async def until(
        self,
        condition: Callable[[], object],
        what: str | Callable[[], str],
        *,
        within: float | None = None,
        rate: float = 1.0,
    ) -> None:
        """Wait until a condition holds.

        Args:
            condition: looked at every few milliseconds.
            what: what is expected, for the error.
            within: seconds by the clock of the nodes.
            rate: how fast that clock runs meanwhile.
        """
        limit = self.patience if within is None else within
        started = self.clock()
        self.clock.run_at(rate)
        try:
            while not condition():
                self.check_calls()
                if self.clock() - started > limit:
                    raise AssertionError(f"{what if isinstance(what, str) else what()}, within {limit:g} s")
                await asyncio.sleep(0.002)
        finally:
            self.clock.run_at(1.0)
        self.check_calls()

    async def pass_for(self, seconds: float, *, rate: float = MAX_RATE) -> None:
        """Let so many seconds pass by the clock of the nodes."""
        end = self.clock() + seconds
        await self.until(lambda: self.clock() >= end, "the clock runs", within=2 * seconds, rate=rate)

    async def quiet(self) -> None:
        """Wait until nothing has happened for a while."""
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < QUIET:
            events = sum(len(node.log) for node in self.all)
            if events != seen:
                seen, since = events, time.monotonic()
            await asyncio.sleep(0.005)
        self.check_calls()

    def check_calls(self) -> None:
        """Raise AssertionError if a broker has called its hub in a wrong way, or ``sweep()`` has raised."""
        for node in self.all:
            require(not node.recorder.wrong, "; ".join(node.recorder.wrong))
        if self._sweep_error is not None:
            raise AssertionError(f"sweep() raised {self._sweep_error!r}: it raises nothing") from self._sweep_error

    async def close(self) -> None:
        """Close all brokers, whatever has happened to them."""
        errors = []
        for node in self.all:
            try:
                await node.close()
            except Exception as error:
                errors.append(error)
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        for node in self.all:
            node.recorder.reactor.release()
        # The reactors have queued something for the loop.
        await asyncio.sleep(0)
        if errors:
            raise errors[0]
        self.check_calls()

    def abandon(self) -> None:
        """Leave everything as it is: the loop ends. Then end what the reactors have, as a hub does."""
        for node in self.all:
            node.recorder.reactor.close()

    async def _sweep(self) -> None:
        while True:
            for node in self.all:
                if node.is_started:
                    try:
                        node.broker.sweep(self.clock())
                    except Exception as error:
                        self._sweep_error = error
            await asyncio.sleep(SWEEP_INTERVAL)


def numbers_of(sender: Node, envelopes: Iterable[bytes]) -> list[int]:
    """Return the numbers of those envelopes that are the sender's."""
    prefix = sender.info.id.encode() + b" "
    return [int(envelope.split(b" ", 2)[1]) for envelope in envelopes if envelope.startswith(prefix)]


def dropped_by(broker: Broker) -> int:
    """Return the number of envelopes that a broker has counted as dropped."""
    return sum(broker.stats().dropped.values())


async def raised_by(call: Coroutine[Any, Any, Any]) -> Exception | None:
    """Return what a call has raised, or None."""
    try:
        await call
    except Exception as error:
        return error
    return None
