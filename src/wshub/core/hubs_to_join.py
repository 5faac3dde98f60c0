"""The hubs with a broker of each thread: an ASGI server has them join the other nodes before it accepts.

A server cannot see which hubs the endpoints of an application use. So it looks at all hubs that its thread has made.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from wshub.core.hub_core import HubCore

__all__ = ["HUBS_OF_THREAD"]


class HubsOfThread(threading.local):
    """The hubs with a broker that this thread has made, while they live."""

    def __init__(self) -> None:
        self.hubs: WeakSet[HubCore] = WeakSet()


HUBS_OF_THREAD = HubsOfThread()
