"""Links of the reactor that are paused when the peer resets the connection, or ends its side."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support.reactor import needs_reactor
from tests.support.tls_peers import TlsPeer
from wshub.links.link import LinkCounters
from wshub.links.link_probe import LinkProbe
from wshub.links.tls.contexts import ServerTls

pytestmark = needs_reactor

# More than a link reads in one go.
LARGE = 200_000


class Peer:
    """A peer that does in one go what the reactor is to find in one event."""

    def __init__(self, connected: socket.socket, seal: Callable[[bytes], bytes]) -> None:
        self.socket = connected
        self.seal = seal

    def send(self, data: bytes) -> None:
        self.socket.setblocking(True)
        self.socket.sendall(self.seal(data))

    def end(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


async def until(condition: Callable[[], object]) -> None:
    """Run the loop until the condition is true. It has time for far more runs of the reactor than are needed."""
    for _ in range(5_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the condition stays false")


@pytest.fixture(params=["plain", "tls"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@contextlib.asynccontextmanager
async def probed(kind: str, certificate: Any) -> AsyncIterator[tuple[LinkProbe, Peer]]:
    """A probe behind a link of a reactor, and the peer."""
    from wshub.links.epoll_reactor import EpollReactor

    reactor = EpollReactor(asyncio.get_running_loop(), LinkCounters())
    probe = LinkProbe()

    def accepted(link: Any) -> LinkProbe:
        probe.attach(link)
        return probe

    tls = ServerTls(certificate.server_context()) if kind == "tls" else None
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await reactor.listen(listening, accepted, ssl=tls)
        port = listening.getsockname()[1]
        if kind == "tls":
            async with TlsPeer(port, certificate.client_context()) as peer:
                yield probe, Peer(peer.socket, peer.seal)
        else:
            with socket.create_connection(("127.0.0.1", port)) as connected:
                await until(lambda: probe.link is not None)
                yield probe, Peer(connected, bytes)
        assert reactor.bytes_in_shared_pair == 0
        reactor.close()


def pause_at_data(probe: LinkProbe) -> None:
    probe.on_event = lambda event: probe.pause() if event[0] == "data" else None


async def test_a_reset_behind_data_that_pauses_the_link_ends_it(kind, certificate) -> None:
    async with probed(kind, certificate) as (probe, peer):
        pause_at_data(probe)
        probe.send(b"unread")
        await asyncio.sleep(0.01)
        peer.send(b"last")
        peer.reset()
        await until(lambda: probe.count("lost"))
        assert probe.events == [("data", b"last"), ("lost", errno.ECONNRESET)]
        assert probe.counts["messages_pending"] == 0


async def test_a_reset_while_the_link_is_paused_ends_it_without_reading(kind, certificate) -> None:
    async with probed(kind, certificate) as (probe, peer):
        peer.send(b"first")
        await until(lambda: probe.events)
        probe.pause()
        peer.send(b"unread")
        await asyncio.sleep(0.01)
        peer.reset()
        await until(lambda: probe.count("lost"))
        assert probe.events == [("data", b"first"), ("lost", errno.ECONNRESET)]


async def test_a_receiver_that_pauses_after_the_reset_was_reported_is_told(kind, certificate) -> None:
    async with probed(kind, certificate) as (probe, peer):
        peer.send(bytes(LARGE))
        peer.reset()
        await until(lambda: probe.events)
        # The link may have been read to its end by now.
        probe.pause()
        await until(lambda: probe.count("lost"))
        assert probe.events[-1] == ("lost", errno.ECONNRESET)


async def test_the_end_of_the_peers_side_alone_loses_nothing(kind, certificate) -> None:
    async with probed(kind, certificate) as (probe, peer):
        pause_at_data(probe)
        peer.send(bytes(LARGE))
        peer.end()
        await until(lambda: probe.events)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert [event[0] for event in probe.events] == ["data"]
        assert not probe.closed
        # This side goes on.
        probe.send(b"still here")
        await until(lambda: not probe.queued)
        probe.on_event = None
        probe.resume()
        await until(lambda: probe.count("eof") or probe.count("lost"))
        assert probe.received == bytes(LARGE)
        # Without close_notify, the stream of a TLS peer has been cut.
        assert probe.events[-1] == (("eof",) if kind == "plain" else ("lost", errno.ECONNRESET))
