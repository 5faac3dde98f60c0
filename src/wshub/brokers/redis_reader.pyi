from collections.abc import Callable
from typing import Any

from wshub.brokers.interface import BrokerEvents
from wshub.brokers.sequence_numbers import InOrderReceiver
from wshub.errors import BrokerError

class RedisReader:
    envelopes_received: int
    envelopes_sent: int
    probe_channel: bytes
    earlier_probe_channel: bytes

    def __init__(
        self,
        events: BrokerEvents | InOrderReceiver | None,
        probe_channel: bytes,
        pushed: Callable[[list[Any]], None],
        settled: Callable[[], None],
        refused: Callable[[BrokerError], None],
        call_refused: Callable[[bytes, bytes, BrokerError], None] | None = None,
    ) -> None: ...
    def expect(self, waiting: Callable[[Any], None] | tuple[Any, ...] | None) -> None: ...
    def expect_stored(self, head: bytes, envelope: bytes) -> None: ...
    @property
    def replies_due(self) -> int: ...
    def feed(self, data: bytes) -> None: ...
    def end(self, error: Exception) -> int: ...
