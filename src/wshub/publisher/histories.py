"""The histories of rooms, as a program without a hub has to know them."""

from __future__ import annotations

from collections.abc import Mapping

from wshub.brokers.interface import HistoryConfig
from wshub.core.config import RoomConfig
from wshub.core.room_configs import RoomConfigs
from wshub.errors import ConfigurationError
from wshub.protocol.validation import exact_str

__all__ = ["PublisherHistories"]


class PublisherHistories:
    """The HistoryConfig of each room to which a publisher stores its messages.

    Args:
        histories: by the name of the room, or a pattern with one ``*``; or None.

    Raises:
        ConfigurationError: a value is no HistoryConfig.
    """

    def __init__(self, histories: Mapping[str, HistoryConfig] | None) -> None:
        self._rooms = RoomConfigs()
        if not histories:
            return
        if not isinstance(histories, Mapping):
            raise ConfigurationError(f'histories must be a dict, such as {{"chat:*": HistoryConfig()}}: {histories!r}')
        for pattern, config in histories.items():
            if not isinstance(config, HistoryConfig):
                raise ConfigurationError(f"the history of {pattern!r} must be a HistoryConfig, not {config!r}")
            self._rooms.set(exact_str("the name of a room must be a str", pattern), RoomConfig(history=config))

    def find(self, room: str) -> HistoryConfig | None:
        """Return the configuration of a room's history; None if messages to the room are not stored."""
        config = self._rooms.find(room)
        return config.history if config is not None else None
