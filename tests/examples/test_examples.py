"""The examples, run as a reader runs them: each in its own process, with real clients."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import websockets

from tests.support.free_ports import free_port
from tests.support.programs import running_program

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@contextlib.contextmanager
def running(name: str, *arguments: str) -> Iterator[int]:
    """Run an example until the end of the block. Yields the port on which it listens."""
    port = free_port()
    with running_program([sys.executable, str(EXAMPLES / name), "--port", str(port), *arguments], port=port):
        yield port


def test_echo_sends_back_what_it_gets() -> None:
    async def scenario(port: int) -> None:
        async with websockets.connect(f"ws://127.0.0.1:{port}", proxy=None, max_size=None) as client:
            for message in ("text", b"binary", "x" * 1_000_000):
                await client.send(message)
                assert await client.recv() == message

    with running("echo.py", "--max-message-size", "1000000") as port:
        asyncio.run(asyncio.wait_for(scenario(port), 20))


def test_broadcast_relays_to_all_connections() -> None:
    async def scenario(port: int) -> None:
        url = f"ws://127.0.0.1:{port}"
        async with websockets.connect(url, proxy=None) as one, websockets.connect(url, proxy=None) as two:
            await one.send("hello")
            assert await one.recv() == await two.recv() == "hello"

    with running("broadcast.py") as port:
        asyncio.run(asyncio.wait_for(scenario(port), 20))
