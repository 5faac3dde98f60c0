"""Send every kind of data that a hub sends, in every length, under valgrind. See test_uninitialised.py."""

from __future__ import annotations

import asyncio
import socket

from tests.memory.wire import CLOSE, OFFERING, PING, REQUEST, TEXT, frame
from wshub import CompressionConfig, EventHandler, HandshakeError, Hub, HubConfig, RateLimits

LENGTHS = [*range(131), *range(65_530, 65_541)]
BAD = [
    b"\x81\x02hi",
    b"\xf1\x80\0\0\0\0",
    frame(TEXT, b"\xff"),
    b"\x82\xff" + (1 << 40).to_bytes(8, "big") + bytes(4),
    frame(CLOSE, b"\x03"),
]


async def exchange(port: int, data: bytes, size: int | None = None, request: bytes = REQUEST) -> bytes:
    """Send the bytes after a request; return ``size`` bytes of the response, or all of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(data)
    answer = await (reader.read() if size is None or b" 101 " not in head else reader.readexactly(size))
    writer.close()
    return answer


def size_of(length: int) -> int:
    return length + (2 if length < 126 else 4 if length < 1 << 16 else 10)


async def main() -> None:
    def on_message(connection, message) -> None:
        if message.data.startswith("close"):
            connection.close(4000, message.data[5:])
        else:
            connection.send(message)
            connection.send(message.data)
            connection.hub.broadcast(message.data.encode())

    def on_upgrade(request) -> None:
        if "refuse" in request.query_params:
            raise HandshakeError(401, "r" * int(request.query_params["refuse"]), (("WWW-Authenticate", "Bearer"),))

    config = HubConfig(
        max_message_size=1 << 17,
        rates=RateLimits(control_frames=0),
        close_timeout_ms=100,
        compression=CompressionConfig(threshold=1, server_context_takeover=True),
    )
    hub = Hub(config, on_upgrade=on_upgrade)
    async with hub.serve("127.0.0.1", 0, EventHandler(on_message=on_message)) as server:
        port = server.port
        for length in LENGTHS:
            await exchange(port, frame(TEXT, b"x" * length), 3 * size_of(length))
        pings = b"".join(frame(PING, b"p" * length) for length in range(126))
        await exchange(port, pings, sum(map(size_of, range(126))))
        for length in range(119):
            await exchange(port, frame(TEXT, b"close" + b"r" * length) + frame(CLOSE))
            await exchange(port, frame(CLOSE, b"\x0f\xa0" + b"q" * length))
            await exchange(port, b"", request=REQUEST.replace(b"GET /", b"GET /?refuse=%d" % length))
        for bad in BAD:
            await exchange(port, bad)
        for length in (0, 1, 100, 70_000):
            data = frame(TEXT, b"compressed " * (length // 11)) + frame(CLOSE)
            assert await exchange(port, data, request=OFFERING)
        # A peer that reads late gets the rest of the queue in pieces, and only the last of many pongs.
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.setblocking(False)
            peer.sendall(REQUEST + frame(TEXT, b"z" * 60_000))
            for _ in range(20):
                await asyncio.sleep(0)
            hub.broadcast(bytes(100_000))
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(peer, pings)
            left = 3 * 60_004 + 100_010
            while left > 0:
                left -= len(await loop.sock_recv(peer, 65536))
    print(f"sent {hub.stats().bytes_sent}")


if __name__ == "__main__":
    asyncio.run(main())
