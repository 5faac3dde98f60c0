"""The connections between a worker and the others: how they meet, agree on one connection for each pair, and part."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Container

from wshub.brokers.interface import ALL_NODES, BrokerEvents, NodeInfo, node_channel
from wshub.brokers.workers_barriers import Barriers
from wshub.brokers.workers_directory import SocketDirectory, is_same_user
from wshub.brokers.workers_doorway import Doorway
from wshub.brokers.workers_hello import VERSION, Hello
from wshub.brokers.workers_histories import Histories
from wshub.brokers.workers_losses import Losses
from wshub.brokers.workers_mesh import Mesh
from wshub.brokers.workers_patterns import Patterns
from wshub.brokers.workers_peer import Peer
from wshub.brokers.workers_presences import Presences

__all__ = ["WorkersSession"]

logger = logging.getLogger("wshub.broker")

MAX_STRANGERS = 256
"""Accepted connections without a HELLO. One more ends the oldest."""

START_SECONDS = 2.0
"""Seconds that ``start()``, or a wait for a subscription, waits for a worker that does not answer HELLO."""

CLOSE_SECONDS = 1.0
LEAVE_SECONDS = 2.0
"""Seconds in which presences are handed over to the workers that stay."""

AGAIN_SECONDS = 0.01
"""Seconds between two looks at the nodes that were lost, while this one closes."""

PROBE_SECONDS = 2.0
LOOK_SECONDS = 0.5
"""Seconds between two looks into the directory, at least. Some hubs sweep more often."""

SILENT_SECONDS = 8.0
"""A peer that has sent nothing for so long is ended: its loop hangs, since it sends a PING every two seconds."""

LONGEST_STEP = 2.0
"""Seconds between two sweeps that count as silence of a peer. More means that this loop has not run."""


class WorkersSession:
    """The time from ``start()`` to ``close()``.

    Two workers may connect to each other at the same time. Then a worker gets the HELLO of a node while its own HELLO
    to that node was not answered yet. Both keep the connection that the node with the smaller id has made. They close
    the other one before either has answered there, so nothing is lost with it.

    Args:
        loop: the running loop.
        node: this node.
        events: what the hub is told.
        directory: where workers find one another.
        patterns: take the envelopes of the patterns that the node has subscribed to.
        max_pending: bytes that may wait for each peer.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node: NodeInfo,
        events: BrokerEvents,
        directory: SocketDirectory,
        patterns: Patterns,
        max_pending: int,
    ) -> None:
        self.loop = loop
        self.node = node
        self.directory = directory
        self.mesh = Mesh(loop, events, max_pending)
        self.losses = Losses(events)
        self.barriers = Barriers(loop, self._send_barrier)
        self.histories = Histories(loop, node, events, self.mesh, patterns, max_pending, self.barriers.wait)
        self.presences = Presences(loop, node, events, max_pending, SILENT_SECONDS, self.barriers.wait)
        self.has_started = False
        self._events = events
        self._patterns = patterns
        self._reactor = events.reactor
        self._doorway = Doorway(loop, events.reactor, directory, self.mesh.link_counters, self._accepted)
        self._is_leaving = False
        self._closed = False
        # Every connection, until peer_lost().
        self._connections: set[Peer] = set()
        # By the id of the node: connections that are up.
        self._peers: dict[str, Peer] = {}
        # Connections that this node has made, and that were not answered yet.
        self._connecting: dict[str, Peer] = {}
        # Connections that wait until a former one of the same node has been read to its end.
        self._held: dict[str, Peer] = {}
        # Accepted connections without a HELLO, the oldest first.
        self._strangers: dict[Peer, None] = {}
        # Nodes with which this one has no common language.
        self._ignored: set[str] = set()
        # Log lines that were written already, by event and node.
        self._logged: set[tuple[str, str]] = set()
        self._awaited: set[str] = set()
        self._all_answered: asyncio.Future[None] | None = None
        self._all_gone: asyncio.Future[None] | None = None
        self._serial = 0
        self._number = 0
        self._swept_at: float | None = None
        self._probed_at: float | None = None
        self._looked_at: float | None = None

    # Beginning and end

    async def start(self) -> None:
        """Listen, and connect to the workers that are there. Return when each knows this node, or after two seconds."""
        self._reactor.retain()
        self._look_around()
        self._awaited = set(self._connecting)
        if self._awaited:
            self._all_answered = self.loop.create_future()
            await asyncio.wait([self._all_answered], timeout=START_SECONDS)
            self._all_answered = None
        self.has_started = True
        if not self._closed:
            self.histories.started()
            self.presences.started()

    async def joined(self) -> None:
        """Return when the others know what this node takes part in, or after two seconds."""
        await asyncio.gather(self.histories.met(), self.presences.met())

    async def close(self) -> None:
        """Hand over what this node keeps, say GOODBYE, send what waits for a second, and end all connections."""
        if self._closed or self._is_leaving:
            return
        self._is_leaving = True
        try:
            if self.has_started:
                if self.presences.takes_part:
                    await self._meet_again()
                await self.presences.hand_over(LEAVE_SECONDS)
                await self.histories.leave(CLOSE_SECONDS)
        finally:
            await self._end()

    async def _meet_again(self) -> None:
        """Connect to nodes that were lost, within a second: they do not know what has changed here since.

        Otherwise users who have left meanwhile would leave again, and new ones would join again.
        """
        deadline = self.loop.time() + CLOSE_SECONDS
        while self.losses.nodes and self.loop.time() < deadline:
            self._look_around()
            await asyncio.sleep(AGAIN_SECONDS)

    async def _end(self) -> None:
        self._closed = True
        self.histories.close()
        self.presences.close()
        self.mesh.close()
        self.losses.close()
        self._doorway.close()
        self.barriers.close()
        if self._all_answered is not None and not self._all_answered.done():
            self._all_answered.set_result(None)
        for peer in tuple(self._connections):
            if peer.is_up:
                peer.leave()
            else:
                peer.end()
        await self._connections_end()
        for peer in tuple(self._connections):
            peer.end()
        await self._connections_end()
        self._reactor.release()

    async def _connections_end(self) -> None:
        """Wait until every connection has ended, for a second at most."""
        if self._connections:
            self._all_gone = self.loop.create_future()
            await asyncio.wait([self._all_gone], timeout=CLOSE_SECONDS)
        await self._doorway.wait_opened(CLOSE_SECONDS)

    def abandon(self) -> None:
        """Give up what this node has although its loop was closed: the socket, and the connections if that works."""
        self._closed = True
        self.histories.abandon()
        self.presences.abandon()
        self.mesh.close()
        self.losses.close()
        self._doorway.close()
        if self._reactor.adopts:
            for peer in tuple(self._connections):
                peer.end()
        self._connections.clear()

    # Making connections

    def _look_around(self) -> None:
        """Connect to each worker in the directory to which there is no connection."""
        problem = self._doorway.listen()
        if problem is not None:
            self._log_once("listen", "", "this worker cannot listen for others in %s: %s", self.directory.path, problem)
        try:
            others = self.directory.others()
        except OSError as error:
            self._log_once("directory", "", "the directory of the workers cannot be read: %s", error)
            return
        for node_id, name in others.items():
            if node_id not in self._peers and node_id not in self._connecting and node_id not in self._ignored:
                self._connect(node_id, name)
        for node_id in self.losses.nodes - others.keys():
            self._gone(node_id)
        self._forget_all_but(others)
        for node_id in self._awaited | self.barriers.awaited:
            if node_id not in self._peers and node_id not in self._connecting:
                self._release_waits(node_id)

    def _forget_all_but(self, others: Container[str]) -> None:
        """Keep no facts about nodes that have ended."""
        self._ignored = {node_id for node_id in self._ignored if node_id in others}
        self._logged = {(event, node_id) for event, node_id in self._logged if not node_id or node_id in others}

    def _connect(self, node_id: str, name: str) -> None:
        try:
            connected = self.directory.connect(name)
        except OSError as error:
            # The other has accepted too little lately (EAGAIN), or this process has no descriptors left.
            self._log_once("connect", node_id, "worker %s cannot be reached: %s", node_id, error)
            return
        if connected is None:
            self._gone(node_id)
            return
        if not is_same_user(connected):
            connected.close()
            self._ignored.add(node_id)
            logger.warning("a socket in the directory of the workers belongs to another user: it is ignored")
            return
        peer = self.mesh.new_peer(self, initiated=True)
        peer.node_id = node_id
        self._connecting[node_id] = peer
        self._open(peer, connected)

    def _accepted(self, connected: socket.socket) -> None:
        if len(self._strangers) >= MAX_STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.end()
        peer = self.mesh.new_peer(self, initiated=False)
        self._strangers[peer] = None
        self._open(peer, connected)

    def _open(self, peer: Peer, connected: socket.socket) -> None:
        self._connections.add(peer)
        self._doorway.open(peer, connected, self._opened)

    def _opened(self, peer: Peer) -> None:
        if peer.initiated:
            peer.say_hello(self._hello())

    def _hello(self) -> bytes:
        self._serial += 1
        return Hello(self.node, self._serial).encode()

    # What peers say

    def hello_received(self, peer: Peer, body: bytes) -> None:
        """Answer HELLO, unless another connection of the same pair is kept. Raises ValueError if it is malformed."""
        peer.hello = hello = Hello.decode(body)
        node = hello.node
        if node.id == self.node.id or (peer.initiated and node.id != peer.node_id):
            raise ValueError(f"a HELLO with the wrong id, {node.id}")
        peer.node_id, peer.node = node.id, node
        self._strangers.pop(peer, None)
        if hello.version != VERSION or node.hub != self.node.hub:
            self._ignore(peer)
        elif peer.initiated:
            self._connecting.pop(node.id, None)
            self._up(peer)
        else:
            self._keep_one(peer)

    def _ignore(self, peer: Peer) -> None:
        """End the connection to a node of another version, or of a hub whose name has the same hash."""
        assert peer.node is not None
        assert peer.hello is not None
        if peer.hello.version != VERSION:
            self._log_once(
                "version",
                "",
                "a worker of another version runs (process %d): it and this one exchange no messages",
                peer.node.pid,
            )
        self._ignored.add(peer.node_id)
        if not peer.initiated:
            # It learns from the answer that it should not try again.
            peer.say_hello(self._hello())
        peer.refuse()

    def _keep_one(self, peer: Peer) -> None:
        """Decide about a connection that another node has made."""
        assert peer.hello is not None
        former = self._peers.get(peer.node_id)
        own = self._connecting.get(peer.node_id)
        if former is not None:
            assert former.hello is not None
            if peer.hello.serial < former.hello.serial:
                # The node has made it before it said HELLO on the one that is up, and has closed it since.
                peer.end()
                return
            # The node has ended the former connection. The rest of its stream is read first.
            older = self._held.get(peer.node_id)
            if older is not None:
                older.end()
            self._held[peer.node_id] = peer
            peer.hold()
            return
        if own is not None:
            if self.node.id < peer.node_id:
                peer.end()
                return
            del self._connecting[peer.node_id]
            own.end()
        self._answer(peer)

    def _answer(self, peer: Peer) -> None:
        peer.say_hello(self._hello())
        self._up(peer)

    def _up(self, peer: Peer) -> None:
        """Exchange envelopes with the peer from now on."""
        self._peers[peer.node_id] = peer
        receives = peer.hello is None or peer.hello.node.receives
        own = (ALL_NODES, node_channel(peer.node_id)) if receives else ()
        self.mesh.add(peer, own)
        self.histories.peer_up(peer)
        self.presences.peer_up(peer)
        self._logged.discard(("connect", peer.node_id))
        # The PONG says that the peer knows what this node has subscribed to. A wait may be for that too.
        peer.announced = self.barriers.number_for(peer.node_id) or self._take_number()
        peer.ping(peer.announced)

    def _known(self, peer: Peer) -> None:
        """Note that the peer sends what this node has subscribed to."""
        peer.announced = 0
        self._settle(peer.node_id)
        if self.losses.node_connected(peer.node_id):
            logger.info("worker %s is connected again", peer.node_id)

    def pong_received(self, peer: Peer, number: int) -> None:
        """Note a PONG: of a probe, of a wait for a subscription, or behind the first snapshot."""
        if peer.probe and number >= peer.probe:
            peer.probe = 0
            peer.probe_ms = (self._events.now() - peer.probed_at) * 1000
        if peer.announced and number >= peer.announced:
            self._known(peer)
        self.barriers.answered(peer.node_id, number)

    def gap_received(self, peer: Peer, count: int) -> None:
        """Tell the hub that envelopes for this node were dropped: it did not read fast enough."""
        self.losses.envelopes_dropped()

    def history_received(self, peer: Peer, body: bytes) -> None:
        """Have a record about histories handled. Raises ValueError if it is malformed."""
        if not self._closed:
            self.histories.received(peer, body)

    def presence_received(self, peer: Peer, body: bytes) -> None:
        """Have a record about presences handled. Raises ValueError if it is malformed."""
        if not self._closed:
            self.presences.received(peer, body)

    def matching_received(self, peer: Peer, channel: str, envelope: bytes) -> None:
        """Have an envelope taken of a room that a pattern matches."""
        if not self._closed:
            self._patterns.receive(channel, envelope)

    def peer_left(self, peer: Peer) -> None:
        """Send the node no more. It ends the connection once all that it had sent has left."""
        self.mesh.remove(peer)
        for subject in (self.histories, self.presences):
            subject.peer_down(peer)
            subject.node_ended(peer.node_id)
        self._release_waits(peer.node_id)

    def peer_failed(self, peer: Peer, reason: str) -> None:
        """Log why a peer is ended: once for each node."""
        name = peer.node_id or "a program that has not said HELLO"
        self._log_once("failed", peer.node_id, "the connection to worker %s is ended: %s", name, reason)

    def peer_lost(self, peer: Peer, error: int) -> None:
        """Forget a connection. If it was up, and the node has not said GOODBYE, envelopes may have been lost."""
        self._connections.discard(peer)
        self._strangers.pop(peer, None)
        if self.loop.is_closed():
            # The hub ends what its reactor has. Nothing waits any more.
            return
        for connections in (self._connecting, self._held):
            if connections.get(peer.node_id) is peer:
                del connections[peer.node_id]
        was_up = self._peers.get(peer.node_id) is peer
        if was_up:
            del self._peers[peer.node_id]
            self.mesh.remove(peer)
            if not self._closed:
                self.histories.peer_down(peer)
                self.presences.peer_down(peer)
                if not peer.has_left:
                    self._node_lost(peer, error)
                self._answer_held(peer.node_id)
        # A connection that ends without an answer is a duplicate: the node has made one too, which is under way.
        if (was_up or peer.hello is not None) and peer.node_id not in self._peers | self._connecting:
            self._release_waits(peer.node_id)
        if self._all_gone is not None and not self._connections and not self._all_gone.done():
            self._all_gone.set_result(None)

    def _answer_held(self, node_id: str) -> None:
        held = self._held.pop(node_id, None)
        if held is not None and not held.ended:
            self._answer(held)
            held.release()

    # Losses

    def _node_lost(self, peer: Peer, error: int) -> None:
        assert peer.node is not None
        reason = os.strerror(error) if error else "it ended, or does not answer"
        logger.warning("the connection to worker %s (process %d) is lost: %s", peer.node_id, peer.node.pid, reason)
        self.losses.node_lost(peer.node_id)

    def _gone(self, node_id: str) -> None:
        """Note that a node has ended."""
        self.losses.node_ended(node_id)
        if node_id not in self._peers:
            self.histories.node_ended(node_id)
            self.presences.node_ended(node_id)
            self._release_waits(node_id)

    def _release_waits(self, node_id: str) -> None:
        """Let nothing wait for this node."""
        self.barriers.gone(node_id)
        self._settle(node_id)

    def _settle(self, node_id: str) -> None:
        """Have start() wait for this node no more."""
        self._awaited.discard(node_id)
        if not self._awaited and self._all_answered is not None and not self._all_answered.done():
            self._all_answered.set_result(None)

    def _log_once(self, event: str, node_id: str, message: str, *arguments: object) -> None:
        if (event, node_id) not in self._logged:
            self._logged.add((event, node_id))
            logger.warning(message, *arguments)

    def _send_barrier(self) -> tuple[int, set[str]]:
        """Send a PING to each peer. Return its number, and the nodes that are to answer it now or after HELLO."""
        number = self._take_number()
        for peer in self._peers.values():
            if not peer.has_left:
                peer.ping(number)
        return number, {*(peer.node_id for peer in self.peers), *self._connecting}

    def _take_number(self) -> int:
        self._number += 1
        return self._number

    # From time to time

    def sweep(self, now: float) -> None:
        """Probe the peers, end those that are silent, and look for new ones."""
        if self._closed:
            return
        step = min(now - self._swept_at, LONGEST_STEP) if self._swept_at is not None else 0.0
        self._swept_at = now
        probe = self._probed_at is None or now - self._probed_at >= PROBE_SECONDS
        if probe:
            self._probed_at = now
        for peer in tuple(self._connections):
            peer.retry()
            # A peer that this side has ended has as much time to end its own side, whatever it sends.
            peer.silent = 0.0 if peer.take_heard() and not peer.ended else peer.silent + step
            if peer.silent >= SILENT_SECONDS:
                self._end_silent(peer)
            elif probe and peer.is_up:
                self._send_probe(peer, now)
            elif not peer.is_up and peer.silent >= START_SECONDS:
                self._release_waits(peer.node_id)
        self.histories.sweep(now)
        self.presences.sweep(now, step)
        if self._looked_at is None or now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._look_around()

    def _end_silent(self, peer: Peer) -> None:
        if peer.is_up and not peer.ended:
            logger.warning("worker %s has sent nothing for %d s", peer.node_id, SILENT_SECONDS)
        peer.end()

    def _send_probe(self, peer: Peer, now: float) -> None:
        number = self._take_number()
        if not peer.probe:
            peer.probe, peer.probed_at = number, now
        peer.ping(number)

    # How things are

    @property
    def is_closed(self) -> bool:
        """Whether ``close()`` was called."""
        return self._closed

    @property
    def peers(self) -> list[Peer]:
        """The peers that are up."""
        return [peer for peer in self._peers.values() if peer.is_up and not peer.has_left]
