"""Hostile and unlucky peers of the reactor's TLS connections, and the pair of BIOs that all of these share."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import random
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.links.tls_fuzz import fuzz
from tests.support.half_tls import HalfTls
from tests.support.raw_peers import masked
from tests.support.reactor import needs_reactor
from tests.support.tls_peers import TlsPeer
from wshub import EventHandler, Frame, Hub, HubConfig
from wshub.links.link import LinkCounters
from wshub.links.link_probe import LinkProbe
from wshub.links.tls.contexts import ServerTls

pytestmark = needs_reactor

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Echoes:
    """A hub that echoes, over TLS in the reactor."""

    def __init__(self, hub: Hub, port: int, certificate: Any) -> None:
        self.hub = hub
        self.port = port
        self._certificate = certificate
        self.closes: list[int] = []

    def peer(self, version: str = "1.3") -> TlsPeer:
        context = self._certificate.client_context()
        context.maximum_version = VERSIONS[version]
        return TlsPeer(self.port, context)

    @contextlib.asynccontextmanager
    async def opened(self, version: str = "1.3") -> AsyncIterator[TlsPeer]:
        async with self.peer(version) as peer:
            await peer.open()
            yield peer

    async def until(self, condition: Any) -> None:
        for _ in range(20_000):
            if condition():
                return
            await asyncio.sleep(0.001)
        raise AssertionError("the condition stays false")


@contextlib.asynccontextmanager
async def echoes(certificate: Any, **settings: Any) -> AsyncIterator[Echoes]:
    hub = Hub(HubConfig(max_message_size=1 << 22, **settings))
    handler = EventHandler(
        on_message=lambda connection, message: connection.send(message),
        on_close=lambda _connection, code, _reason: served.closes.append(code),
    )
    async with hub.serve(
        "127.0.0.1", 0, handler, ssl_certfile=certificate.chain, ssl_keyfile=certificate.key
    ) as server:
        served = Echoes(hub, server.port, certificate)
        yield served
        assert hub.bind().bytes_in_shared_pair == 0


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


# The shared pair


async def test_records_behind_a_damaged_one_do_not_reach_another_connection(certificate, version) -> None:
    async with echoes(certificate) as served, served.opened(version) as good:
        for number in range(5):
            async with served.opened(version) as bad:
                damaged = bytearray(bad.seal(masked(Frame.binary(b"damaged"))))
                damaged[-1] ^= 1
                rest = [bad.seal(masked(Frame.binary(b"behind %d" % index))) for index in range(20)]
                await bad.send_raw(bytes(damaged) + b"".join(rest))
                error = await bad.is_ended()
                assert isinstance(error, ssl.SSLError)
                assert "BAD_RECORD_MAC" in str(error).upper().replace(" ", "_")
            await good.echo(b"number %d" % number)
        assert served.hub.connection_count == 1
    assert served.closes[:5] == [1006] * 5


async def test_records_behind_close_notify_do_not_reach_another_connection(certificate, version) -> None:
    async with echoes(certificate) as served, served.opened(version) as good:
        async with served.opened(version) as bad:
            data = bad.seal(masked(Frame.binary(b"last")))
            with contextlib.suppress(ssl.SSLWantReadError):
                bad.tls.unwrap()
            await bad.send_raw(data + bad.outgoing.read() + data * 20)
            assert await bad.message() == b"last"
            assert await bad.is_ended() is None
        await good.echo()


async def test_failures_and_successes_in_turns_leave_no_error_behind(certificate) -> None:
    """An error in OpenSSL's queue, which a thread has one of, would end the connection that is read next."""
    async with echoes(certificate) as served, served.opened() as first, served.opened("1.2") as second:
        for number in range(20):
            garbage = socket.create_connection(("127.0.0.1", served.port))
            garbage.setblocking(False)
            kinds = [b"\x16\x03\x01\x00\x05hello", b"\x99" * 100, b"\x17\x03\x03\xff\xff", b"\x16\x03\x03\x00\x00"]
            await asyncio.get_running_loop().sock_sendall(garbage, kinds[number % 4])
            await first.echo(b"first %d" % number)
            peer = served.peer()
            peer.tls.context.check_hostname = False
            with contextlib.suppress(ConnectionError):
                await peer.send_raw(b"\x16\x03\x01\x00\x02\x01\x00")
            await second.echo(b"second %d" % number)
            peer.socket.close()
            garbage.close()
        assert served.hub.connection_count == 2


async def test_garbage_in_place_of_any_record_ends_that_connection_alone(certificate, version) -> None:
    chance = random.Random(20)
    async with echoes(certificate) as served, served.opened(version) as good:
        for _ in range(30):
            async with served.opened(version) as bad:
                record = bytearray(bad.seal(masked(Frame.binary(bytes(100)))))
                for _ in range(chance.randrange(1, 10)):
                    record[chance.randrange(len(record))] = chance.randrange(256)
                await bad.send_raw(bytes(record) + chance.randbytes(chance.randrange(40_000)))
                bad.socket.shutdown(socket.SHUT_WR)
                await bad.reads_to_end()
            await good.echo(chance.randbytes(50))
        await served.until(lambda: served.hub.connection_count == 1)


async def test_random_bytes_in_place_of_records_harm_nobody(certificate) -> None:
    assert await fuzz(1.5, 20, certificate) >= 8


# Records


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_record_may_be_split_at_every_byte(certificate, version) -> None:
    async with echoes(certificate) as served, served.opened(version) as peer:
        record = peer.seal(masked(Frame.binary(b"in two pieces")))
        length = len(record)
        for place in range(1, length):
            await peer.send_raw(record[:place])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await peer.send_raw(record[place:])
            assert await peer.message() == b"in two pieces"
            record = peer.seal(masked(Frame.binary(b"in two pieces")))
        for byte in record:
            await peer.send_raw(bytes([byte]))
            await asyncio.sleep(0)
        assert await peer.message() == b"in two pieces"


async def test_a_handshake_may_come_byte_by_byte(certificate, version) -> None:
    async with echoes(certificate) as served:
        peer = served.peer(version)
        while True:
            try:
                peer.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                for byte in peer.outgoing.read():
                    await peer.send_raw(bytes([byte]))
                    await asyncio.sleep(0)
                await peer._receive_more()
        async with peer:
            await peer.open()
            await peer.echo()


@pytest.mark.parametrize("header", [b"\x17\x03\x03\x48\x06", b"\x17\x03\x03\xff\xff", b"\x40\x03\x03\x00\x10"])
async def test_an_oversized_record_ends_the_connection_at_its_header(certificate, version, header) -> None:
    async with echoes(certificate) as served, served.opened(version) as peer:
        await peer.send_raw(header)
        assert isinstance(await peer.is_ended(), (ssl.SSLError, ConnectionError))
        await served.until(lambda: served.closes == [1006])


@pytest.mark.parametrize("wrong", [b"\x80\x2e\x01\x03\x01", b"\x00" * 5, b"\x16\x02\x00\x00\x05"])
async def test_what_is_no_record_ends_a_handshake(certificate, wrong) -> None:
    """Whole records follow: nothing of them may be kept."""
    async with echoes(certificate) as served:
        peer = served.peer()
        await peer.send_raw(wrong + b"\x16\x03\x01\x00\x02\x01\x00" * 2000)
        await peer.reads_to_end()
        peer.socket.close()
        await served.until(lambda: served.hub.bind().connection_count == 0)


async def test_renegotiation_is_refused(certificate) -> None:
    async with echoes(certificate) as served:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{served.port}", "-tls1_2", "-legacy_renegotiation"]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdin is not None
        assert process.stdout is not None
        output = b""
        while b"Verify return code" not in output:
            output += await process.stdout.read(1 << 16)
        # s_client renegotiates when a line of its input is R.
        process.stdin.write(b"R\n")
        await process.stdin.drain()
        await served.until(lambda: served.hub.bind().connection_count == 0)
        process.stdin.close()
        output += await process.stdout.read()
        await process.wait()
        assert b"RENEGOTIATING" in output
        async with served.opened("1.2") as peer:
            await peer.echo()


async def test_early_data_is_not_offered(certificate, tmp_path) -> None:
    async with echoes(certificate) as served:
        saved = str(tmp_path / "session.pem")
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{served.port}", "-tls1_3", "-sess_out", saved]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdin is not None
        assert process.stdout is not None
        # The refusal comes behind the tickets, and ends s_client.
        process.stdin.write(b"no request\r\n\r\n")
        output = await process.stdout.read()
        process.stdin.close()
        await process.wait()
        assert b"Max Early Data: 0" in output


# Floods


async def test_a_flood_of_empty_records_ends_the_connection(certificate, version) -> None:
    """openssl's own limit for empty records holds here: 32 in a row."""
    async with echoes(certificate) as served, served.opened(version) as good, served.opened(version) as peer:
        # An empty record of application data cannot be made with ssl. An unencrypted one is as good as damaged.
        await peer.send_raw(b"\x17\x03\x03\x00\x00" * 2000)
        await peer.is_ended()
        await served.until(lambda: served.hub.connection_count == 1)
        await good.echo()


async def test_tiny_records_are_read_in_small_pieces(certificate, version) -> None:
    async with echoes(certificate) as served, served.opened(version) as flood, served.opened(version) as other:
        message = masked(Frame.binary(b""))
        records = b"".join(flood.seal(bytes([byte])) for byte in message * 500)
        sending = asyncio.ensure_future(flood.send_raw(records))
        for _ in range(5):
            await other.echo()
        for _ in range(500):
            assert await flood.message() == b""
        await sending


async def test_many_handshakes_take_their_turns(certificate) -> None:
    """Eight steps in an iteration of the loop: 64 at once would hold it up for 30 ms and more."""
    async with echoes(certificate) as served, served.opened() as other:
        context = certificate.client_context()
        peers = [HalfTls(served.port, context, "a hello") for _ in range(64)]
        answered, iterations = 0, 0
        while answered < len(peers):
            await asyncio.sleep(0)
            iterations += 1
            answered = sum(has_data(peer._socket) for peer in peers)
            assert answered <= 8 * iterations
            if iterations == 3:
                await other.send(masked(Frame.binary(b"meanwhile")))
            assert iterations < 100_000
        assert await other.message() == b"meanwhile"
        for peer in peers:
            peer.close()


def has_data(connected: socket.socket) -> bool:
    try:
        return bool(connected.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


async def test_a_handshake_without_end_is_ended_by_its_size(certificate) -> None:
    async with echoes(certificate) as served:
        peer = HalfTls(served.port, certificate.client_context(), "nothing")
        loop = asyncio.get_running_loop()
        # A ClientHello that says to be 16 MiB long.
        start = b"\x16\x03\x01\x40\x00\x01\xff\xff\xff"
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(peer._socket, start + bytes(16384 - 4))
            for _ in range(100):
                await loop.sock_sendall(peer._socket, b"\x16\x03\x01\x40\x00" + bytes(16384))
        await peer.ended()
        await served.until(lambda: served.hub.bind().connection_count == 0)


async def test_http_without_tls_is_told_what_is_wrong(certificate) -> None:
    async with echoes(certificate) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        response = await reader.read()
        head, _, body = response.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert f"Content-Length: {len(body)}".encode() in head
        assert b"TLS" in body
        writer.close()
        await served.until(lambda: served.hub.bind().connection_count == 0)


# Ends


@contextlib.asynccontextmanager
async def probed(certificate: Any) -> AsyncIterator[tuple[LinkProbe, TlsPeer]]:
    """A probe behind a TLS link, and its peer."""
    from wshub.links.epoll_reactor import EpollReactor

    reactor = EpollReactor(asyncio.get_running_loop(), LinkCounters())
    probe = LinkProbe()

    def accepted(link: Any) -> LinkProbe:
        probe.attach(link)
        return probe

    with socket.create_server(("127.0.0.1", 0)) as listening:
        await reactor.listen(listening, accepted, ssl=ServerTls(certificate.server_context()))
        async with TlsPeer(listening.getsockname()[1], certificate.client_context()) as peer:
            yield probe, peer
        reactor.close()


async def until(condition: Any) -> None:
    for _ in range(20_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the condition stays false")


async def test_a_cut_stream_is_told_from_a_close(certificate) -> None:
    async with probed(certificate) as (probe, peer):
        await peer.send(b"a part")
        peer.socket.shutdown(socket.SHUT_WR)
        await until(lambda: len(probe.events) == 2)
        assert probe.events == [("data", b"a part"), ("lost", errno.ECONNRESET)]
    async with probed(certificate) as (probe, peer):
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.unwrap()
        await peer.send_raw(peer.outgoing.read())
        await until(lambda: probe.events)
        peer.socket.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.01)
        assert probe.events == [("eof",)]


async def test_the_end_waits_while_the_receiver_pauses(certificate) -> None:
    async with probed(certificate) as (probe, peer):
        probe.on_event = lambda event: probe.pause() if event[0] == "data" else None
        data = peer.seal(b"last")
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.unwrap()
        await peer.send_raw(data + peer.outgoing.read())
        await until(lambda: probe.events)
        await asyncio.sleep(0.01)
        assert probe.events == [("data", b"last")]
        probe.resume()
        await until(lambda: len(probe.events) > 1)
        assert probe.events == [("data", b"last"), ("eof",)]


async def test_what_is_sealed_is_delivered_and_never_dropped(certificate) -> None:
    async with probed(certificate) as (probe, peer):
        sent = 0
        while not (probe.blocked and probe.queued > 200_000):
            for _ in range(100):
                probe.send(b"%0200d" % sent, droppable=True)
                sent += 1
            await asyncio.sleep(0)
        # The messages at the front of the queue have been encrypted already.
        assert probe.make_space(probe.charge - 1000)
        dropped = probe.counts["dropped"]["oldest"]
        probe.drop_unsent()
        counts = probe.counts
        assert counts["messages_pending"] > 0
        assert counts["messages_pending"] * 204 <= 2 * 16384 + 204
        assert counts["messages_accepted"] == sent
        expected = sent - dropped - counts["dropped"]["slow"]
        received = bytearray()
        while len(received) < 204 * expected:
            received += await peer.receive()
        assert received == b"".join(b"\x82\x7e\x00\xc8%0200d" % number for number in range(expected))
        await until(lambda: not probe.queued)
        assert probe.counts["messages_delivered"] == expected


async def test_the_close_of_this_side_is_a_close_notify(certificate, version) -> None:
    async with echoes(certificate) as served, served.opened(version) as peer:
        await peer.send(masked(Frame.close()))
        assert await peer.message() == b"\x03\xe8"
        assert await peer.is_ended() is None
        peer.socket.close()
        await served.until(lambda: served.hub.bind().connection_count == 0)


async def test_a_connection_is_idle_again_after_a_large_message(certificate) -> None:
    async with echoes(certificate, max_send_buffer=1 << 23) as served, served.opened() as peer:
        await peer.echo(bytes(100))
        gc.collect()
        for _ in range(3):
            await peer.echo(bytes(1 << 21))
        assert held_by_links() == {"partial": 0, "ciphertext": 0}


def held_by_links() -> dict[str, int]:
    from wshub.links.tls.epoll_tls_link import EpollTlsLink

    links = [thing for thing in gc.get_objects() if type(thing) is EpollTlsLink]
    return {
        "partial": sum(link.partial_length for link in links),
        "ciphertext": sum(len(link.ciphertext or b"") for link in links),
    }
