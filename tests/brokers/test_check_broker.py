"""The checks of brokers find what is wrong: each broker here breaks one promise, and the named check fails."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Collection
from typing import Any, ClassVar

import pytest

from tests.brokers import broken_keepers, broken_matchers  # noqa: F401 - they add their brokers to BROKEN.
from tests.brokers.breaking import BROKEN, fails
from tests.support.memory_brokers import MemoryFaults
from wshub.brokers import memory
from wshub.brokers.interface import BrokerEvents, BrokerHealth, BrokerStats, NodeInfo, Published
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.memory_engine import Arrived, Command
from wshub.errors import BrokerUncertain
from wshub.testing.broker_faults import FAULTS, BrokerFaults, CheckNotRunError, offers
from wshub.testing.check_broker import broker_checks, check_broker

CHECKS = dict(broker_checks())

# What arrives.


@fails("ten_thousand_arrive_in_order", "send_and_publish_keep_their_order")
class Reorders(MemoryBroker):
    def _receive(self, arrived: Arrived) -> None:
        held, self.held = getattr(self, "held", None), None
        if held is None and hash(arrived.envelope) % 10 == 0:
            self.held = arrived
            return
        super()._receive(arrived)
        if held is not None:
            super()._receive(held)


@fails("each_subscriber_receives_once", "the_counts_add_up")
class Duplicates(MemoryBroker):
    def _receive(self, arrived: Arrived) -> None:
        super()._receive(arrived)
        if arrived.envelope.rstrip(b" .").endswith(b"77"):
            super()._receive(arrived)


@fails("each_subscriber_receives_once", "ten_thousand_arrive_in_order", "whatever_fails_nothing_is_lost_silently")
class LosesSilently(MemoryBroker):
    def _receive(self, arrived: Arrived) -> None:
        if not arrived.envelope.rstrip(b" .").endswith(b"7"):
            super()._receive(arrived)


@fails("other_nodes_receive_nothing", "any_text_names_a_channel", "unsubscribe_ends_the_envelopes")
class DeliversToAll(MemoryBroker):
    def send(self, channel: str, envelope: bytes) -> bool:
        return super().send("all", envelope)


@fails("any_text_names_a_channel")
class TakesPatterns(MemoryBroker):
    def subscribe(self, channel: str) -> None:
        super().subscribe(channel.replace("**", "*"))

    async def subscribed(self, channel: str) -> None:
        await super().subscribed(channel.replace("**", "*"))


@fails("any_text_names_a_channel")
class EndsNamesAtNul(MemoryBroker):
    def send(self, channel: str, envelope: bytes) -> bool:
        return super().send(channel.partition("\0")[0], envelope)


@fails("any_bytes_arrive_unchanged")
class Truncates(MemoryBroker):
    def send(self, channel: str, envelope: bytes) -> bool:
        return super().send(channel, envelope[:65_535])


@fails("any_bytes_arrive_unchanged")
class DropsWhatIsEmpty(MemoryBroker):
    def send(self, channel: str, envelope: bytes) -> bool:
        return super().send(channel, envelope) if envelope else True


@fails("hubs_of_another_name_are_apart")
class MixesHubs(MemoryBroker):
    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        await super().start(NodeInfo(id=node.id, hub="hub"), events)


@fails("hubs_of_another_name_are_apart")
class JoinsNamesWithAColon(MemoryBroker):
    """Hub ``a:x`` with the channel ``room`` is hub ``a`` with the channel ``x:room``."""

    hub = ""

    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        self.hub = node.hub
        await super().start(NodeInfo(id=node.id, hub="hub"), events)

    def subscribe(self, channel: str) -> None:
        super().subscribe(f"{self.hub}:{channel}")

    async def subscribed(self, channel: str) -> None:
        await super().subscribed(f"{self.hub}:{channel}")

    def send(self, channel: str, envelope: bytes) -> bool:
        return super().send(f"{self.hub}:{channel}", envelope)

    async def publish(self, channel: str, envelope: bytes) -> Published:
        return await super().publish(f"{self.hub}:{channel}", envelope)


@fails("all_nodes_and_the_own_channel_work_from_the_start")
class StartsTooEarly(MemoryBroker):
    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        self.starting = asyncio.create_task(super().start(node, events))
        await asyncio.sleep(0)

    async def close(self) -> None:
        await super().close()
        await asyncio.gather(self.starting, return_exceptions=True)


@fails("nothing_is_called_from_within_send")
class DeliversFromWithinSend(MemoryBroker):
    def send(self, channel: str, envelope: bytes) -> bool:
        accepted = super().send(channel, envelope)
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush()
        for connection in list(self._engine._connections):
            connection._deliver()
        return accepted


@fails("publish_returns_when_it_is_taken")
class CountsReceiversWrong(MemoryBroker):
    async def publish(self, channel: str, envelope: bytes) -> Published:
        await super().publish(channel, envelope)
        return Published(receivers=1)


@fails("sending_to_nobody_is_no_loss")
class CallsNobodyALoss(MemoryBroker):
    def send(self, channel: str, envelope: bytes) -> bool:
        accepted = super().send(channel, envelope)
        return accepted and len(self._engine._connections) > 1


# Subscriptions.


@fails("subscribed_means_that_it_arrives")
class ConfirmsTooEarly(MemoryBroker):
    def subscribe(self, channel: str) -> None:
        if self._loop is not None:
            self._loop.call_later(0.01, super().subscribe, channel)

    async def subscribed(self, channel: str) -> None:
        pass


@fails("a_second_subscribe_does_nothing")
class CountsSubscriptions(MemoryBroker):
    def subscribe(self, channel: str) -> None:
        self.counts = getattr(self, "counts", {})
        self.counts[channel] = self.counts.get(channel, 0) + 1
        super().subscribe(channel)

    def unsubscribe(self, channel: str) -> None:
        self.counts[channel] = self.counts.get(channel, 0) - 1
        if self.counts[channel] <= 0:
            super().unsubscribe(channel)


@fails("unsubscribe_ends_the_envelopes", "the_last_change_of_an_iteration_counts")
class NeverUnsubscribes(MemoryBroker):
    def unsubscribe(self, channel: str) -> None:
        pass


@fails("the_last_change_of_an_iteration_counts", "fast_changes_end_right")
class TheFirstChangeCounts(MemoryBroker):
    def unsubscribe(self, channel: str) -> None:
        if self._loop is not None:
            self._loop.call_soon(super().unsubscribe, channel)


@fails("ten_thousand_channels_at_once")
class TakesAThousandChannels(MemoryBroker):
    def subscribe(self, channel: str) -> None:
        if len(self._subscriptions) < 1000:
            super().subscribe(channel)


@fails("channels_of_the_first_moment_work")
class ForgetsEarlyChannels(MemoryBroker):
    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        await super().start(node, events)
        for channel in list(self._subscriptions):
            self.unsubscribe(channel)


@fails("subscribed_does_not_wait_for_a_channel_that_was_left")
class WaitsForEver(MemoryBroker):
    async def subscribed(self, channel: str) -> None:
        while not (channel in self._subscriptions and self._subscriptions[channel].is_confirmed):
            await asyncio.sleep(0.001)


# Calls, start and close.


@fails("send_returns_at_once")
class BlocksInSend(MemoryBroker):
    def send(self, channel: str, envelope: bytes) -> bool:
        time.sleep(0.002)
        return super().send(channel, envelope)


@fails("close_under_load_leaves_nothing")
class LeaksATask(MemoryBroker):
    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        await super().start(node, events)
        self.task = asyncio.create_task(asyncio.sleep(30))


@fails("close_under_load_leaves_nothing")
class LeaksATimer(MemoryBroker):
    async def close(self) -> None:
        if self._loop is not None:
            self._loop.call_later(30, self.health)
        await super().close()


@fails("close_under_load_leaves_nothing")
class LeaksADescriptor(MemoryBroker):
    leaked: ClassVar[list[int]] = []

    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        self.leaked.extend(os.pipe())
        await super().start(node, events)


@fails("close_under_load_leaves_nothing")
class LeaksItself(MemoryBroker):
    all: ClassVar[list[MemoryBroker]] = []

    def __init__(self, engine: MemoryEngine) -> None:
        super().__init__(engine)
        self.all.append(self)


@fails("close_sends_what_waits")
class ClosesAtOnce(MemoryBroker):
    async def close(self) -> None:
        self._end_connection()
        await super().close()


@fails("close_can_be_called_at_any_time")
class ClosesOnce(MemoryBroker):
    async def close(self) -> None:
        assert self._loop is not None
        await super().close()


@fails("a_closed_broker_refuses_in_good_order", "without_an_engine_everything_is_refused_and_counted")
class RaisesInSend(MemoryBroker):
    def send(self, channel: str, envelope: bytes) -> bool:
        if self._state != "connected":
            raise ConnectionError
        return super().send(channel, envelope)


@fails("a_closed_broker_refuses_in_good_order")
class SaysTrueWhenClosed(MemoryBroker):
    def send(self, channel: str, envelope: bytes) -> bool:
        super().send(channel, envelope)
        return True


@fails("it_starts_again_after_close")
class StartsOnce(MemoryBroker):
    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        if hasattr(self, "used"):
            raise RuntimeError("it was started before")
        self.used = True
        await super().start(node, events)


@fails("it_starts_again_after_close")
class CountsOnAfterClose(MemoryBroker):
    total = 0

    async def close(self) -> None:
        self.total = self.stats().received
        await super().close()

    def stats(self) -> BrokerStats:
        stats = super().stats()
        return dataclasses.replace(stats, received=stats.received + self.total)


@fails("it_starts_on_a_new_loop")
class KeepsItsLoop(MemoryBroker):
    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        self.first_loop = getattr(self, "first_loop", asyncio.get_running_loop())
        self.first_loop.call_soon(int)
        await super().start(node, events)


@fails("it_stays_connected_when_nothing_happens")
class GoesWhenIdle(MemoryBroker):
    def sweep(self, now: float) -> None:
        if self._connection is not None and now - self._probed_at >= self._probe_interval:
            self._engine.cut(self)
        super().sweep(now)


@fails("health_and_stats_are_well_formed")
class ReturnsADict(MemoryBroker):
    def stats(self) -> BrokerStats:
        return dataclasses.asdict(super().stats())  # type: ignore[return-value]


@fails("health_and_stats_are_well_formed")
class SharesItsCounts(MemoryBroker):
    def stats(self) -> BrokerStats:
        return dataclasses.replace(super().stats(), dropped=self._counts.dropped)


@fails("health_and_stats_are_well_formed")
class IsWellWithoutAReason(MemoryBroker):
    def health(self) -> BrokerHealth:
        return BrokerHealth(state=self._state)


@fails("the_counts_add_up")
class CountsNoBytes(MemoryBroker):
    def _count_sent(self, command: Command) -> None:
        super()._count_sent(command)
        self._counts.bytes_sent = 0


# Faults.


@fails("a_lost_connection_is_told_before_what_follows", "whatever_fails_nothing_is_lost_silently")
class SaysNothingOfALoss(MemoryBroker):
    def _interrupt(self, channels: Collection[str] | None, reason: str) -> None:
        pass


@fails("channels_are_restored_when_the_engine_is_back", "a_lost_connection_is_told_before_what_follows")
class SaysItTooLate(MemoryBroker):
    """``interrupted`` comes behind the first envelope after the gap."""

    late: str | None = None

    def _interrupt(self, channels: Collection[str] | None, reason: str) -> None:
        self.late = reason

    def _restore(self, channels: Collection[str] | None) -> None:
        pass

    def _receive(self, arrived: Arrived) -> None:
        super()._receive(arrived)
        if self.late is not None:
            reason, self.late = self.late, None
            super()._interrupt(None, reason)
            super()._restore(None)


@fails("a_lost_connection_is_told_before_what_follows")
class NeverRestores(MemoryBroker):
    def _restore(self, channels: Collection[str] | None) -> None:
        pass


@fails("restored_means_that_it_arrives")
class RestoresTooEarly(MemoryBroker):
    def _interrupt(self, channels: Collection[str] | None, reason: str) -> None:
        super()._interrupt(channels, reason)
        super()._restore(None)

    def _restore(self, channels: Collection[str] | None) -> None:
        pass

    def _connect(self) -> None:
        if self._was_connected and self._loop is not None:
            self._loop.call_later(0.05, super()._connect)
        else:
            super()._connect()

    def health(self) -> BrokerHealth:
        return BrokerHealth(state="connected")


@fails("channels_are_restored_when_the_engine_is_back", "a_lost_connection_is_told_before_what_follows")
class ForgetsToSubscribeAgain(MemoryBroker):
    def _connect(self) -> None:
        if self._was_connected:
            self._subscriptions = {channel: self._subscriptions[channel] for channel in self._own}
        super()._connect()


@fails("channels_are_restored_when_the_engine_is_back")
class ForgetsChangesOfAnOutage(MemoryBroker):
    def subscribe(self, channel: str) -> None:
        if self._state != "disconnected":
            super().subscribe(channel)


@fails("without_an_engine_everything_is_refused_and_counted")
class CountsNothingDropped(MemoryBroker):
    def _count_dropped(self, reason: str) -> None:
        pass


@fails("without_an_engine_everything_is_refused_and_counted")
class HangsWithoutAnEngine(MemoryBroker):
    async def publish(self, channel: str, envelope: bytes) -> Published:
        while self._state != "connected":
            await asyncio.sleep(0.01)
        return await super().publish(channel, envelope)


@fails("it_waits_for_an_engine_that_is_away_at_the_start")
class LogsEachAttempt(MemoryBroker):
    def _log_outage(self, reason: str) -> None:
        memory.logger.warning("no connection: %s", reason)


@fails("it_waits_for_an_engine_that_is_away_at_the_start")
class FailsToStart(MemoryBroker):
    def _connect(self) -> None:
        super()._connect()
        if self._connection is None and self._opened is not None and not self._opened.done():
            self._opened.set_exception(ConnectionRefusedError())


@fails("what_a_cut_leaves_open_is_answered")
class LeavesCallsOpen(MemoryBroker):
    def _end_connection(self) -> None:
        if not self._is_closing:
            self._publications.clear()
        super()._end_connection()


@fails("a_deaf_node_notices", "a_mute_node_notices", "a_frozen_engine_is_noticed")
class NeverProbes(MemoryBroker):
    def sweep(self, now: float) -> None:
        self._probed_at = now
        super().sweep(now)


@fails("a_short_deafness_loses_nothing_silently", "a_short_silence_loses_nothing_silently")
class OverlooksGaps(MemoryBroker):
    def _note_gap(self) -> None:
        pass


@fails("a_mute_node_notices")
class WaitsForAnAnswerForEver(MemoryBroker):
    async def publish(self, channel: str, envelope: bytes) -> Published:
        while True:
            try:
                return await super().publish(channel, envelope)
            except BrokerUncertain:
                await asyncio.sleep(3600)


@fails("a_slow_engine_fills_a_bounded_queue")
class HasNoBound(MemoryBroker):
    def __init__(self, engine: MemoryEngine) -> None:
        super().__init__(engine, max_pending_bytes=1 << 40)


@fails("a_slow_engine_fills_a_bounded_queue")
class BlocksWhenFull(MemoryBroker):
    def _count_dropped(self, reason: str) -> None:
        time.sleep(0.002)
        super()._count_dropped(reason)


@fails("it_can_be_closed_while_the_engine_is_away")
class ClosesWhenTheEngineIsThere(MemoryBroker):
    async def close(self) -> None:
        while self._state == "disconnected":
            await asyncio.sleep(0.01)
        await super().close()


@fails("close_does_not_wait_for_a_frozen_engine")
class ClosesWhenAllHasLeft(MemoryBroker):
    async def close(self) -> None:
        while self._outgoing:
            await asyncio.sleep(0.01)
        await super().close()


@fails("a_refused_channel_is_told_and_heals")
class GivesUpARefusedChannel(MemoryBroker):
    def _enqueue_changes(self) -> None:
        for channel in list(self._changed):
            if channel in self._subscriptions and self._subscriptions[channel].interrupted:
                del self._changed[channel]
        super()._enqueue_changes()


@fails("a_subscription_that_the_engine_lost_is_found")
class TrustsTheEngine(MemoryBroker):
    def _send_probe(self) -> None:
        requested, self._requested = self._requested, set()
        super()._send_probe()
        self._requested = requested | self._requested


def test_each_check_has_a_broker_that_fails_it() -> None:
    assert {parameters.values[1] for parameters in BROKEN} == CHECKS.keys()


@pytest.mark.long
@pytest.mark.parametrize(("broken", "name"), BROKEN)
def test_a_broken_broker_fails_the_check(broken: type[MemoryBroker], name: str) -> None:
    engine = MemoryEngine()
    # The checks are tested here, and not the loops: one of them will do.
    with pytest.raises(AssertionError, match=rf"^{name}: \S"):
        asyncio.run(CHECKS[name](lambda: broken(engine), MemoryFaults(engine), patience=1.0))


class OnlyCuts(BrokerFaults):
    """A broker's author who can cause one fault."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.engine = engine

    async def cut(self, broker: Any) -> None:
        self.engine.cut(broker)

    async def heal(self) -> None:
        pass


async def test_a_check_that_needs_a_fault_that_is_not_offered_is_not_run() -> None:
    engine = MemoryEngine()
    faults = OnlyCuts(engine)
    assert [name for name in FAULTS if offers(faults, name)] == ["cut"]
    with pytest.raises(CheckNotRunError, match="the check needs the fault deafen"):
        await CHECKS["a_deaf_node_notices"](lambda: MemoryBroker(engine), faults)
    with pytest.raises(CheckNotRunError, match="the check needs the fault cut"):
        await CHECKS["restored_means_that_it_arrives"](lambda: MemoryBroker(engine))
    await CHECKS["restored_means_that_it_arrives"](lambda: MemoryBroker(engine), faults)


async def test_all_checks_together_end_with_the_first_that_fails() -> None:
    engine = MemoryEngine()
    with pytest.raises(AssertionError) as raised:
        await check_broker(lambda: Truncates(engine), patience=1.0)
    name, promise, happened = str(raised.value).replace("\n", ": ").split(": ", 2)
    assert name == "any_bytes_arrive_unchanged"
    assert promise == ["An envelope is any bytes", "every value, none at all, and a mebibyte."][0]
    assert "65536 bytes" in happened


async def test_an_error_of_the_broker_is_a_failed_check_with_its_cause() -> None:
    def make() -> MemoryBroker:
        raise OSError("no engine")

    with pytest.raises(AssertionError, match="no engine") as raised:
        await CHECKS["each_subscriber_receives_once"](make)
    assert isinstance(raised.value.__cause__, OSError)


def test_every_check_says_what_a_broker_promises() -> None:
    for name, run in CHECKS.items():
        assert run.__name__ == name
        assert run.__doc__ is not None
        assert run.__doc__.splitlines()[0].endswith(".")
