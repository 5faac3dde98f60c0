# cython: language_level=3
"""Makes a link of a socket that this program has connected, or has accepted by itself."""

from wshub.links.asyncio_link cimport AsyncioLink
from wshub.links.link cimport Link, LinkCounters, Receiver

import asyncio
import socket
from functools import partial

# Seconds that a TLS handshake may take, as in asyncio.
cdef int HANDSHAKE_SECONDS = 60


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
        reactor: that the link is to be one of. Where it does not adopt sockets, the link has a transport of the
            running loop.
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
    if reactor.adopts:
        if ssl is not None:
            return await connect_with_tls(reactor, connected, receiver, counters, ssl, server_hostname)
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


async def connect_with_tls(
    reactor, connected, Receiver receiver not None, LinkCounters counters not None, ssl, server_hostname
):
    """Return a TLS link of the reactor for a connected socket, after its handshake."""
    established = asyncio.get_running_loop().create_future()
    cdef Link link = reactor.adopt_client(
        connected.detach(), receiver, ssl, server_hostname, partial(set_result, established)
    )
    link.counters = counters
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            error = await established
    except BaseException:
        link.receiver = None
        link.abort(False)
        raise
    if error is not None:
        raise error
    return link


def set_result(future, result):
    if not future.done():
        future.set_result(result)
