"""A channel layer on loops that come and go, in threads, in forked processes, and at the end of all of these."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync

from tests.django.conftest import NewLayer, between_processes, joined, layer_threads
from tests.django.test_channel_layer import received
from tests.support.programs import environment
from wshub import BrokerError, BrokerUnavailable
from wshub.django import ChannelLayer
from wshub.publisher.loop_thread import LoopThread


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@joined
def test_blocking_callers_use_one_connection(new_layer: NewLayer) -> None:
    layer, receiver = new_layer(), new_layer()
    channel = async_to_sync(receiver.new_channel)()
    async_to_sync(receiver.group_add)("chat", channel)
    async_to_sync(layer.group_send)("chat", {"n": 0})
    gc.collect()
    before = (descriptors(), len(threading.enumerate()))
    for number in range(1, 20):
        async_to_sync(layer.group_send)("chat", {"n": number})
        async_to_sync(layer.send, force_new_loop=True)(channel, {"n": number})
    gc.collect()
    # One more may be on its way between the workers. A connection for each call would be far more.
    assert descriptors() <= before[0] + 2
    # asgiref may still be ending one of its own.
    assert len(threading.enumerate()) <= before[1] + 1
    assert len(asyncio.run(received(receiver, *[channel] * 39))) == 39


@joined
def test_blocking_callers_in_many_threads(new_layer: NewLayer) -> None:
    layer, receiver = new_layer(), new_layer(capacity=200)
    channel = asyncio.run(receiver.new_channel())
    asyncio.run(receiver.group_add("chat", channel))

    def send(first: int) -> None:
        for number in range(first, first + 10):
            async_to_sync(layer.group_send)("chat", {"n": number})

    threads = [threading.Thread(target=send, args=(first,)) for first in range(0, 80, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    got = asyncio.run(received(receiver, *[channel] * 80))
    assert sorted(got) == list(range(80))
    assert [number for number in got if number < 10] == list(range(10))
    assert len(layer_threads()) == 2


@joined
async def test_a_layer_connects_again_after_it_was_closed(new_layer: NewLayer) -> None:
    layer, other = new_layer(), new_layer()
    channel = await layer.new_channel()
    await layer.group_add("chat", channel)
    for number in range(3):
        await other.group_send("chat", {"n": number})
        await other.send(channel, {"n": number})
        assert await received(layer, channel, channel) == [number, number]
        await layer.close()
        await layer.close()
        assert len(layer_threads()) == 1
        # The group is still there, and its messages arrive from the next call on.
        await layer.group_add("chat", channel)


@joined
async def test_a_call_that_is_under_way_ends_when_the_layer_closes(
    new_layer: NewLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, other = new_layer(), new_layer()
    await other.new_channel()
    gone = await other.new_channel()
    monkeypatch.setattr("wshub.django.exchange.Exchange._answer", lambda *arguments: None)
    calls = [asyncio.create_task(layer.send(gone, {"n": number})) for number in range(10)]
    await asyncio.sleep(0.05)
    await layer.close()
    for call in calls:
        with pytest.raises(BrokerError):
            await call


@joined
async def test_calls_end_when_the_layer_closes_before_its_thread_has_begun(
    new_layer: NewLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_begin = threading.Event()

    class LateThread(LoopThread):
        def _run(self) -> None:
            may_begin.wait(10)
            super()._run()

    monkeypatch.setattr("wshub.django.broker_thread.LoopThread", LateThread)
    layer = new_layer()
    calls = [asyncio.create_task(layer.group_send("chat", {"n": number})) for number in range(10)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(layer.close())
    await asyncio.sleep(0)
    may_begin.set()
    await closing
    for call in calls:
        with pytest.raises(BrokerError):
            await call


def test_a_layer_that_nothing_refers_to_leaves_its_broker(socket_directory: Path) -> None:
    before = descriptors()
    layer = ChannelLayer(f"workers:{socket_directory}")
    asyncio.run(layer.group_send("chat", {"n": 1}))
    (thread,) = layer_threads()
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
    thread.join(10)
    assert layer_threads() == []
    gc.collect()
    assert descriptors() <= before
    assert [path for path in socket_directory.rglob("*") if path.is_socket()] == []


def test_a_layer_without_a_broker_has_no_thread() -> None:
    layer = ChannelLayer("none")

    async def use() -> None:
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.group_send("chat", {"n": 1})
        assert await received(layer, channel) == [1]

    asyncio.run(use())
    assert layer_threads() == []


def use_in_child(layer: ChannelLayer) -> None:
    async def use() -> None:
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.group_send("chat", {"n": "from the child"})
        assert await received(layer, channel) == ["from the child"]
        await layer.flush()

    asyncio.run(asyncio.wait_for(use(), 20))


@between_processes
def test_a_forked_process_connects_anew(new_layer: NewLayer) -> None:
    layer, other = new_layer(), new_layer()
    channel = asyncio.run(layer.new_channel())
    other_channel = asyncio.run(other.new_channel())
    for each, name in ((layer, channel), (other, other_channel)):
        asyncio.run(each.group_add("chat", name))
    child = multiprocessing.get_context("fork").Process(target=use_in_child, args=(layer,))
    child.start()
    child.join(20)
    exitcode = child.exitcode
    child.kill()
    assert exitcode == 0
    # The child has flushed the parents too.
    assert layer.stats().groups == 0
    asyncio.run(other.send(channel, {"n": "the parent goes on"}))
    assert asyncio.run(received(layer, channel)) == ["the parent goes on"]


CRON_JOB = """
import sys
from asgiref.sync import async_to_sync
from wshub.django import ChannelLayer
from wshub.publisher.loop_thread import LoopThread

layer = ChannelLayer(sys.argv[1], name="cron")
async_to_sync(layer.group_send)("chat", {"n": 1})
async_to_sync(layer.send)(sys.argv[2], {"n": 2})
"""


@between_processes
async def test_a_short_program_sends_and_ends(new_layer: NewLayer, request: pytest.FixtureRequest) -> None:
    layer = new_layer(name="cron")
    channel = await layer.new_channel()
    await layer.group_add("chat", channel)
    url = request.getfixturevalue("redis").url
    if "workers" in request.node.name:
        url = f"workers:{request.getfixturevalue('socket_directory')}"
    command = [sys.executable, "-W", "error", "-c", CRON_JOB, url, channel]
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert await received(layer, channel, channel) == [1, 2]
    sockets = [path for path in request.getfixturevalue("socket_directory").rglob("*") if path.is_socket()]
    assert len(sockets) == ("workers" in request.node.name)


async def test_a_closed_exchange_takes_no_calls(new_layer: NewLayer) -> None:
    layer = ChannelLayer("workers:/nowhere")
    exchange = layer._process().exchange
    assert exchange is not None
    await exchange.close()
    with pytest.raises(BrokerUnavailable, match="closed"):
        await exchange.run(exchange.flush())
