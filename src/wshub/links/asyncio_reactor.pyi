import asyncio
import socket
import ssl as ssl_module
from collections.abc import Callable
from typing import Any

from wshub.links.link import Ledger

class AsyncioReactor:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ledger: Ledger,
        ssl: ssl_module.SSLContext | None = None,
        timeout: float = 10,
    ) -> None: ...
    @property
    def connection_count(self) -> int: ...
    @property
    def adopts(self) -> bool: ...
    async def listen(
        self, listening_socket: socket.socket, accepted: Callable[[Any], Any], *, backlog: int = 100
    ) -> None: ...
    def unlisten(self, descriptor: int) -> None: ...
    def resume_accepting(self) -> None: ...
    def release(self) -> None: ...
    def close(self) -> None: ...
