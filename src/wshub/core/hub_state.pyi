"""What a connection and its hub know of each other, and both of rooms and handlers."""

from collections.abc import Generator
from typing import Literal, final

from wshub.core.event_handler import EventHandler

@final
class Queued:
    """The result of ``send`` and of the other methods that queue: always the same object.

    ``await`` on it does nothing and gives None. The call has queued already. It is false, as None is.
    """

    def __await__(self) -> Generator[None]: ...
    def __bool__(self) -> Literal[False]: ...

class HandlerTable:
    """The handlers of one EventHandler, looked up once."""

    handler: EventHandler
    def __init__(self, handler: EventHandler, endpoint: bool = False, receives: bool = False) -> None: ...
