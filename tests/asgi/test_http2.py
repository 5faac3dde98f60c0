"""WebSockets over HTTP/2 (RFC 8441). hypercorn presents them to the application like any others."""

from __future__ import annotations

import asyncio

import h2.config
import h2.connection
import h2.events
import h2.settings

from tests.support.asgi_servers import serving
from wshub import Frame, Opcode

MASK = b"\1\2\3\4"
ORIGIN = "http://ok.example"


class Client:
    """One HTTP/2 connection. Each of its streams is a WebSocket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._received: dict[int, bytes] = {}
        self._statuses: dict[int, str] = {}

    async def start(self) -> None:
        self._http.initiate_connection()
        self._flush()
        while not self._http.remote_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL):
            await self._step()

    async def open(self, authority: str, path: str, *fields: tuple[str, str]) -> tuple[int, str]:
        """Open a stream. Return its number, and the status of the response."""
        stream = self._http.get_next_available_stream_id()
        headers = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", path),
            (":authority", authority),
            ("sec-websocket-version", "13"),
            *fields,
        ]
        self._received[stream] = b""
        self._http.send_headers(stream, headers)
        self._flush()
        while stream not in self._statuses:
            await self._step()
        return stream, self._statuses[stream]

    def send(self, stream: int, frame: Frame) -> None:
        self._http.send_data(stream, frame.with_mask(MASK).encode())
        self._flush()

    async def receive(self, stream: int) -> Frame:
        while True:
            found = Frame.decode(self._received[stream])
            if found is not None:
                self._received[stream] = self._received[stream][found[1] :]
                return found[0]
            await self._step()

    async def _step(self) -> None:
        data = await self._reader.read(65536)
        assert data
        for event in self._http.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self._statuses[event.stream_id] = dict(event.headers)[":status"]
            elif isinstance(event, h2.events.DataReceived):
                self._received[event.stream_id] += event.data
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self._flush()

    def _flush(self) -> None:
        self._writer.write(self._http.data_to_send())


def test_two_streams_of_one_connection_are_connections_of_a_hub() -> None:
    async def scenario(address: str) -> None:
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        client = Client(reader, writer)
        await client.start()
        _, status = await client.open(address, "/ws/", ("origin", "http://evil.example"))
        assert status == "403"
        one, status = await client.open(address, "/ws/", ("origin", ORIGIN), ("x-name", "one"))
        assert status == "200"
        assert (await client.receive(one)).payload == b"/ws/ one"
        two, status = await client.open(address, "/ws/", ("origin", ORIGIN), ("sec-websocket-protocol", "a, b"))
        assert status == "200"
        assert (await client.receive(two)).payload == b"/ws/ -"
        client.send(one, Frame.text("hello"))
        for stream in (one, two):
            assert (await client.receive(stream)).payload == b"hello"
        client.send(two, Frame.text("bye"))
        frame = await client.receive(two)
        assert (frame.opcode, frame.payload) == (Opcode.CLOSE, b"\x0f\xa1as you wish")
        client.send(one, Frame.text("alone"))
        assert (await client.receive(one)).payload == b"alone"
        writer.close()

    with serving("hypercorn") as server:
        address = server.address
        asyncio.run(asyncio.wait_for(scenario(address), 20))
