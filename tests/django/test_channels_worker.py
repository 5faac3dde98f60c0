"""Channels' own worker and consumers, in a process of their own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.django.conftest import NewLayer, between_processes
from tests.django.test_channel_layer import received
from tests.support.programs import environment

WORKER = """
import sys

import django
from django.conf import settings

settings.configure(
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "wshub.django.ChannelLayer",
            "CONFIG": {"broker": sys.argv[1], "name": sys.argv[2], "channel_capacity": {"specific.*": 5}},
            "TEST_CONFIG": {"broker": "none"},
        },
    },
    INSTALLED_APPS=["channels"],
)
django.setup()

from asgiref.sync import async_to_sync
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.layers import channel_layers, get_channel_layer
from channels.routing import ChannelNameRouter
from channels.worker import Worker


class Doubler(AsyncConsumer):
    async def double(self, message):
        await self.channel_layer.send(message["reply_to"], {"type": "doubled", "n": 2 * message["n"]})


class SyncDoubler(SyncConsumer):
    def double(self, message):
        async_to_sync(self.channel_layer.send)(message["reply_to"], {"type": "doubled", "n": 2 * message["n"]})


assert repr(channel_layers.make_test_backend("default")).endswith("alone>")
Worker(
    ChannelNameRouter({"double": Doubler.as_asgi(), "sync": SyncDoubler.as_asgi()}),
    ["double", "sync"],
    get_channel_layer(),
).run()
"""


@between_processes
async def test_a_worker_of_channels_answers(new_layer: NewLayer, request, socket_directory: Path) -> None:
    layer = new_layer(name="worker")
    url = f"workers:{socket_directory}" if "workers" in request.node.name else request.getfixturevalue("redis").url
    channel = await layer.new_channel()
    # It waits here until the worker is there.
    await layer.send("double", {"type": "double", "n": 1, "reply_to": channel})
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, url, "worker"), env=environment(), **pipes
    )
    try:
        async with asyncio.timeout(30):
            assert (await layer.receive(channel))["n"] == 2
        for number in range(2, 20):
            name = "sync" if number % 2 else "double"
            await layer.send(name, {"type": "double", "n": number, "reply_to": channel})
            assert await received(layer, channel) == [2 * number]
    finally:
        worker.terminate()
        output, _ = await worker.communicate()
    assert b"Traceback" not in output
