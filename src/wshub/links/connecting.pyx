# cython: language_level=3
"""Makes a link of a socket that this program has connected, or has accepted by itself."""

from wshub.links.asyncio_link cimport AsyncioLink
from wshub.links.link cimport Link, LinkCounters, Receiver

import asyncio
import socket


cdef class ConnectedLink(AsyncioLink):
    """The link of a connected socket, and the protocol of its transport."""

    def connection_made(self, transport):
        self.use(transport)


async def connect_link(
    reactor, connected, Receiver receiver not None, LinkCounters counters not None, *, ssl=None, server_hostname=None
):
    """Return a link for a connected socket, which the link owns from now on, also if this raises.

    The receiver may be called before this returns.

    Args:
        reactor: that the link is to be one of. Where it does not adopt sockets, and for TLS, the link has a transport
            of the running loop.
        connected: a non-blocking TCP or Unix socket.
        receiver: gets what arrives.
        counters: where bytes are counted.
        ssl: an ssl.SSLContext of the client's side, or None.
        server_hostname: the name that the server's certificate must have.

    Raises:
        OSError: the socket cannot be watched, or the TLS handshake has failed.
    """
    cdef Link link
    cdef ConnectedLink over_transport
    if ssl is None and reactor.adopts:
        link = reactor.adopt(connected.detach(), receiver)
        link.counters = counters
        return link
    loop = asyncio.get_running_loop()
    over_transport = ConnectedLink(None, loop)
    over_transport.counters = counters
    over_transport.receiver = receiver
    is_unix = connected.family == getattr(socket, "AF_UNIX", None)
    create = loop.create_unix_connection if is_unix else loop.create_connection
    try:
        await create(lambda: over_transport, sock=connected, ssl=ssl, server_hostname=server_hostname)
    except BaseException:
        over_transport.receiver = None
        connected.close()
        raise
    return over_transport
