from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

class AsgiLink:
    def __init__(
        self,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
        client: tuple[str, int] | None,
        *,
        private_codes: bool = False,
    ) -> None: ...
    def start(self) -> None: ...
    def end(self) -> None: ...
    def leave_close(self, code: int, reason: str) -> None: ...
