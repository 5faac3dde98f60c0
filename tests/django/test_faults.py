"""A channel layer whose engine is away, slow, restarted, or refuses it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest

from tests.django.test_channel_layer import nothing_arrives, received
from tests.django.test_joined_layers import until
from tests.support.free_ports import free_port
from tests.support.redis_engine import RedisEngine, engine_of, running_engine
from wshub import BrokerUnavailable, BrokerUncertain, ConfigurationError
from wshub.django import ChannelLayer


@pytest.fixture
def own_redis() -> Iterator[RedisEngine]:
    with running_engine("redis") as engine:
        yield engine


@contextlib.asynccontextmanager
async def closing(*layers: ChannelLayer):
    try:
        yield layers
    finally:
        for layer in layers:
            await layer.close()


async def test_an_outage_ends_with_the_engine(own_redis: RedisEngine) -> None:
    async with closing(ChannelLayer(own_redis.url), ChannelLayer(own_redis.url)) as (one, two):
        channel, other = await one.new_channel(), await two.new_channel()
        await one.group_add("chat", channel)
        await two.group_add("chat", other)
        own_redis.stop()
        # The channels of this process get messages all the same.
        with pytest.raises(BrokerUnavailable):
            await one.group_send("chat", {"n": 1})
        assert await received(one, channel) == [1]
        for call in (one.send(other, {"n": 2}), one.send("jobs", {"n": 2}), one.flush()):
            with pytest.raises(BrokerUnavailable):
                await call
        await one.group_add("chat", channel)
        # Groups may change meanwhile.
        await one.group_add("news", channel)
        await one.group_discard("chat", channel)
        await two.group_add("chat", other)
        own_redis.start()
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(BrokerUnavailable):
                    await two.group_send("news", {"n": 3})
                    if not await nothing_arrives(one, channel):
                        break
                await asyncio.sleep(0.02)
        for layer in (one, two):
            await until(lambda layer=layer: layer.stats().health.ok)
        # It returns when messages arrive again.
        await two.group_add("chat", other)
        await one.group_send("chat", {"n": 4})
        assert await received(two, other) == [4]
        await two.send(channel, {"n": 5})
        while (await received(one, channel)) != [5]:
            pass


async def test_an_engine_that_was_never_there_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wshub.django.broker_thread.START_PATIENCE", 2.0)
    with engine_of("redis") as engine:
        async with closing(ChannelLayer(engine.url)) as (layer,):
            channel = await layer.new_channel()
            began = asyncio.get_running_loop().time()
            await layer.group_add("chat", channel)
            with pytest.raises(BrokerUnavailable, match="no connection"):
                await layer.group_send("chat", {"n": 1})
            assert asyncio.get_running_loop().time() - began < 1.5
            assert await received(layer, channel) == [1]
            engine.start()
            await until(lambda: layer.stats().health is not None and layer.stats().health.ok)  # type: ignore[union-attr]
            async with closing(ChannelLayer(engine.url)) as (other,):
                await until(lambda: engine.command("PUBSUB", "CHANNELS", "*room:chat"))
                await other.group_send("chat", {"n": 2})
                assert await received(layer, channel) == [2]


async def test_an_engine_that_does_not_answer_delays_no_consumer(own_redis: RedisEngine) -> None:
    async with closing(ChannelLayer(own_redis.url), ChannelLayer(own_redis.url)) as (one, two):
        channel, other = await one.new_channel(), await two.new_channel()
        for layer, name in ((one, channel), (two, other)):
            await layer.group_add("chat", name)
        own_redis.pause()
        try:
            sending = [asyncio.create_task(one.group_send("chat", {"n": number})) for number in range(50)]
            assert await received(one, *[channel] * 50) == list(range(50))
            await one.send(channel, {"n": 50})
            assert await received(one, channel) == [50]
            for call in sending:
                with pytest.raises(BrokerUncertain):
                    await call
        finally:
            own_redis.resume()
        # Each arrives once, or not at all.
        await until(lambda: one.stats().health.ok and two.stats().health.ok)  # type: ignore[union-attr]
        await one.group_send("chat", {"n": 51})
        got: list[int] = []
        while 51 not in got:
            got += await received(two, other)
        assert got == sorted(set(got))


@pytest.mark.parametrize("call", ["new_channel", "group_add", "group_send", "send", "receive", "flush"])
async def test_a_wrong_password_is_said(call: str, own_engine_with_password: RedisEngine) -> None:
    url = f"redis://:wrong@127.0.0.1:{own_engine_with_password.port}"
    async with closing(ChannelLayer(url)) as (layer,):
        arguments = {
            "new_channel": (),
            "group_add": ("chat", "jobs"),
            "group_send": ("chat", {}),
            "send": ("jobs", {}),
            "receive": ("jobs",),
            "flush": (),
        }[call]
        for _ in range(2):
            with pytest.raises(ConfigurationError):
                await getattr(layer, call)(*arguments)


@pytest.fixture(scope="module")
def own_engine_with_password() -> Iterator[RedisEngine]:
    with running_engine("redis", "--requirepass", "secret") as engine:
        yield engine


async def test_a_port_on_which_nothing_listens_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wshub.django.broker_thread.START_PATIENCE", 0.05)
    async with closing(ChannelLayer(f"redis://127.0.0.1:{free_port()}")) as (layer,):
        for number in range(20):
            with pytest.raises(BrokerUnavailable):
                await layer.group_send("chat", {"n": number})
        assert layer.stats().waiting == 0


async def test_errors_of_an_outage_leave_no_cycles(own_redis: RedisEngine) -> None:
    errors: list[weakref.ref[Exception]] = []
    async with closing(ChannelLayer(own_redis.url), ChannelLayer(own_redis.url)) as (one, two):
        other = await two.new_channel()
        await one.new_channel()
        own_redis.stop()
        gc.collect()
        gc.disable()
        try:
            for call in (lambda: one.group_send("chat", {}), lambda: one.send(other, {}), one.flush):
                try:
                    await call()
                except BrokerUnavailable as error:
                    errors.append(weakref.ref(error))
            await until(lambda: all(error() is None for error in errors))
        finally:
            gc.enable()
    assert len(errors) == 3
