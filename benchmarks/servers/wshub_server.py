"""wshub's own complete server, `Hub.serve`, on the stdlib loop or on uvloop."""

import asyncio
import ssl

from command_line import server_parser, ssl_context_of

from wshub import CompressionConfig, Connection, EventHandler, Hub, HubConfig, Message

HOUR_MS = 3_600_000


def echo(connection: Connection, message: Message) -> None:
    connection.send(message)


ROOM = "all"

COMPRESSION = {
    "none": None,
    "default": CompressionConfig(),
    "zlib": CompressionConfig(engine="zlib"),
    "all": CompressionConfig(threshold=0),
    "shared": CompressionConfig(threshold=0),
    "takeover": CompressionConfig(server_context_takeover=True, client_context_takeover=True),
}


async def main(mode: str, port: int, compression: str, context: ssl.SSLContext | None, use_reactor: bool) -> None:
    hub = Hub(
        HubConfig(
            max_connections=20_000,
            max_message_size=16 * 1024 * 1024,
            ping_interval_ms=HOUR_MS,
            pong_timeout_ms=HOUR_MS,
            compression=COMPRESSION[compression],
            use_reactor=use_reactor,
        )
    )
    if compression == "shared":
        hub.configure_room(ROOM, compression="shared")
    # A room of messages that are compressed alone is compared with one that shares a window.
    has_room = compression in ("all", "shared")

    def relay(connection: Connection, message: Message) -> None:
        hub.broadcast(message, room=ROOM if has_room else None)

    def enter(connection: Connection) -> None:
        connection.join(ROOM)

    handler = EventHandler(on_open=enter if has_room else None, on_message=echo if mode == "echo" else relay)
    async with hub.serve("127.0.0.1", port, handler, ssl=context) as server:
        await server.wait_closed()


if __name__ == "__main__":
    parser = server_parser()
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--compression", choices=COMPRESSION, default="none")
    parser.add_argument("--transports", action="store_true", help="without the reactor")
    arguments = parser.parse_args()
    serving = main(
        arguments.mode, arguments.port, arguments.compression, ssl_context_of(arguments), not arguments.transports
    )
    if arguments.loop == "uvloop":
        import uvloop

        uvloop.run(serving)
    else:
        asyncio.run(serving)
