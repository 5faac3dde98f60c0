import asyncio
import socket
import ssl as ssl_module

from wshub.links.asyncio_link import AsyncioLink
from wshub.links.link import Link, LinkCounters, Receiver
from wshub.links.reactor_api import Reactor

class ConnectedLink(AsyncioLink):
    def connection_made(self, transport: asyncio.Transport) -> None: ...

async def connect_link(
    reactor: Reactor,
    connected: socket.socket,
    receiver: Receiver,
    counters: LinkCounters,
    *,
    ssl: ssl_module.SSLContext | None = None,
    server_hostname: str | None = None,
) -> Link: ...
async def connect_with_tls(
    reactor: Reactor,
    connected: socket.socket,
    receiver: Receiver,
    counters: LinkCounters,
    ssl: ssl_module.SSLContext,
    server_hostname: str | None,
) -> Link:
    """Return a TLS link of the reactor for a connected socket, after its handshake."""

def set_result(future: asyncio.Future[object], result: object) -> None: ...
