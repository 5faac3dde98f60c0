"""Run a chat of two clients with an installed wshub: ``python chat.py zlib|isal|any [--command]``.

It needs only the standard library and wshub, so a copy of it runs outside of the checkout. ``zlib`` and ``isal`` name
the expected compressor; ``any`` accepts both. The library of ``isal`` must come from the environment, not from the
system.
With ``--command``, ``wshub serve`` serves an App. Otherwise ``Hub.serve`` serves a handler.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import sys
import zlib
from pathlib import Path

import wshub
from wshub import CompressionConfig, Connection, EventHandler, Hub, HubConfig, Message
from wshub.protocol.compression import compressed_once

REQUEST = (
    "GET /chat HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n"
    "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n\r\n"
)
APPLICATION = """
from wshub.app import App

app = App()
hub = app.enable_websocket(enable_compression=True)


@app.websocket("/chat")
async def chat(connection):
    connection.join("lobby")
    async for message in connection:
        hub.broadcast(message, room="lobby")
"""
TEXT = 1
CLOSE = 8


class Client:
    """The client's end of a connection. It reads and writes messages of up to 125 bytes on the wire."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> Client:
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        client.writer.write(REQUEST.format(base64.b64encode(os.urandom(16)).decode()).encode())
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert b"permessage-deflate" in head, head
        return client

    def send(self, opcode: int, payload: bytes) -> None:
        self.writer.write(bytes((0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload)

    async def receive(self) -> tuple[int, bytes]:
        first, length = await self.reader.readexactly(2)
        assert length < 126
        payload = await self.reader.readexactly(length)
        if first & 0x40:
            payload = zlib.decompress(payload + b"\0\0\xff\xff\x03\0", -15)
        return first & 15, payload


async def chat(port: int) -> None:
    """Let two clients chat. Both must see every line, in order."""
    clients: list[Client] = []
    for number in range(2):
        clients.append(await Client.connect(port))
        # A client that receives its own message is in the room.
        clients[number].send(TEXT, b"here is %d" % number)
        for client in clients:
            assert await client.receive() == (TEXT, b"here is %d" % number)
    lines = [b"line %d of %d, " % (number, sender) * 100 for number in range(3) for sender in range(2)]
    for number, line in enumerate(lines):
        packed = zlib.compressobj(wbits=-15)
        payload = (packed.compress(line) + packed.flush(zlib.Z_SYNC_FLUSH))[:-4]
        clients[number % 2].send(TEXT | 0x40, payload)
        for client in clients:
            assert await client.receive() == (TEXT, line)
    for client in clients:
        client.send(CLOSE, (1000).to_bytes(2, "big"))
        assert await client.receive() == (CLOSE, (1000).to_bytes(2, "big"))
        client.writer.close()


async def chat_with_hub() -> None:
    hub = Hub(HubConfig(compression=CompressionConfig(threshold=64)))

    def on_open(connection: Connection) -> None:
        connection.join("lobby")

    def on_message(connection: Connection, message: Message) -> None:
        hub.broadcast(message, room="lobby")

    async with hub.serve("127.0.0.1", 0, EventHandler(on_open=on_open, on_message=on_message)) as server:
        await chat(server.port)
    stats = hub.stats()
    assert stats.messages_delivered == stats.messages_accepted == 1 + 2 + 12, stats


async def chat_with_command() -> None:
    Path("application.py").write_text(APPLICATION)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("wshub")
    words = ("serve", "application:app", "--port", str(port), "--log-level", "warning")
    server = await asyncio.create_subprocess_exec(str(command), *words)
    try:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                assert server.returncode is None, "wshub serve has ended"
                await asyncio.sleep(0.05)
            else:
                writer.close()
                break
        await chat(port)
        server.terminate()
        assert await server.wait() in (0, -15), server.returncode
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


def check_engine(wanted: str) -> None:
    """Check that the expected library compresses, and that ISA-L comes from the wheel."""
    found = "zlib" if compressed_once.ENGINE is None else "isal"
    assert found == wanted, f"the compressor is {found}, not {wanted}"
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libisal" in line}
    assert bool(mapped) == (wanted == "isal"), mapped
    assert all(path.startswith(sys.prefix) for path in mapped), f"ISA-L is {mapped}"


def main() -> None:
    assert Path(wshub.__file__).is_relative_to(sys.prefix), f"wshub is {wshub.__file__}"
    if sys.argv[1] != "any":
        check_engine(sys.argv[1])
    talk = chat_with_command() if "--command" in sys.argv else chat_with_hub()
    asyncio.run(asyncio.wait_for(talk, 60))
    print("chat: pass")


if __name__ == "__main__":
    main()
