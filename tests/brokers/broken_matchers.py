"""Brokers that deliver by patterns, and break a promise about it."""

from __future__ import annotations

from collections.abc import Callable

from tests.brokers.breaking import fails
from wshub.brokers.interface import BrokerEvents, NodeInfo
from wshub.brokers.memory import MemoryBroker
from wshub.brokers.memory_engine import Arrived


@fails("a_pattern_matches_rooms_of_any_name")
class KnowsNoEndOfAPattern(MemoryBroker):
    def subscribe_pattern(self, pattern: str, receive: Callable[[bytes], None]) -> None:
        super().subscribe_pattern(pattern if pattern.endswith("*") else pattern.replace("*", ""), receive)

    async def pattern_subscribed(self, pattern: str) -> None:
        pass


@fails("a_pattern_matches_rooms_of_any_name")
class MixesChannelsAndPatterns(MemoryBroker):
    def _receive(self, arrived: Arrived) -> None:
        super()._receive(arrived)
        if arrived.channel.startswith("match:"):
            super()._receive(Arrived("room:prices:1", arrived.envelope))


@fails("a_pattern_matches_rooms_of_any_name", "ten_thousand_arrive_by_a_pattern_in_order")
class LosesByPattern(MemoryBroker):
    def _receive(self, arrived: Arrived) -> None:
        if not (arrived.channel.startswith("match:") and arrived.envelope.rstrip(b" .").endswith(b"7")):
            super()._receive(arrived)


@fails("ten_thousand_arrive_by_a_pattern_in_order", "a_pattern_matches_rooms_of_any_name")
class RepeatsByPattern(MemoryBroker):
    def _receive(self, arrived: Arrived) -> None:
        super()._receive(arrived)
        if arrived.channel.startswith("match:") and arrived.envelope.rstrip(b" .").endswith(b"7"):
            super()._receive(arrived)


@fails("a_pattern_is_of_the_rooms_of_one_hub")
class GivesPatternsEverything(MemoryBroker):
    def _receive(self, arrived: Arrived) -> None:
        super()._receive(arrived)
        if not arrived.channel.startswith(("match:", "room:")):
            super()._receive(Arrived("match:*", arrived.envelope))


@fails("pattern_subscribed_means_that_it_arrives")
class ConfirmsPatternsTooEarly(MemoryBroker):
    def subscribe_pattern(self, pattern: str, receive: Callable[[bytes], None]) -> None:
        if self._loop is not None:
            self._loop.call_later(0.01, super().subscribe_pattern, pattern, receive)

    async def pattern_subscribed(self, pattern: str) -> None:
        pass


@fails("patterns_of_the_first_moment_work")
class ForgetsEarlyPatterns(MemoryBroker):
    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        for channel in list(self._patterns):
            self.unsubscribe(channel)
        await super().start(node, events)


@fails("unsubscribe_pattern_ends_the_envelopes")
class NeverLeavesAPattern(MemoryBroker):
    def unsubscribe_pattern(self, pattern: str) -> None:
        pass


@fails("unsubscribe_pattern_ends_the_envelopes")
class HasOnePattern(MemoryBroker):
    def subscribe_pattern(self, pattern: str, receive: Callable[[bytes], None]) -> None:
        for channel in list(self._patterns):
            self.unsubscribe(channel)
        super().subscribe_pattern(pattern, receive)


@fails("stored_envelopes_arrive_by_a_pattern_once")
class StoresWithoutPatterns(MemoryBroker):
    def _receive(self, arrived: Arrived) -> None:
        if not (arrived.channel.startswith("match:") and arrived.envelope[:1] == b"\xc1"):
            super()._receive(arrived)


@fails("patterns_are_restored_after_a_lost_connection")
class LosesPatternsWithTheConnection(MemoryBroker):
    def _connect(self) -> None:
        if self._was_connected:
            for channel in self._patterns:
                self._subscriptions.pop(channel, None)
        super()._connect()


@fails("a_pattern_that_the_engine_lost_is_found")
class ProbesNoPatterns(MemoryBroker):
    def _send_probe(self) -> None:
        requested = self._requested
        self._requested = {channel for channel in requested if channel not in self._patterns}
        super()._send_probe()
        self._requested |= requested


@fails("a_refused_pattern_is_told_and_heals")
class GivesUpARefusedPattern(MemoryBroker):
    def _enqueue_changes(self) -> None:
        for channel in list(self._changed):
            if channel in self._patterns and self._subscriptions[channel].interrupted:
                del self._changed[channel]
        super()._enqueue_changes()
