"""The brokers of the hubs of this process: one broker joins one hub, and hubs of one name would be mixed up."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from wshub.brokers.interface import Broker
from wshub.errors import ConfigurationError

if TYPE_CHECKING:
    from wshub.core.hub_core import HubCore

__all__ = ["BROKERS_IN_USE"]


class BrokersInUse:
    """The broker of each hub, and where that broker was said to be."""

    def __init__(self) -> None:
        self.forget_all()

    def forget_all(self) -> None:
        """Forget every hub. A forked process needs it: the hubs are its parent's, and a thread may hold the lock."""
        self._lock = threading.Lock()
        self._hubs: WeakKeyDictionary[HubCore, tuple[Broker, str, str | None]] = WeakKeyDictionary()

    def take(self, hub: HubCore, broker: Broker, name: str, place: str | None) -> None:
        """Note that a hub uses a broker from now on.

        Args:
            hub: that uses it.
            broker: that it uses.
            name: the name of the hub.
            place: the URL of the broker; None if the application has made the broker. A broker that has an attribute
                ``place`` knows better.

        Raises:
            ConfigurationError: another hub that is in use has the same broker, or the same name and place.
        """
        place = getattr(broker, "place", None) or place
        with self._lock:
            for other, (others_broker, others_name, others_place) in tuple(self._hubs.items()):
                if other is hub or not other.is_in_use:
                    continue
                if others_broker is broker:
                    raise ConfigurationError("two hubs have the same broker: make a broker for each of them")
                if place is not None and (others_name, others_place) == (name, place):
                    raise ConfigurationError(
                        f"two hubs of this program are named {name!r}, and their broker would mix them up: "
                        "give each a name, as in Hub(name=...)"
                    )
            self._hubs[hub] = (broker, name, place)


BROKERS_IN_USE = BrokersInUse()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=BROKERS_IN_USE.forget_all)
