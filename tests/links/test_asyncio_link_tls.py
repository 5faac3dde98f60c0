"""A link over a TLS transport of asyncio, at its end."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.tls_peers import TlsPeer
from wshub.links.asyncio_link import AsyncioLink
from wshub.links.link_probe import LinkProbe


class Accepted(asyncio.Protocol):
    """Tells when the connection is there, and when it has ended."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.made: asyncio.Future[Any] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made.set_result(transport)

    def connection_lost(self, error: BaseException | None) -> None:
        self.lost.set_result(None)


async def test_a_transport_that_has_ended_holds_no_bytes(certificate) -> None:
    """On Python 3.11 a TLS transport that is closed twice has no buffer any more, and raises when it is asked."""
    loop = asyncio.get_running_loop()
    accepted = Accepted()
    server = await loop.create_server(lambda: accepted, "127.0.0.1", 0, ssl=certificate.server_context())
    async with server, TlsPeer(server.sockets[0].getsockname()[1], certificate.client_context()):
        transport = await accepted.made
        probe = LinkProbe(AsyncioLink(transport, loop))
        probe.send(bytes(100))
        probe.flush_now()
        transport.abort()
        await accepted.lost
        transport.close()
        transport.close()
        # An exception out of a native method would be a warning, which fails the test.
        assert probe.poll_progress() == "taking"
        assert probe.poll_progress() == "at rest"
        probe.abort()
