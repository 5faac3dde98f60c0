"""Hubs, their settings, and servers."""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import Any, assert_type

from wshub import (
    CompressionConfig,
    Connection,
    EventHandler,
    HandshakeError,
    Hub,
    HubConfig,
    RateLimits,
    RequestHead,
    RoomConfig,
    Server,
    SlowConsumer,
    UpgradeHook,
    __version__,
)

version: str = __version__


def check(request: RequestHead) -> Mapping[str, Any] | None:
    if request.path != "/chat":
        raise HandshakeError(404, "There is nothing at this path.")
    assert_type(request.getpeercert(), dict[str, Any] | None)
    assert_type(request.getpeercert(binary_form=True), bytes | None)
    return {"user": request.headers.get("user")}


async def check_later(request: RequestHead) -> dict[str, str]:
    return {"path": request.path}


def check_only(request: RequestHead) -> None:
    print(request.path)


hooks: list[UpgradeHook] = [check, check_later, check_only]
policy: SlowConsumer = "latest"
config = HubConfig(
    max_connections=5000,
    allowed_origins=["https://example.com"],
    trusted_proxies=["10.0.0.0/8", "127.0.0.1"],
    compression=CompressionConfig(),
    rates=RateLimits(messages=10),
    slow_consumer=policy,
)
hubs = [Hub(), Hub(config), Hub(config, on_upgrade=check, clock=lambda: 0.0), Hub(on_upgrade=check_later)]


async def endpoint(connection: Connection) -> None:
    await connection.receive()


class CountingHub(Hub):
    """A hub with an additional argument."""

    def __init__(self, config: HubConfig | None = None, *, name: str) -> None:
        super().__init__(config)
        self.name = name


async def main() -> None:
    async with Hub(config) as hub:
        assert_type(hub, Hub)
        hub.configure_room("prices", slow_consumer="drop_oldest", compression="shared")
        assert_type(hub.rooms, frozenset[str])
        async with hub.serve("127.0.0.1", 0, endpoint, path="/chat", subprotocols=["chat"]) as server:
            assert_type(server, Server)
            assert_type(server.port, int)
            await server.serve_forever()
        server = hub.serve("localhost", 8080, EventHandler(), close_hub=True)
        await server.start_serving()
        assert_type(server.is_serving(), bool)
        assert_type(server.sockets, tuple[socket.socket, ...])
        assert_type(server.get_loop(), asyncio.AbstractEventLoop)
        server.close()
        await server.close()
        await server.wait_closed()
        async with hub.serve(unix="/tmp/hub", handler=EventHandler(), ssl=ssl.create_default_context()):
            pass
    await CountingHub(name="metrics").close()


RoomConfig(compression="shared")
HubConfig(max_connection=1)  # type: ignore[call-arg]
HubConfig(slow_consumer="drop")  # type: ignore[arg-type]
HubConfig(trusted_proxies=[1])  # type: ignore[list-item]
Hub(max_connections=1)  # type: ignore[call-arg]
Hub(on_upgrade=endpoint)  # type: ignore[arg-type]
Hub().serve("127.0.0.1", 0, check)  # type: ignore[arg-type]
