"""Learns from the nodes of a cluster which engine owns which slots."""

from __future__ import annotations

import asyncio
import logging
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wshub.brokers.reconnecting import backoff
from wshub.brokers.redis_asking import Asking, send_questions
from wshub.brokers.redis_commands import pack_command
from wshub.brokers.redis_connection import RedisConnection
from wshub.brokers.redis_partitions import ShardedNames, slot_of
from wshub.brokers.redis_sentinel import AddressRemap, remapped
from wshub.brokers.redis_url import ClusterAddress, RedisAddress
from wshub.errors import BrokerError, ConfigurationError

__all__ = ["Claim", "ClusterView", "Topology", "parse_view", "redirection"]

logger = logging.getLogger("wshub.broker")

# Seconds between two questions while all is well, and while something is not.
INTERVAL = 10.0
HURRIED_INTERVAL = 1.0

# Seconds that a node gets to answer.
ANSWER_SECONDS = 2.0

# The hash tag of the key that has the number of partitions, and the milliseconds for which it is kept.
SETTINGS_TAG = b"wshub"
SETTINGS_MILLISECONDS = 60_000

QUESTIONS = (pack_command(b"CLUSTER", b"SLOTS"), pack_command(b"CLUSTER", b"NODES"))


@dataclass(frozen=True, slots=True)
class Claim:
    """Slots that one engine owns, as a node sees it. Of two claims, the one with the higher epoch is right."""

    first: int
    last: int
    host: str
    port: int
    epoch: int
    replicas: tuple[tuple[str, int], ...] = ()


class ClusterView:
    """How one node sees the cluster."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        self.claims = sorted(claims, key=lambda claim: claim.first)
        self._firsts = [claim.first for claim in self.claims]

    def claim(self, slot: int) -> Claim | None:
        """Return the claim of a slot; None if no engine owns it."""
        index = bisect_right(self._firsts, slot) - 1
        if index < 0 or self.claims[index].last < slot:
            return None
        return self.claims[index]


def parse_view(slots: Any, nodes: Any, asked: RedisAddress, remap: AddressRemap | None) -> ClusterView:
    """Return what CLUSTER SLOTS and CLUSTER NODES have answered. Only the first has addresses, only the other epochs.

    Raises:
        OSError: they are not what a node answers.
    """
    if isinstance(slots, BrokerError) or isinstance(nodes, BrokerError):
        raise ConnectionError(f"the engine refuses to tell the slots: {slots if slots is not nodes else nodes}")
    try:
        epochs = {}
        for line in nodes.splitlines():
            fields = line.removeprefix(b"txt:").split()
            epochs[fields[0]] = int(fields[6])
        claims = []
        for first, last, *places in slots:
            primary, *replicas = [remapped(remap, read_host(place[0], asked), place[1]) for place in places]
            claims.append(Claim(first, last, *primary, epochs.get(places[0][2], 0), tuple(replicas)))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ConnectionError(f"the slots of the cluster cannot be read: {error!r}") from error
    return ClusterView(claims)


def read_host(host: bytes | None, asked: RedisAddress) -> str:
    """Return the host of a node. One that does not know its own has the address at which it was asked."""
    return asked.host if host in (None, b"", b"?") else host.decode()


def redirection(text: str, asked: RedisAddress, remap: AddressRemap | None) -> tuple[int, str, int] | None:
    """Return the slot, the host and the port of an error ``MOVED SLOT HOST:PORT``; None if it is another one."""
    words = text.split()
    if len(words) != 3:
        return None
    host, _, port = words[2].rpartition(":")
    if not (words[1].isdigit() and port.isdigit()):
        return None
    if not host or host == "?":
        # The same host, which is known by the name under which this machine reaches it.
        return int(words[1]), asked.host, int(port)
    return int(words[1]), *remapped(remap, host, int(port))


class Topology:
    """Asks nodes of the cluster for the slots: at the start, every few seconds, and when something is wrong.

    Each question goes to another node: one that is cut off from the others has an old view. Without an open connection,
    the nodes that are known are asked in turn, each over a new connection. If none has answered, the next round waits,
    as the attempts of connections do.

    Args:
        address: the nodes that the URL names, and the number of partitions.
        asking: how nodes are asked that there is no connection to.
        names: of channels and keys.
        connections: returns the open connections, with the addresses of their engines.
        found: called with each view, and with the address of the node that has told it.
        failed: called with a ConfigurationError that keeps the first view from being found. No more is asked then.
        remap: see ``RedisBroker``.
        now: returns the time in seconds, by the clock of ``sweep()``.
    """

    def __init__(
        self,
        address: ClusterAddress,
        asking: Asking,
        names: ShardedNames,
        connections: Callable[[], list[tuple[RedisAddress, RedisConnection]]],
        found: Callable[[ClusterView, RedisAddress], None],
        failed: Callable[[ConfigurationError], None],
        remap: AddressRemap | None,
        now: Callable[[], float],
    ) -> None:
        self.reason = "the nodes of the cluster were not asked yet"
        """Why there is no view."""
        self.mismatch = ""
        """How the number of partitions differs from that of other nodes; empty if it does not."""
        self._address = address
        self._asking = asking
        self._connections = connections
        self._found = found
        self._failed = failed
        self._remap = remap
        self._now = now
        self._partitions = b"%d" % address.partitions
        self._key = names.tagged_key(SETTINGS_TAG, "partitions")
        self._may_check = True
        self._is_known = False
        self._is_failure_logged = False
        self._seeds = list(address.seeds)
        self._last_asked: RedisAddress | None = None
        self._next_at = 0.0
        self._hurry = True
        # Whether no connection is open since the last question, and how many rounds without one have failed.
        self._asks_seeds = False
        self._failed_rounds = 0
        self._rests_until = 0.0
        self._due = asyncio.Event()
        self._due.set()
        self._task = asyncio.get_running_loop().create_task(self._ask_always())

    def ask_soon(self) -> None:
        """Ask again soon: something is wrong."""
        self._hurry = True

    def connection_opened(self) -> None:
        """Wait no more before the next question: there is a connection that it can go over."""
        self._asks_seeds = False
        self._rests_until = 0.0

    def sweep(self, now: float) -> None:
        """Ask, if it is time."""
        if self._hurry:
            self._hurry = False
            self._next_at = min(self._next_at, now + HURRIED_INTERVAL * random.uniform(0.3, 1))
        if now >= self._next_at and now >= self._rests_until:
            self._next_at = now + INTERVAL * random.uniform(0.8, 1.2)
            self._due.set()

    async def close(self) -> None:
        """Ask no more."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _ask_always(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self._ask_some_node()
            except ConfigurationError as error:
                if not self._is_known:
                    return self._failed(error)
                self._note_failure(str(error))
            except OSError as error:
                self._note_failure(str(error) or type(error).__name__)
            except Exception as error:
                logger.exception("the slots of the cluster could not be learned")
                self._note_failure(repr(error))

    def _note_failure(self, reason: str) -> None:
        self.reason = reason
        self._hurry = True
        if self._asks_seeds:
            self._rests_until = self._now() + backoff(self._failed_rounds)
            self._failed_rounds = min(self._failed_rounds + 1, 10)
            # A question that came due during the round waits as well.
            self._due.clear()
        if not self._is_failure_logged and not self._is_known:
            self._is_failure_logged = True
            logger.warning("no node of the cluster at %s has told its slots: %s", self._address, reason)

    async def _ask_some_node(self) -> None:
        open_connections = self._connections()
        others = [each for each in open_connections if each[0] != self._last_asked] or open_connections
        self._asks_seeds = not others
        if others:
            asked, connection = random.choice(others)
            self._last_asked = asked
            async with asyncio.timeout(ANSWER_SECONDS):
                answers = await send_questions(connection, QUESTIONS)
        else:
            asked, answers = await self._ask_seeds()
        slots, nodes = answers
        view = parse_view(slots, nodes, asked, self._remap)
        if not view.claims:
            raise ConnectionError(f"the node at {asked} knows of no slots")
        if self._may_check:
            await self._check_partitions(view, open_connections)
        self._is_known = True
        self._is_failure_logged = False
        self._failed_rounds = 0
        template = self._address.seeds[0]
        told = (template.at(claim.host, claim.port) for claim in view.claims)
        self._seeds = list(dict.fromkeys((*self._address.seeds, *told)))
        self._found(view, asked)

    async def _ask_seeds(self) -> tuple[RedisAddress, list[Any]]:
        failure: Exception | None = None
        for seed in random.sample(self._seeds, len(self._seeds)):
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    return seed, await self._asking.ask(seed, "cluster", QUESTIONS)
            except (OSError, ConfigurationError) as error:
                # A node that cannot be reached says nothing about the configuration.
                if failure is None or isinstance(failure, ConfigurationError):
                    failure = error
        raise failure or ConnectionError("there is no node to ask")

    async def _check_partitions(
        self, view: ClusterView, connections: list[tuple[RedisAddress, RedisConnection]]
    ) -> None:
        """Compare the number of partitions with that of the other nodes. The first one writes it down for a minute.

        Raises:
            ConfigurationError: they have another number, and this node has not started.
        """
        claim = view.claim(slot_of(SETTINGS_TAG))
        if claim is None:
            return
        questions = (
            pack_command(b"SET", self._key, self._partitions, b"NX", b"PX", b"%d" % SETTINGS_MILLISECONDS),
            pack_command(b"GETEX", self._key, b"PX", b"%d" % SETTINGS_MILLISECONDS),
        )
        address = self._address.seeds[0].at(claim.host, claim.port)
        open_one = next((connection for place, connection in connections if place == address), None)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if open_one is not None:
                    written, found = await send_questions(open_one, questions)
                else:
                    written, found = await self._asking.ask(address, "cluster", questions)
        except OSError:
            return
        for reply in (written, found):
            if isinstance(reply, BrokerError):
                if str(reply).startswith("NOPERM"):
                    self._may_check = False
                    logger.info("the number of partitions is not compared with that of other nodes: %s", reply)
                return
        self._compare(found)

    def _compare(self, found: Any) -> None:
        if not isinstance(found, bytes) or found == self._partitions:
            self.mismatch = ""
            return
        mismatch = (
            f"other nodes of the hub use partitions={found.decode(errors='replace')}, and this one "
            f"partitions={self._partitions.decode()}: give all of them the same URL"
        )
        if not self._is_known:
            raise ConfigurationError(mismatch)
        if not self.mismatch:
            logger.error("%s", mismatch)
        self.mismatch = mismatch
