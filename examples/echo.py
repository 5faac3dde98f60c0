"""Sends every message back to where it came from.

Run it, and connect with any WebSocket client: ``python examples/echo.py --port 8080``.
"""

import argparse
import asyncio
import contextlib

from wshub import Connection, EventHandler, Hub, HubConfig, Message


def echo(connection: Connection, message: Message) -> None:
    connection.send(message)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--max-message-size", type=int, default=64 * 1024, help="in bytes")
    parser.add_argument("--compression", action="store_true", help="compress for clients that offer it")
    arguments = parser.parse_args()

    config = HubConfig(max_message_size=arguments.max_message_size, enable_compression=arguments.compression)
    hub = Hub(config)
    async with hub.serve(arguments.host, arguments.port, EventHandler(on_message=echo)) as server:
        print(f"echoing on ws://{arguments.host}:{server.port}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
