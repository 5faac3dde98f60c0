"""Channel layers that a broker joins, as those of several processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from tests.django.conftest import NewLayer, joined
from tests.django.test_channel_layer import nothing_arrives, received
from wshub.brokers.envelope import encode_envelope
from wshub.brokers.interface import ALL_NODES, Published, node_channel
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.django import ChannelLayer


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.005)


@joined
async def test_a_message_to_a_group_reaches_the_channels_of_every_process_once(new_layer: NewLayer) -> None:
    one, two, three = new_layer(), new_layer(), new_layer()
    channels = [(layer, await layer.new_channel()) for layer in (one, two, two)]
    for layer, channel in channels:
        await layer.group_add("chat", channel)
    for number, sender in enumerate((one, two, three)):
        await sender.group_send("chat", {"n": number})
        for layer, channel in channels:
            assert await received(layer, channel) == [number]
    for layer, channel in channels:
        assert await nothing_arrives(layer, channel)
    assert one.stats().unreadable == 0


@joined
async def test_a_channel_gets_the_messages_of_other_processes_in_order(new_layer: NewLayer) -> None:
    one, two = new_layer(), new_layer()
    channel = await one.new_channel()
    await one.group_add("chat", channel)
    for number in range(0, 40, 2):
        await two.send(channel, {"n": number})
        await two.group_send("chat", {"n": number + 1})
    got = await received(one, *[channel] * 40)
    assert [number for number in got if number % 2] == list(range(1, 40, 2))
    assert [number for number in got if not number % 2] == list(range(0, 40, 2))


@joined
async def test_a_channel_of_another_process_tells_that_it_is_full(new_layer: NewLayer) -> None:
    one, two = new_layer(capacity=2), new_layer()
    channel = await one.new_channel()
    await two.send(channel, {"n": 1})
    await two.send(channel, {"n": 2})
    with pytest.raises(ChannelFull):
        await two.send(channel, {"n": 3})
    assert await received(one, channel, channel) == [1, 2]
    await one.group_add("chat", channel)
    for number in range(4):
        await two.group_send("chat", {"n": number})
    await until(lambda: one.stats().full == 3)
    assert await received(one, channel, channel) == [0, 1]


@joined
async def test_a_message_to_a_process_that_has_ended_is_dropped(new_layer: NewLayer) -> None:
    one, two = new_layer(), new_layer()
    channel = await one.new_channel()
    await two.new_channel()
    await one.close()
    await two.send(channel, {"n": 1})
    await two.group_add("chat", channel)
    assert two.stats().unreachable == 2


@joined
async def test_another_process_may_add_a_channel_to_a_group(new_layer: NewLayer) -> None:
    one, two, three = new_layer(), new_layer(), new_layer()
    channel = await one.new_channel()
    await two.group_add("chat", channel)
    await three.group_send("chat", {"n": 1})
    assert await received(one, channel) == [1]
    await two.group_discard("chat", channel)
    await three.group_send("chat", {"n": 2})
    await three.send(channel, {"n": 3})
    assert await received(one, channel) == [3]


@joined
async def test_one_of_the_processes_that_read_a_channel_gets_a_message(new_layer: NewLayer) -> None:
    sender, *workers = [new_layer() for _ in range(4)]
    got: list[tuple[int, int]] = []

    async def work(index: int) -> None:
        while True:
            got.append((index, (await workers[index].receive("jobs"))["n"]))

    tasks = [asyncio.create_task(work(index)) for index in range(3)]
    await until(lambda: all(layer.stats().broker and layer._process().mailboxes.is_read("jobs") for layer in workers))
    await asyncio.sleep(0.05)
    for number in range(30):
        await sender.send("jobs", {"n": number})
    await until(lambda: len(got) == 30)
    assert sorted(number for _, number in got) == list(range(30))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@joined
async def test_a_channel_that_is_full_in_every_process_refuses_messages(new_layer: NewLayer) -> None:
    sender, worker = new_layer(), new_layer(capacity=2)
    first = asyncio.create_task(received(worker, "jobs"))
    await until(lambda: worker._process().mailboxes.is_read("jobs"))
    for number in range(3):
        await sender.send("jobs", {"n": number})
        await first
    with pytest.raises(ChannelFull):
        await sender.send("jobs", {"n": 3})
    assert await received(worker, "jobs", "jobs") == [1, 2]


@joined
async def test_a_message_waits_for_a_process_that_reads_its_channel(
    new_layer: NewLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wshub.publisher.session.SWEEP_PERIOD", 0.05)
    sender, worker = new_layer(capacity=3), new_layer()
    for number in range(3):
        await sender.send("jobs", {"n": number})
    with pytest.raises(ChannelFull):
        await sender.send("jobs", {"n": 3})
    assert await received(worker, "jobs", "jobs", "jobs") == [0, 1, 2]
    assert sender.stats().waiting == 0


@joined
async def test_a_process_that_has_stopped_reading_gets_no_more_messages(new_layer: NewLayer) -> None:
    sender, gone, worker = new_layer(), new_layer(), new_layer()
    for layer in (gone, worker):
        task = asyncio.create_task(received(layer, "jobs"))
        await until(lambda layer=layer: layer._process().mailboxes.is_read("jobs"))
        await asyncio.sleep(0.02)
        if layer is gone:
            task.cancel()
            await asyncio.wait([task])
    await sender.send("jobs", {"n": 1})
    assert await task == [1]


@joined
async def test_flush_reaches_every_process(new_layer: NewLayer) -> None:
    layers = [new_layer() for _ in range(3)]
    for layer in layers:
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.send(channel, {"n": 1})
    await layers[0].flush()
    for layer in layers:
        assert layer.stats().waiting == layer.stats().groups == 0


@joined
async def test_layers_of_other_names_hear_nothing(new_layer: NewLayer) -> None:
    one, other = new_layer(name="one"), new_layer(name="other")
    channels = [(layer, await layer.new_channel()) for layer in (one, other)]
    for layer, channel in channels:
        await layer.group_add("chat", channel)
    await one.group_send("chat", {"n": 1})
    await other.group_send("chat", {"n": 2})
    await one.flush()
    assert await received(other, channels[1][1]) == [2]
    await other.send(channels[0][1], {"n": 3})
    assert other.stats().unreachable == 1


@joined
async def test_a_group_without_channels_is_unsubscribed_from(
    new_layer: NewLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wshub.publisher.session.SWEEP_PERIOD", 0.01)
    monkeypatch.setattr("wshub.django.exchange.UNSUBSCRIBE_DELAY", 0.02)
    layer, other = new_layer(), new_layer()
    channel = await layer.new_channel()

    def subscriptions() -> int:
        broker = layer.stats().broker
        return broker.subscriptions if broker is not None else -1

    before = subscriptions()
    for number in range(5):
        await layer.group_add("chat", channel)
        await layer.group_add("also", channel)
        assert subscriptions() == before + 2
        await other.group_send("chat", {"n": number})
        assert await received(layer, channel) == [number]
        await layer.group_discard("chat", channel)
        await layer.group_discard("also", channel)
        if number % 2:
            await until(lambda: subscriptions() == before)


@joined
async def test_groups_come_and_go_while_messages_flow(new_layer: NewLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wshub.publisher.session.SWEEP_PERIOD", 0.001)
    monkeypatch.setattr("wshub.django.exchange.UNSUBSCRIBE_DELAY", 0.0)
    layer, sender = new_layer(), new_layer()
    channel = await layer.new_channel()
    for number in range(60):
        await layer.group_add("chat", channel)
        await sender.group_send("chat", {"n": number})
        assert await received(layer, channel) == [number]
        await layer.group_discard("chat", channel)
        await asyncio.sleep(number % 4 / 1000)


@joined
async def test_what_cannot_be_read_is_counted_and_ignored(new_layer: NewLayer) -> None:
    one, two = new_layer(), new_layer()
    channel = await one.new_channel()
    await two.new_channel()
    exchange, node = two._process().exchange, one._process().node
    assert exchange is not None
    bodies: list[bytes] = [b"{", b"[]", b"7", b"{}", b'{"do": "add"}', b'{"do": "answer", "request": []}', b"[" * 9999]

    async def send_wrong() -> None:
        assert exchange is not None
        broker = await exchange.broker()
        for envelope in (b"", b"text", b"\xb1\x09", *(encode_envelope("control", "", body, node=7) for body in bodies)):
            await broker.publish(node_channel(node.id), envelope)
        known: Any = encode_envelope("control", "", b'{"do": "something new"}', node=7)
        await broker.publish(ALL_NODES, known)

    await exchange.run(send_wrong())
    await two.send(channel, {"n": 1})
    assert await received(one, channel) == [1]
    assert one.stats().unreadable == 3 + len(bodies)


class Silent(MemoryBroker):
    """A broker that does not tell how many nodes get an envelope."""

    async def publish(self, channel: str, envelope: bytes) -> Published:
        await super().publish(channel, envelope)
        return Published(receivers=None)


async def test_a_broker_need_not_count_receivers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wshub.django.exchange.ANSWER_SECONDS", 0.1)
    monkeypatch.setattr("wshub.django.exchange.READER_SECONDS", 0.1)
    engine = MemoryEngine()
    one, two, gone = [ChannelLayer(lambda: Silent(engine), capacity=1) for _ in range(3)]
    channel, nowhere = await one.new_channel(), await gone.new_channel()
    await gone.close()
    await one.group_add("chat", channel)
    await two.group_send("chat", {"n": 1})
    assert await received(one, channel) == [1]
    await two.send(channel, {"n": 2})
    with pytest.raises(ChannelFull):
        await two.send(channel, {"n": 3})
    await two.send(nowhere, {"n": 4})
    assert two.stats().unreachable == 1
    await two.send("jobs", {"n": 5})
    assert two.stats().waiting == 1
    await two.flush()
    assert one.stats().waiting == two.stats().waiting == 0
    for layer in (one, two):
        await layer.close()
