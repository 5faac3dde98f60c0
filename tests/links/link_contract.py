"""The promises of every link to its receiver, as checks that run with any link.

A harness gives each check a link whose receiver is a probe, and the peer at the other end. The docstrings of ``Link``
and ``Receiver`` make the promises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from wshub import Frame
from wshub.links.link_probe import LinkProbe

__all__ = ["CHECKS", "FrameStream", "LinkHarness"]

LARGE = 400_000
"""Bytes of a large message. A few of them fill every buffer between the link and the peer."""


class FrameStream:
    """Collects the payloads of complete frames from a stream that arrives in pieces."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self._rest = b""

    def feed(self, data: bytes) -> None:
        self._rest += data
        while (decoded := Frame.decode(self._rest)) is not None:
            frame, length = decoded
            self.payloads.append(frame.payload)
            self._rest = self._rest[length:]


class LinkHarness(Protocol):
    """A link under test, and its peer."""

    probe: LinkProbe
    """The receiver of the link."""

    half_closes: bool
    """True if each side can end while the other goes on."""

    counts_headers: bool
    """True if byte counts include the headers of frames."""

    read_ahead: int
    """Maximum number of messages that still arrive after ``pause()``."""

    def peer_sends(self, payload: bytes) -> None:
        """Have the peer send a binary message. It may wait until the link reads."""

    def peer_reads(self, reads: bool) -> None:
        """Have the peer read everything, or nothing, until the next call."""

    def peer_ends(self) -> None:
        """Have the peer end its side. If the link half closes, the peer goes on reading."""

    def peer_vanishes(self) -> None:
        """Have the peer end the connection at once, with an error if the transport has one."""

    def peer_payloads(self) -> list[bytes]:
        """Return the payloads of the messages that the peer has received."""

    def peer_saw_end(self) -> bool:
        """Return whether the peer has seen the end of the link's side."""

    async def step(self) -> None:
        """Let the link and the peer go on a little."""


def received(harness: LinkHarness) -> list[bytes]:
    """Return the payloads of the messages that have arrived at the probe."""
    stream = FrameStream()
    stream.feed(harness.probe.received)
    return stream.payloads


async def until(harness: LinkHarness, condition: Callable[[], object]) -> None:
    """Take steps until the condition is true."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"the condition stays false, last events: {harness.probe.events[-3:]}"
        await harness.step()


async def settle(harness: LinkHarness) -> None:
    """Take enough steps for every pending event to happen."""
    for _ in range(30):
        await harness.step()
        await asyncio.sleep(0.001)


def numbered(number: int, size: int) -> bytes:
    """Return a payload that is unique to the number."""
    return (b"%06d" % number * (size // 6 + 1))[:size]


def wire_length(payload: bytes) -> int:
    return len(Frame.binary(payload).encode())


def check_counts(harness: LinkHarness, **expected: int) -> None:
    """Check that every accepted message is pending, delivered or dropped, and check the named counts."""
    counts = harness.probe.counts
    flat = {**counts, **counts.pop("dropped")}
    dropped = sum(flat[name] for name in ("closed", "slow", "newest", "oldest", "replaced"))
    assert flat["messages_accepted"] == flat["messages_delivered"] + flat["messages_pending"] + dropped
    assert {name: flat[name] for name in expected} == expected


async def block(harness: LinkHarness, *, droppable: bool = False) -> list[bytes]:
    """Send large messages to a peer that does not read, until the link is blocked and two or more are queued."""
    harness.peer_reads(False)
    payloads: list[bytes] = []
    while not (harness.probe.blocked and harness.probe.queued > 2 * LARGE):
        payloads.append(numbered(len(payloads), LARGE))
        harness.probe.send(payloads[-1], droppable=droppable)
        for _ in range(3):
            await harness.step()
        if harness.probe.blocked and harness.probe.queued > 2 * LARGE:
            # The kernel may enlarge its buffers, and take more after a while.
            await settle(harness)
        assert len(payloads) < 200, "the link is never blocked"
    return payloads


async def check_what_is_written_arrives_whole_and_in_order(harness: LinkHarness) -> None:
    payloads = [numbered(number, size) for number, size in enumerate([0, 1, 125, 126, 2048, 65536, 70_000] * 10)]
    for start in range(0, len(payloads), 10):
        for payload in payloads[start : start + 10]:
            harness.probe.send(payload)
        await harness.step()
    await until(harness, lambda: len(harness.peer_payloads()) == len(payloads))
    assert harness.peer_payloads() == payloads
    sent = sum(wire_length(payload) if harness.counts_headers else len(payload) for payload in payloads)
    count = len(payloads)
    check_counts(harness, messages_accepted=count, messages_delivered=count, messages_pending=0, bytes_sent=sent)


async def check_what_the_peer_sends_arrives_whole_and_in_order(harness: LinkHarness) -> None:
    payloads = [numbered(number, size) for number, size in enumerate([1, 125, 126, 2048, 65536, 70_000] * 3)]
    for payload in payloads:
        harness.peer_sends(payload)
    await until(harness, lambda: len(received(harness)) == len(payloads))
    assert received(harness) == payloads
    length = len(harness.probe.received) if harness.counts_headers else sum(map(len, payloads))
    check_counts(harness, bytes_received=length, messages_accepted=0)
    assert harness.probe.nested == 0


async def check_no_bytes_hold_nothing_up(harness: LinkHarness) -> None:
    harness.probe.write(b"")
    # A frame without bytes in the queue would count for the least charge, and would never leave.
    assert harness.probe.charge == 0
    harness.probe.send(b"behind")
    harness.probe.write(b"")
    await until(harness, lambda: harness.peer_payloads() == [b"behind"])
    check_counts(harness, messages_accepted=1, messages_delivered=1, messages_pending=0)


async def check_a_blocked_link_goes_on_where_it_was(harness: LinkHarness) -> None:
    payloads = await block(harness)
    assert harness.probe.queued > 0
    check_counts(harness, messages_accepted=len(payloads), closed=0)
    assert harness.probe.counts["messages_pending"] > 0
    harness.peer_reads(True)
    await until(harness, lambda: len(harness.peer_payloads()) == len(payloads))
    assert harness.peer_payloads() == payloads
    assert not harness.probe.blocked
    check_counts(harness, messages_delivered=len(payloads), messages_pending=0)


async def check_a_peer_that_reads_again_is_seen_to_take(harness: LinkHarness) -> None:
    await block(harness)
    # The kernel may still take more for a while.
    await until(harness, lambda: harness.probe.poll_progress() == "stalled")
    harness.peer_reads(True)
    seen = set()

    def takes() -> bool:
        seen.add(harness.probe.poll_progress())
        return "taking" in seen

    await until(harness, takes)
    await until(harness, lambda: harness.probe.poll_progress() == "at rest")


async def check_a_paused_link_reads_nothing_until_it_is_resumed(harness: LinkHarness) -> None:
    harness.peer_sends(b"before")
    await until(harness, lambda: received(harness) == [b"before"])
    harness.probe.pause()
    payloads = [numbered(number, 500) for number in range(20)]
    for payload in payloads:
        harness.peer_sends(payload)
    await settle(harness)
    arrived = len(received(harness)) - 1
    assert arrived <= harness.read_ahead
    # Output goes on.
    harness.probe.send(b"meanwhile")
    await until(harness, lambda: harness.peer_payloads() == [b"meanwhile"])
    harness.probe.resume()
    await until(harness, lambda: len(received(harness)) == 1 + len(payloads))
    assert received(harness) == [b"before", *payloads]


async def check_drained_is_called_once_when_the_queue_has_left(harness: LinkHarness) -> None:
    payloads = await block(harness)
    harness.probe.notify_when_left(harness.probe.end_of_queue())
    await settle(harness)
    assert harness.probe.count("drained") == 0
    harness.peer_reads(True)
    await until(harness, lambda: harness.probe.count("drained"))
    await until(harness, lambda: len(harness.peer_payloads()) == len(payloads))
    harness.probe.send(b"more")
    await settle(harness)
    assert harness.probe.events == [("drained",)]


async def check_drained_is_called_each_time_that_a_blocked_link_is_empty_again(harness: LinkHarness) -> None:
    harness.probe.notify_whenever_drained()
    harness.probe.send(b"not blocked")
    await settle(harness)
    assert harness.probe.count("drained") == 0
    for _ in range(2):
        await block(harness)
        # The kernel may have taken all of the first messages before its buffers were full.
        before = harness.probe.count("drained")
        harness.peer_reads(True)
        await until(harness, lambda: not harness.probe.queued and not harness.probe.blocked)
        await settle(harness)
        assert harness.probe.count("drained") == before + 1


async def check_messages_that_have_not_begun_to_leave_can_be_dropped(harness: LinkHarness) -> None:
    payloads = await block(harness, droppable=True)
    pending = harness.probe.counts["messages_pending"]
    assert harness.probe.make_space(harness.probe.charge - 1)
    check_counts(harness, oldest=1, messages_pending=pending - 1)
    harness.probe.drop_unsent()
    slow = harness.probe.counts["dropped"]["slow"]
    assert slow >= pending - 2
    harness.probe.send(b"last")
    harness.peer_reads(True)
    await until(harness, lambda: b"last" in harness.peer_payloads())
    delivered = len(payloads) - 1 - slow
    assert harness.peer_payloads() == [*payloads[:delivered], b"last"]
    check_counts(harness, messages_delivered=delivered + 1, messages_pending=0)


async def check_flush_now_sends_without_the_loop(harness: LinkHarness) -> None:
    harness.probe.send(b"at once")
    harness.probe.flush_now()
    await until(harness, lambda: harness.peer_payloads() == [b"at once"])
    check_counts(harness, messages_delivered=1)


async def check_an_abort_at_once_drops_the_queue(harness: LinkHarness) -> None:
    payloads = await block(harness)
    pending = harness.probe.counts["messages_pending"]
    harness.probe.abort()
    assert harness.probe.events == [], "connection_lost() is not called from within abort()"
    await until(harness, lambda: harness.probe.events)
    assert harness.probe.events == [("lost", 0)]
    check_counts(harness, closed=pending, messages_pending=0, messages_accepted=len(payloads))
    harness.peer_reads(True)
    await settle(harness)
    arrived = harness.peer_payloads()
    assert arrived == payloads[: len(arrived)]
    await check_that_it_has_ended(harness)


async def check_an_abort_after_the_flush_sends_the_queue_first(harness: LinkHarness) -> None:
    payloads = await block(harness)
    harness.probe.abort(after_flush=True)
    harness.probe.send(b"too late")
    await settle(harness)
    assert harness.probe.events == []
    check_counts(harness, messages_accepted=len(payloads))
    harness.peer_reads(True)
    if harness.half_closes:
        harness.peer_sends(b"discarded")
        await until(harness, harness.peer_saw_end)
        assert harness.probe.count("lost") == 0
        harness.peer_ends()
    await until(harness, lambda: harness.probe.events)
    assert harness.probe.events == [("lost", 0)]
    assert harness.peer_payloads() == payloads
    check_counts(harness, messages_delivered=len(payloads), closed=0)
    await check_that_it_has_ended(harness)


async def check_an_abort_at_once_may_follow_one_after_the_flush(harness: LinkHarness) -> None:
    payloads = await block(harness)
    pending = harness.probe.counts["messages_pending"]
    harness.probe.abort(after_flush=True)
    harness.probe.abort()
    harness.probe.abort(after_flush=True)
    await until(harness, lambda: harness.probe.events)
    assert harness.probe.events == [("lost", 0)]
    check_counts(harness, closed=pending, messages_accepted=len(payloads))
    await check_that_it_has_ended(harness)


async def check_the_end_of_the_peers_side_leaves_the_link_open(harness: LinkHarness) -> None:
    if not harness.half_closes:
        return
    harness.peer_sends(b"last")
    harness.peer_ends()
    await until(harness, lambda: harness.probe.count("eof"))
    assert received(harness) == [b"last"]
    harness.probe.send(b"still here")
    await until(harness, lambda: harness.peer_payloads() == [b"still here"])
    await settle(harness)
    assert harness.probe.events[-1] == ("eof",)
    assert harness.probe.count("eof") == 1
    harness.probe.abort(after_flush=True)
    await until(harness, lambda: harness.probe.count("lost"))
    assert harness.probe.events[-1] == ("lost", 0)
    await until(harness, harness.peer_saw_end)
    await check_that_it_has_ended(harness)


async def check_a_peer_that_vanishes_ends_the_link_once(harness: LinkHarness) -> None:
    payloads = await block(harness)
    pending = harness.probe.counts["messages_pending"]
    harness.peer_vanishes()
    await until(harness, lambda: harness.probe.count("lost"))
    check_counts(harness, closed=pending, messages_pending=0, messages_accepted=len(payloads))
    await check_that_it_has_ended(harness)


async def check_a_receiver_may_call_every_method_when_it_is_called(harness: LinkHarness) -> None:
    probe = harness.probe

    def on_event(event: tuple[object, ...]) -> None:
        if event[0] == "data" and probe.count("data") == 1:
            probe.pause()
            probe.send(b"answer")
            probe.flush_now()
            probe.notify_when_left(probe.end_of_queue())
            probe.resume()
            probe.send(b"dropped or not")
            probe.abort()
            probe.send(b"ignored")
        elif event[0] == "lost":
            probe.abort()
            probe.send(b"ignored")
            probe.resume()

    probe.on_event = on_event
    harness.peer_sends(b"question")
    await until(harness, lambda: probe.count("lost"))
    assert probe.nested == 0
    assert probe.count("drained") <= 1
    # Messages sent between abort() and the end are ignored or dropped.
    check_counts(harness, messages_pending=0)
    await check_that_it_has_ended(harness)


async def check_that_it_has_ended(harness: LinkHarness) -> None:
    """Check that connection_lost() was called once, and that further calls have no effect."""
    probe = harness.probe
    events, counts = list(probe.events), probe.counts
    assert probe.closed
    assert probe.count("lost") == 1
    assert probe.queued == 0
    probe.send(b"after the end")
    probe.pause()
    probe.resume()
    probe.flush_now()
    probe.notify_when_left(0)
    probe.abort(after_flush=True)
    probe.abort()
    assert probe.poll_progress() == "at rest"
    await settle(harness)
    assert probe.events == events
    assert probe.counts == counts


CHECKS = [
    check_what_is_written_arrives_whole_and_in_order,
    check_what_the_peer_sends_arrives_whole_and_in_order,
    check_no_bytes_hold_nothing_up,
    check_a_blocked_link_goes_on_where_it_was,
    check_a_peer_that_reads_again_is_seen_to_take,
    check_a_paused_link_reads_nothing_until_it_is_resumed,
    check_drained_is_called_once_when_the_queue_has_left,
    check_drained_is_called_each_time_that_a_blocked_link_is_empty_again,
    check_messages_that_have_not_begun_to_leave_can_be_dropped,
    check_flush_now_sends_without_the_loop,
    check_an_abort_at_once_drops_the_queue,
    check_an_abort_after_the_flush_sends_the_queue_first,
    check_an_abort_at_once_may_follow_one_after_the_flush,
    check_the_end_of_the_peers_side_leaves_the_link_open,
    check_a_peer_that_vanishes_ends_the_link_once,
    check_a_receiver_may_call_every_method_when_it_is_called,
]
