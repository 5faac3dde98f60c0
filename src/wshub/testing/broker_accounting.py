"""Whether what was sent has arrived, or a hub was told that it may be lost."""

from __future__ import annotations

from wshub.testing.broker_nodes import Interrupted, Left, Node, Received, Restored, Sent, dropped_by, require

__all__ = ["check_arrivals", "concerns", "open_interruptions", "unexplained"]


def open_interruptions(node: Node) -> dict[str, str]:
    """Return the channels of the node that were interrupted and not restored since then, with the reasons."""
    found: dict[str, str] = {}
    for event in node.log:
        if isinstance(event, Interrupted):
            found.update(dict.fromkeys(event.affected, event.reason))
        elif isinstance(event, Restored):
            found = {channel: reason for channel, reason in found.items() if not concerns(event, channel)}
        elif isinstance(event, Left):
            found.pop(event.channel, None)
    return found


def concerns(event: Interrupted | Restored, channel: str) -> bool:
    """Return whether an interruption is of a channel, or its end."""
    return event.channels is None or channel in event.channels


def unexplained(sender: Node, receiver: Node, channel: str) -> list[int]:
    """Return the envelopes that were lost although no drop was counted, and no hub heard about a gap.

    The receiver was told if it was interrupted between the envelopes before and after the gap, or before the gap and
    not restored. The sender was told if it was interrupted after it had sent a missing envelope, and before it sent the
    one behind the gap.
    """
    taken = [
        event.number for event in sender.log if isinstance(event, Sent) and event.channel == channel and event.accepted
    ]
    positions = {number: position for position, number in enumerate(taken)}
    found: list[int] = []
    position = 0
    is_open = was_interrupted = False
    prefix = sender.info.id.encode() + b" "
    for event in [*receiver.log, None]:
        if isinstance(event, Interrupted) and concerns(event, channel):
            is_open = was_interrupted = True
        elif isinstance(event, Restored) and concerns(event, channel):
            is_open = False
        elif event is None or (isinstance(event, Received) and event.envelope.startswith(prefix)):
            number = int(event.envelope.split(b" ", 2)[1]) if event is not None else None
            end = len(taken) if number is None else positions.get(number, -1)
            if end < position:
                # Of another channel, a duplicate, or one of a gap that has come late.
                continue
            lost = [] if was_interrupted else taken[position:end]
            lost = [each for each in lost if not sender_was_told(sender, channel, each, number)]
            if lost and len(lost) > dropped_between(sender, lost[0], number):
                found += lost
            position = end + 1
            was_interrupted = is_open
    return found


def sender_was_told(sender: Node, channel: str, lost: int, behind: int | None) -> bool:
    """Return whether the sender was interrupted between two envelopes, or when it sent the first of them."""
    is_open = is_after = False
    for event in sender.log:
        if isinstance(event, Sent) and event.channel == channel and event.accepted:
            if event.number == behind:
                return False
            if event.number == lost:
                if is_open:
                    return True
                is_after = True
        elif isinstance(event, Interrupted) and concerns(event, channel):
            if is_after:
                return True
            is_open = True
        elif isinstance(event, Restored) and concerns(event, channel):
            is_open = False
    return False


def dropped_between(sender: Node, lost: int, behind: int | None) -> int:
    """Return how many envelopes that were taken were then counted as dropped, between two sends."""
    counts: list[int] = []
    refused = 0
    for event in sender.log:
        if isinstance(event, Sent):
            if event.number == lost or counts:
                counts.append(event.dropped)
            if counts and event.number == behind:
                return counts[-1] - counts[0] - refused
            refused += bool(counts) and not event.accepted
    return dropped_by(sender.broker) - counts[0] - refused


def check_arrivals(sender: Node, receiver: Node, channel: str) -> None:
    """Check that each envelope arrived once and in order, was dropped and counted, or in a gap that a hub knows of.

    One that comes after newer ones is part of their gap: the hub leaves it out.
    """
    sent = [event for event in sender.log if isinstance(event, Sent) and event.channel == channel]
    numbers = {event.number for event in sent}
    taken = {event.number for event in sent if event.accepted}
    received = [number for number in receiver.numbers(sender) if number in numbers]
    require(len(set(received)) == len(received), "no envelope arrives twice")
    dropped = set(received) - taken
    require(not dropped, f"send() returned False for envelopes that arrived all the same: {sorted(dropped)[:10]}")
    missing = unexplained(sender, receiver, channel)
    require(
        not missing,
        f"{len(missing)} envelopes were lost or out of order without a word, {missing[:10]}…: interrupted() comes "
        f"before the first envelope after a gap",
    )
