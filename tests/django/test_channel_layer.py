"""The specification of channel layers, in one process: over each broker, and without one."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any

import pytest
from channels.exceptions import ChannelFull, MessageTooLarge
from channels.layers import BaseChannelLayer

from tests.django.conftest import NewLayer, everywhere
from tests.support.history_nodes import RunningClock
from wshub import ConfigurationError, MisuseError
from wshub.django import ChannelLayer


async def received(layer: ChannelLayer, *channels: str) -> list[Any]:
    """Return the ``n`` of the next message of each channel."""
    async with asyncio.timeout(10):
        return [(await layer.receive(channel))["n"] for channel in channels]


async def nothing_arrives(layer: ChannelLayer, channel: str) -> bool:
    """Whether no message is in a channel, or on its way from this process."""
    try:
        async with asyncio.timeout(0.02):
            await layer.receive(channel)
    except TimeoutError:
        return True
    return False


@everywhere
async def test_messages_arrive_in_order(new_layer: NewLayer) -> None:
    layer = new_layer()
    own = await layer.new_channel()
    for channel in ("jobs", own):
        for number in range(20):
            await layer.send(channel, {"type": "job", "n": number})
        assert await received(layer, *[channel] * 20) == list(range(20))
    await layer.send(own, {"type": "x", "nested": [{"bytes": b"\xff", "text": "\uffff", "none": None}, 1.5, True]})
    assert await layer.receive(own) == {
        "type": "x",
        "nested": [{"bytes": b"\xff", "text": "\uffff", "none": None}, 1.5, True],
    }


@everywhere
async def test_a_receiver_waits_for_its_message(new_layer: NewLayer) -> None:
    layer = new_layer()
    own = await layer.new_channel()
    for channel in ("jobs", own):
        waiting = asyncio.create_task(received(layer, channel))
        await asyncio.sleep(0.01)
        await layer.send(channel, {"n": 1})
        assert await waiting == [1]


@everywhere
async def test_each_message_to_a_group_reaches_each_channel_once(new_layer: NewLayer) -> None:
    layer = new_layer()
    one, two, three = [await layer.new_channel() for _ in range(3)]
    for channel in (one, two, three, one):
        await layer.group_add("chat", channel)
    await layer.group_discard("chat", two)
    await layer.group_discard("chat", two)
    await layer.group_discard("other", two)
    await layer.group_send("chat", {"n": 1})
    assert await received(layer, one, three) == [1, 1]
    for channel in (one, two, three):
        assert await nothing_arrives(layer, channel)
    await layer.group_send("empty", {"n": 2})


@everywhere
async def test_a_channel_that_several_processes_may_read_can_be_in_a_group(new_layer: NewLayer) -> None:
    layer = new_layer()
    await layer.group_add("chat", "jobs")
    await layer.group_send("chat", {"n": 1})
    assert await received(layer, "jobs") == [1]


@everywhere
async def test_a_full_channel_refuses_messages_and_is_left_out_of_groups(
    new_layer: NewLayer, caplog: pytest.LogCaptureFixture
) -> None:
    layer = new_layer(capacity=2)
    slow, quick = await layer.new_channel(), await layer.new_channel()
    for channel in (slow, "jobs"):
        await layer.send(channel, {"n": 0})
        await layer.send(channel, {"n": 1})
        with pytest.raises(ChannelFull):
            await layer.send(channel, {"n": 2})
    assert layer.stats().full == 2
    for channel in (slow, quick):
        await layer.group_add("chat", channel)
    for number in (3, 4):
        await layer.group_send("chat", {"n": number})
    assert layer.stats().full == 4
    assert await received(layer, slow, slow, quick, quick) == [0, 1, 3, 4]
    assert await nothing_arrives(layer, slow)
    assert [record.getMessage()[:37] for record in caplog.records] == ["1 channels of the group chat are full"]
    await layer.send(slow, {"n": 5})
    assert await received(layer, slow) == [5]


async def test_the_first_pattern_that_matches_gives_the_capacity(new_layer: NewLayer) -> None:
    layer = new_layer(capacity=5, channel_capacity={"one*": 1, re.compile("[ot].*"): 2})
    for channel, capacity in (("one.a", 1), ("other", 2), ("two", 2), ("a", 5)):
        for number in range(capacity):
            await layer.send(channel, {"n": number})
        with pytest.raises(ChannelFull):
            await layer.send(channel, {"n": capacity})
        assert layer.get_capacity(channel) == capacity


@everywhere
async def test_a_message_may_have_a_megabyte(new_layer: NewLayer) -> None:
    layer = new_layer()
    channel = await layer.new_channel()
    await layer.group_add("chat", channel)
    message = {"text": "x" * 1_000_000, "bytes": bytes(range(256)) * 1000}
    await layer.send(channel, message)
    await layer.group_send("chat", message)
    assert await layer.receive(channel) == await layer.receive(channel) == message


async def test_a_message_that_is_too_large_is_refused(new_layer: NewLayer) -> None:
    layer = new_layer(max_message_size=20)
    await layer.send("jobs", {"t": "x" * 12})
    for call in (layer.send, layer.group_send):
        with pytest.raises(MessageTooLarge, match="21 bytes"):
            await call("jobs", {"t": "x" * 13})


async def test_each_receiver_has_a_message_of_its_own(new_layer: NewLayer) -> None:
    layer = new_layer()
    one, two = await layer.new_channel(), await layer.new_channel()
    for channel in (one, two):
        await layer.group_add("chat", channel)
    message = {"list": [1]}
    await layer.group_send("chat", message)
    message["list"].append(2)
    first = await layer.receive(one)
    first["list"].append(3)
    assert await layer.receive(two) == {"list": [1]}


async def test_an_unread_message_expires(new_layer: NewLayer, clock: RunningClock) -> None:
    layer = new_layer(expiry=10, capacity=1)
    channel = await layer.new_channel()
    await layer.send(channel, {"n": 1})
    clock.skipped += 10
    # It takes no space either.
    await layer.send(channel, {"n": 2})
    assert await received(layer, channel) == [2]
    await layer.send(channel, {"n": 3})
    clock.skipped += 10
    assert await nothing_arrives(layer, channel)
    assert layer.stats().expired == 2


async def test_a_channel_leaves_its_groups_when_the_membership_expires(
    new_layer: NewLayer, clock: RunningClock
) -> None:
    layer = new_layer(group_expiry=10)
    old, renewed = await layer.new_channel(), await layer.new_channel()
    await layer.group_add("chat", old)
    await layer.group_add("chat", renewed)
    clock.skipped += 6
    await layer.group_add("chat", renewed)
    clock.skipped += 6
    await layer.group_send("chat", {"n": 1})
    assert await received(layer, renewed) == [1]
    assert await nothing_arrives(layer, old)
    assert layer.group_expiry == 10


async def test_a_channel_that_nothing_reads_leaves_its_groups_at_last(new_layer: NewLayer, clock: RunningClock) -> None:
    layer = new_layer(expiry=10)
    dead, alive = await layer.new_channel(), await layer.new_channel()
    for channel in (dead, alive):
        await layer.group_add("chat", channel)
    await layer.group_add("other", dead)
    for number in range(15):
        await layer.group_send("chat", {"n": number})
        assert await received(layer, alive) == [number]
        clock.skipped += 10
    assert layer.stats().groups == 1
    await layer.group_send("chat", {"n": 15})
    assert await received(layer, alive) == [15]
    clock.skipped += 10
    await layer.group_send("chat", {"n": 16})
    stats = layer.stats()
    assert stats.waiting == 1
    assert stats.queued == stats.expired + stats.waiting + 16


async def test_a_cancelled_receive_takes_no_message(new_layer: NewLayer) -> None:
    layer = new_layer()
    for channel in ("jobs", await layer.new_channel()):
        for number in range(10):
            waiting = asyncio.create_task(layer.receive(channel))
            for _ in range(number % 3):
                await asyncio.sleep(0)
            await layer.send(channel, {"n": number})
            for _ in range(number % 4):
                await asyncio.sleep(0)
            waiting.cancel()
            try:
                assert (await waiting)["n"] == number
            except asyncio.CancelledError:
                assert await received(layer, channel) == [number]
    assert layer.stats().waiting == 0


async def test_a_message_goes_on_to_the_next_receiver_if_the_first_is_cancelled(new_layer: NewLayer) -> None:
    layer = new_layer()
    first, second = [asyncio.create_task(layer.receive("jobs")) for _ in range(2)]
    await asyncio.sleep(0.01)
    await layer.send("jobs", {"n": 1})
    first.cancel()
    assert (await second)["n"] == 1
    with pytest.raises(asyncio.CancelledError):
        await first


@everywhere
async def test_several_receivers_share_the_messages_of_a_channel(new_layer: NewLayer) -> None:
    layer = new_layer()
    receivers = [asyncio.create_task(received(layer, "jobs")) for _ in range(10)]
    for number in range(10):
        await layer.send("jobs", {"n": number})
    assert sorted([number for receiver in receivers for number in await receiver]) == list(range(10))


def test_receivers_may_be_on_several_loops(new_layer: NewLayer) -> None:
    layer = new_layer()
    got: list[Any] = []
    barrier = threading.Barrier(5)

    async def receive(channel: str) -> None:
        task = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        await asyncio.to_thread(barrier.wait)
        got.append((await task)["n"])

    async def receive_own() -> None:
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await receive(channel)

    threads = [threading.Thread(target=lambda: asyncio.run(receive_own())) for _ in range(4)]
    for thread in threads:
        thread.start()
    barrier.wait()
    asyncio.run(layer.group_send("chat", {"n": 1}))
    for thread in threads:
        thread.join(10)
    assert got == [1, 1, 1, 1]


def test_a_receiver_whose_loop_has_closed_keeps_no_message(new_layer: NewLayer) -> None:
    layer = new_layer()
    loop = asyncio.new_event_loop()
    lost = loop.create_task(layer.receive("jobs"))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    async def scenario() -> None:
        other = asyncio.create_task(layer.receive("jobs"))
        await asyncio.sleep(0)
        await layer.send("jobs", {"n": 1})
        assert (await other)["n"] == 1

    asyncio.run(asyncio.wait_for(scenario(), 10))
    # Python would warn of a task that is collected on a closed loop.
    lost._log_destroy_pending = False  # type: ignore[attr-defined]


@everywhere
async def test_flush_leaves_neither_messages_nor_groups(new_layer: NewLayer) -> None:
    layer = new_layer()
    channel = await layer.new_channel()
    waiting = asyncio.create_task(layer.receive("waits"))
    await layer.group_add("chat", channel)
    await layer.send(channel, {"n": 1})
    await layer.send("jobs", {"n": 2})
    await layer.flush()
    await layer.group_send("chat", {"n": 3})
    assert layer.stats().waiting == layer.stats().groups == 0
    # It goes on as if it were new.
    await layer.group_add("chat", channel)
    await layer.group_send("chat", {"n": 4})
    assert await received(layer, channel) == [4]
    await layer.send("waits", {"n": 5})
    assert (await waiting)["n"] == 5


async def test_names_are_those_of_the_specification(new_layer: NewLayer) -> None:
    layer = new_layer()
    channel = await layer.new_channel("a-b_c.d")
    assert re.fullmatch(r"a-b_c\.d\.[0-9a-f]{16}![0-9a-f]{32}", channel)
    assert len({await layer.new_channel() for _ in range(100)}) == 100
    for name in ("", "with space", "ä", "a!b!c", "x" * 100, 7, None, "=+135!"):
        for call in (layer.send, layer.group_send):
            with pytest.raises(TypeError):
                await call(name, {"n": 1})  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await layer.receive(name)  # type: ignore[arg-type]
        for change in (layer.group_add, layer.group_discard):
            with pytest.raises(TypeError):
                await change(name, channel)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                await change("chat", name)  # type: ignore[arg-type]
    for prefix in ("ä", "a!b", "x" * 60):
        with pytest.raises(TypeError):
            await layer.new_channel(prefix)
    for message in ("text", None, {1: 2}, {"a": object()}):
        for call in (layer.send, layer.group_send):
            with pytest.raises(TypeError):
                await call("jobs", message)  # type: ignore[arg-type]


async def test_a_channel_of_no_layer_is_refused(new_layer: NewLayer) -> None:
    layer, other = new_layer(), new_layer()
    foreign = await other.new_channel()
    with pytest.raises(MisuseError, match="another process"):
        await layer.receive(foreign)
    for call in (
        layer.receive("specific.abc!def"),
        layer.send("specific.abc!def", {}),
        layer.group_add("chat", "specific.abc!def"),
        layer.group_discard("chat", "specific.abc!def"),
    ):
        with pytest.raises(MisuseError, match="new_channel"):
            await call
    # Without a broker there is no other process: it has ended.
    await layer.send(foreign, {"n": 1})
    await layer.group_add("chat", foreign)
    await layer.group_discard("chat", foreign)
    assert layer.stats().unreachable == 1


@pytest.mark.parametrize(
    "options",
    [
        {"broker": "nowhere://host"},
        {"broker": 7},
        {"expiry": 0},
        {"expiry": "60"},
        {"expiry": float("inf")},
        {"group_expiry": -1},
        {"capacity": 0},
        {"capacity": True},
        {"channel_capacity": {"a": 0}},
        {"channel_capacity": [("a", 1)]},
        {"max_message_size": 0},
        {"name": 7},
    ],
)
def test_a_wrong_setting_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ChannelLayer(**options)


def test_it_is_what_channels_looks_for() -> None:
    found = ChannelLayer("none")
    assert isinstance(found, BaseChannelLayer)
    assert found.extensions == ["groups", "flush"]
    assert found.ChannelFull is ChannelFull
    assert found.MessageTooLarge is MessageTooLarge
    assert repr(found) == "<ChannelLayer 'default' alone>"
    assert "secret" not in repr(ChannelLayer("redis://:secret@localhost"))


def test_the_environment_names_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSHUB_BROKER", "redis://localhost:7777")
    assert "redis://localhost:7777" in repr(ChannelLayer())
    assert repr(ChannelLayer("none")) == "<ChannelLayer 'default' alone>"
    monkeypatch.delenv("WSHUB_BROKER")
    monkeypatch.setenv("WSHUB_WORKERS_DIRECTORY", "/tmp/workers")
    assert "WorkersBroker('/tmp/workers')" in repr(ChannelLayer())
