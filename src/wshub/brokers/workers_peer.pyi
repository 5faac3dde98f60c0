import asyncio
from typing import Protocol

from wshub.brokers.envelope_receiver import EnvelopeReceiver
from wshub.brokers.interface import NodeInfo
from wshub.brokers.workers_hello import Hello
from wshub.links.link import Link, LinkCounters, Receiver

class PeerOwner(Protocol):
    """Is called with what happens on the connection to another worker, from the loop."""

    def hello_received(self, peer: Peer, body: bytes) -> None:
        """Answer HELLO, or end the peer. Sets ``hello``. Raises ValueError if it is malformed."""

    def pong_received(self, peer: Peer, number: int) -> None:
        """Note that the peer has handled all that was queued before the PING with that number, or a lower one."""

    def gap_received(self, peer: Peer, count: int) -> None:
        """Note that the peer has dropped envelopes for this node."""

    def history_received(self, peer: Peer, body: bytes) -> None:
        """Take a HISTORY record. Raises ValueError if it is malformed."""

    def presence_received(self, peer: Peer, body: bytes) -> None:
        """Take a PRESENCE record. Raises ValueError if it is malformed."""

    def matching_received(self, peer: Peer, channel: str, envelope: bytes) -> None:
        """Take an envelope of a room that a pattern matches. ``channel`` is that of the pattern."""

    def peer_left(self, peer: Peer) -> None:
        """Note that the peer has said GOODBYE."""

    def peer_failed(self, peer: Peer, reason: str) -> None:
        """Note that the peer has broken the rules, or that there is no memory for it. ``peer_lost`` follows."""

    def peer_lost(self, peer: Peer, error: int) -> None:
        """Note that the connection has ended. It is called once; ``error`` is an errno, or 0."""

class Peer(Receiver):
    def __init__(
        self,
        owner: PeerOwner,
        loop: asyncio.AbstractEventLoop,
        interest: object,
        receiver: EnvelopeReceiver,
        counters: LinkCounters,
        max_pending: int,
        *,
        initiated: bool,
    ) -> None: ...
    @property
    def initiated(self) -> bool: ...
    @property
    def is_up(self) -> bool: ...
    @property
    def has_left(self) -> bool: ...
    @property
    def ended(self) -> bool: ...
    node_id: str
    node: NodeInfo | None
    hello: Hello | None
    announced: int
    silent: float
    probed_at: float
    probe: int
    probe_ms: float
    def attach(self, link: Link) -> None: ...
    def say_hello(self, body: bytes) -> None: ...
    def open(self) -> None: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...
    def ping(self, number: int) -> None: ...
    def send_history(self, body: bytes, *, always: bool = False) -> bool: ...
    def send_presence(self, body: bytes, *, always: bool = False) -> bool: ...
    def leave(self) -> None: ...
    def refuse(self) -> None: ...
    def end(self) -> None: ...
    def drop(self) -> None: ...
    def retry(self) -> None: ...
    def take_heard(self) -> bool: ...
    @property
    def pending_bytes(self) -> int: ...
    def departure(self) -> asyncio.Future[bool]: ...
