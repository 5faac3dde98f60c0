"""Helpers of the checks with faults. They wait until a fault is noticed, and until all is well again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

from wshub.testing.broker_accounting import check_arrivals, open_interruptions
from wshub.testing.broker_nodes import MAX_RATE, Node, Nodes, require
from wshub.testing.broker_reports import check_health

__all__ = [
    "CHANNEL",
    "FOUND_RATE",
    "FOUND_WITHIN",
    "NOTICED_WITHIN",
    "RATE",
    "all_is_accounted_for",
    "arrives_again",
    "noticed",
    "recovered",
    "recovery_time",
    "restored",
    "stream",
    "trickling",
]

CHANNEL = "room:faults"

# Seconds by the clock of the nodes within which a fault is noticed.
NOTICED_WITHIN = 20.0

# How fast the clock runs while a check waits for that.
RATE = MAX_RATE


async def noticed(nodes: Nodes, *which: Node) -> None:
    """Wait until brokers have noticed that something is wrong."""
    for node in which:
        await nodes.until(
            partial(is_ill, node),
            "a broker that nothing reaches, or from which nothing leaves, says so in health()",
            within=NOTICED_WITHIN,
            rate=RATE,
        )
        check_health(node.broker, connected=False)


# Seconds by the clock of the nodes within which a subscription is found that the engine has lost, and how fast it runs
# meanwhile. It is not the fastest rate: the engine answers by its own clock.
FOUND_WITHIN = 40.0
FOUND_RATE = 3.0


def recovery_time(nodes: Nodes) -> float:
    """Return the seconds by the clock of the nodes within which a broker works again after a fault.

    A broker may wait for its next attempt by the clock of the loop, which runs at its usual rate.
    """
    return 40 + RATE * nodes.patience


async def recovered(nodes: Nodes, *which: Node) -> None:
    """Wait until brokers are connected, have told it to their hub, and have their channels again."""
    # A fault that has just happened must be noticed first.
    await nodes.pass_for(0.5)
    await restored(nodes, *which)


async def restored(nodes: Nodes, *which: Node) -> None:
    """Do the same after a fault that has been noticed."""
    for node in which:
        await nodes.until(
            partial(is_restored, node),
            partial(not_restored, node),
            within=recovery_time(nodes),
            rate=RATE,
        )
        check_health(node.broker, connected=True)


def is_ill(node: Node) -> bool:
    """Return whether the broker says that it does not work."""
    return not node.broker.health().ok


def is_restored(node: Node) -> bool:
    """Return whether the broker works, and its hub knows it."""
    return node.broker.health().ok and not open_interruptions(node)


def not_restored(node: Node) -> str:
    """Return an error for a broker that does not work, or whose hub does not know that it does."""
    return (
        "a broker is connected, and has called restored(), after the fault has ended: "
        f"{node.broker.health()}, interrupted: {list(open_interruptions(node).items())[:5]}"
    )


async def arrives_again(nodes: Nodes, sender: Node, receiver: Node, channel: str = CHANNEL) -> None:
    """Check that the node has the channel, and that an envelope arrives now: with it, all that was sent before."""
    await nodes.finish(receiver.broker.subscribed(channel), "subscribed() returns after a fault has ended")
    before = len(receiver.numbers(sender))
    number = sender.next_number
    require(sender.send(channel), "send() returns True after a fault has ended")
    # One that was sent earlier may arrive first, and this one may be lost like any other.
    await nodes.until(
        lambda: any(each >= number for each in receiver.numbers(sender)[before:]),
        "envelopes arrive after a fault has ended",
    )


async def stream(sender: Node, channel: str, count: int, size: int = 0) -> None:
    """Send so many envelopes, some in each iteration of the loop. None is sent again if it was dropped."""
    for number in range(count):
        sender.send(channel, size=size)
        if number % 5 == 4:
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def trickling(*senders: Node) -> AsyncIterator[None]:
    """Have nodes send an envelope now and then during the block."""
    tasks = [asyncio.create_task(trickle(sender)) for sender in senders]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def trickle(sender: Node) -> None:
    while True:
        sender.send(CHANNEL)
        await asyncio.sleep(0.01)


async def all_is_accounted_for(nodes: Nodes, sender: Node, receiver: Node) -> None:
    """Check, once all has arrived, that no envelope of a node was repeated, reordered, or lost without a word."""
    await nodes.quiet()
    check_arrivals(sender, receiver, CHANNEL)
