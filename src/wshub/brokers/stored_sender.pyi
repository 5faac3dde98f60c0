from collections.abc import Callable

from wshub.brokers.interface import HistoryConfig

class StoredSender:
    def __init__(
        self, send_stored: Callable[[str, bytes, HistoryConfig], bool], channel: str, config: HistoryConfig
    ) -> None: ...
