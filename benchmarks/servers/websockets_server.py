"""websockets on uvloop, its asyncio server, without pings, and with its own compression where it is asked for."""

import ssl

import uvloop
from command_line import server_parser, ssl_context_of
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

connections: set[ServerConnection] = set()


async def echo_handler(connection: ServerConnection) -> None:
    # The load generator resets its connections; unhandled, each would be logged with a traceback.
    try:
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        pass


async def broadcast_handler(connection: ServerConnection) -> None:
    connections.add(connection)
    try:
        async for message in connection:
            broadcast(connections, message)
    except ConnectionClosed:
        pass
    finally:
        connections.discard(connection)


async def main(mode: str, port: int, compression: bool, context: ssl.SSLContext | None) -> None:
    handler = echo_handler if mode == "echo" else broadcast_handler
    async with serve(
        handler,
        "127.0.0.1",
        port,
        compression="deflate" if compression else None,
        ping_interval=None,
        max_size=16 * 1024 * 1024,
        backlog=4096,
        ssl=context,
    ) as server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = server_parser()
    parser.add_argument("--compression", action="store_true")
    arguments = parser.parse_args()
    uvloop.run(main(arguments.mode, arguments.port, arguments.compression, ssl_context_of(arguments)))
