"""Has the hubs of a uvicorn server join other nodes before the server accepts, and close when it has ended.

Without that, a worker would join the others at its first connection. If all workers are replaced, the last one that
leaves would find no other to hand over to.
"""

from __future__ import annotations

from typing import Any

from uvicorn.server import Server

from wshub.uvicorn.server_hubs import Hubs, hubs_in_use, hubs_to_join

__all__ = ["join_before_accepting"]


def join_before_accepting(websocket_class: type) -> None:
    """Do so for the servers with that class of WebSocket protocols. Others behave as before.

    uvicorn calls nothing between the start of the application and accept(2). So two methods of its server are replaced.
    """
    server: Any = Server
    server.startup = _startup_with(server.startup, websocket_class)
    server.shutdown = _shutdown_with(server.shutdown)


def _startup_with(original: Any, websocket_class: type) -> Any:
    async def startup(self: Any, *arguments: Any, **keywords: Any) -> None:
        served_by = self.config.ws_protocol_class
        if not isinstance(served_by, type) or not issubclass(served_by, websocket_class):
            await original(self, *arguments, **keywords)
            return
        start_application = self.lifespan.startup

        async def start_and_join() -> None:
            in_use_before = hubs_in_use()
            await start_application()
            hubs = [] if self.lifespan.should_exit else hubs_to_join(self.config, in_use_before)
            if hubs:
                await Hubs.of(self.server_state).join(hubs)

        self.lifespan.startup = start_and_join
        try:
            await original(self, *arguments, **keywords)
        except BaseException:
            # It cannot listen, or it is cancelled or told to exit.
            await _leave(self)
            raise

    return startup


def _shutdown_with(original: Any) -> Any:
    async def shutdown(self: Any, *arguments: Any, **keywords: Any) -> None:
        try:
            await original(self, *arguments, **keywords)
        finally:
            await _leave(self)

    return shutdown


async def _leave(server: Any) -> None:
    hubs = Hubs.existing(server.server_state)
    if hubs is not None:
        await hubs.leave()
