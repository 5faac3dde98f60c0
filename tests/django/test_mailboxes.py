"""The queues of the channels of one process, and how long messages stay in them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.support.history_nodes import RunningClock
from wshub.django.mailboxes import Mailboxes


@pytest.fixture
def channels(clock: RunningClock) -> Mailboxes:
    """Channels for two messages each. A message expires after ten seconds."""
    return Mailboxes(threading.Lock(), lambda channel: 2, 10)


async def test_a_message_that_was_offered_to_others_expires_at_its_time(
    channels: Mailboxes, clock: RunningClock
) -> None:
    channels.put("jobs", b"one")
    clock.skipped += 9
    message = channels.take("jobs")
    assert message is not None
    channels.put_back("jobs", message)
    assert channels.waiting == 1
    clock.skipped += 1
    assert channels.take("jobs") is None
    assert channels.expired == 1


async def test_a_message_that_is_offered_to_others_keeps_its_place(channels: Mailboxes) -> None:
    for payload in (b"one", b"two"):
        assert channels.put("jobs", payload)
    message = channels.take("jobs")
    assert message is not None
    assert not channels.put("jobs", b"three")
    channels.put_back("jobs", message)
    channels.free_place("jobs")
    assert not channels.put("jobs", b"three")
    assert [await channels.get("jobs") for _ in range(2)] == [b"one", b"two"]


async def test_a_message_that_others_have_taken_leaves_its_place(channels: Mailboxes) -> None:
    for payload in (b"one", b"two"):
        assert channels.put("jobs", payload)
    for _ in range(2):
        assert channels.take("jobs") is not None
        channels.free_place("jobs")
    assert channels.put("jobs", b"three")
    assert channels.put("jobs", b"four")
    assert [await channels.get("jobs") for _ in range(2)] == [b"three", b"four"]


async def test_a_message_that_expired_while_it_was_offered_to_others_is_not_read(
    channels: Mailboxes, clock: RunningClock
) -> None:
    channels.put("jobs", b"one")
    message = channels.take("jobs")
    assert message is not None
    reading = asyncio.create_task(channels.get("jobs"))
    await asyncio.sleep(0)
    clock.skipped += 10
    channels.put_back("jobs", message)
    channels.put("jobs", b"two")
    assert await reading == b"two"
    assert (channels.queued, channels.expired) == (2, 1)


async def test_a_message_of_a_reader_that_was_cancelled_expires_at_its_time(
    channels: Mailboxes, clock: RunningClock
) -> None:
    reading = asyncio.create_task(channels.get("jobs"))
    await asyncio.sleep(0)
    channels.put("jobs", b"one")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert channels.waiting == 1
    clock.skipped += 10
    assert channels.take("jobs") is None
    assert channels.expired == 1
