"""Relays every message to all connections, the sender's too.

Run it, and connect with any WebSocket client: ``python examples/broadcast.py --port 8080``.
"""

import argparse
import asyncio
import contextlib

from wshub import Connection, EventHandler, Hub, HubConfig, Message


def relay(connection: Connection, message: Message) -> None:
    hub = connection.hub
    hub.broadcast(message)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--max-message-size", type=int, default=64 * 1024, help="in bytes")
    arguments = parser.parse_args()

    hub = Hub(HubConfig(max_message_size=arguments.max_message_size))
    async with hub.serve(arguments.host, arguments.port, EventHandler(on_message=relay)) as server:
        print(f"relaying on ws://{arguments.host}:{server.port}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
