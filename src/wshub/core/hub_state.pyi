from collections.abc import Generator
from typing import Literal, final

from wshub.core.event_handler import EventHandler

@final
class Queued:
    def __await__(self) -> Generator[None]: ...
    def __bool__(self) -> Literal[False]: ...

class HandlerTable:
    handler: EventHandler
    def __init__(self, handler: EventHandler, endpoint: bool = False, receives: bool = False) -> None: ...
