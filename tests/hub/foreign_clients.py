"""WebSocket clients that others have written, each behind the same three methods."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import pytest
import websockets
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

NODE_PACKAGE = "ws@8.18.3"
NODE_SCRIPT = Path(__file__).with_name("foreign_client.js")
CHROMIUM_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


class ForeignClient(Protocol):
    """One connection."""

    async def send(self, message: str | bytes) -> None: ...

    async def receive(self) -> str | bytes: ...


Opening = Callable[[str], contextlib.AbstractAsyncContextManager[ForeignClient]]


class Websockets:
    def __init__(self, connection: websockets.ClientConnection) -> None:
        self.send = connection.send
        self.receive = connection.recv


@contextlib.asynccontextmanager
async def open_websockets(url: str, **parameters: Any) -> AsyncIterator[ForeignClient]:
    extensions = [ClientPerMessageDeflateFactory(**parameters)]
    options: dict[str, Any] = {"compression": None, "proxy": None, "max_size": None, "max_queue": None}
    async with websockets.connect(url, extensions=extensions, **options) as connection:
        assert connection.response is not None
        assert "permessage-deflate" in connection.response.headers["Sec-WebSocket-Extensions"]
        yield Websockets(connection)


class Aiohttp:
    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self.connection = connection

    async def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self.connection.send_str(message)
        else:
            await self.connection.send_bytes(message)

    async def receive(self) -> str | bytes:
        message = await self.connection.receive()
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
        return message.data


@contextlib.asynccontextmanager
async def open_aiohttp(url: str, compress: int) -> AsyncIterator[ForeignClient]:
    async with aiohttp.ClientSession() as session, session.ws_connect(url, compress=compress, max_msg_size=0) as socket:
        assert socket.compress
        yield Aiohttp(socket)


class Node:
    """A process of Node.js, told by lines of JSON what to send, and telling what it has received."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def send(self, message: str | bytes) -> None:
        line = {"text": message} if isinstance(message, str) else {"binary": base64.b64encode(message).decode()}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line).encode() + b"\n")
        await self.process.stdin.drain()

    async def receive(self) -> Any:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        assert line, "the process has ended"
        found = json.loads(line)
        return found["text"] if "text" in found else base64.b64decode(found["binary"])


def skip_under_a_sanitizer() -> None:
    if "WSHUB_SANITIZED" in os.environ:
        pytest.skip("a program of others does not run with a sanitizer loaded into it")


@functools.cache
def node_modules() -> Path:
    """Where the package is, installed once into a cache; skips the test where that cannot be."""
    skip_under_a_sanitizer()
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no Node.js on this machine")
    cache = Path(os.environ.get("WSHUB_CACHE") or Path.home() / ".cache" / "wshub")
    target = cache / f"node-{NODE_PACKAGE}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            made = Path(work) / "made"
            made.mkdir()
            command = ["npm", "install", "--prefix", str(made), "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run([*command, NODE_PACKAGE], capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                pytest.skip(f"{NODE_PACKAGE} cannot be installed: {done.stderr.strip()[-300:]}")
            with contextlib.suppress(OSError):  # another run was first
                made.rename(target)
    return target / "node_modules"


@contextlib.asynccontextmanager
async def open_node(url: str, **options: Any) -> AsyncIterator[ForeignClient]:
    process = await asyncio.create_subprocess_exec(
        *("node", str(NODE_SCRIPT), url, json.dumps(options)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 24,
        env={**os.environ, "NODE_PATH": str(node_modules())},
    )
    try:
        assert process.stdout is not None
        assert b"permessage-deflate" in await process.stdout.readline()
        yield Node(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


class Chromium:
    """A page of a headless browser."""

    def __init__(self, page: Any) -> None:
        self.page = page

    async def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self.page.evaluate("message => socket.send(message)", message)
        else:
            await self.page.evaluate("octets => socket.send(new Uint8Array(octets))", list(message))

    async def receive(self) -> str | bytes:
        message = await self.page.evaluate("next()")
        return message if isinstance(message, str) else bytes(message)


PAGE = """
(url) => new Promise((opened, failed) => {
    const waiting = [], received = [];
    window.next = () => new Promise(found => { waiting.push(found); match(); });
    function match() {
        while (waiting.length && received.length) waiting.shift()(received.shift());
    }
    window.socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => opened(socket.extensions);
    socket.onerror = () => failed(new Error("no connection"));
    socket.onclose = event => { received.push("closed with " + event.code); match(); };
    socket.onmessage = event => {
        received.push(typeof event.data === "string" ? event.data : Array.from(new Uint8Array(event.data)));
        match();
    };
})
"""


@contextlib.asynccontextmanager
async def open_chromium(url: str) -> AsyncIterator[ForeignClient]:
    skip_under_a_sanitizer()
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium on this machine")
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=CHROMIUM_OPTIONS)
        try:
            page = await browser.new_page()
            assert "permessage-deflate" in await page.evaluate(PAGE, url)
            yield Chromium(page)
        finally:
            await browser.close()


CLIENTS: dict[str, Opening] = {
    "websockets": open_websockets,
    "websockets, forgets": functools.partial(open_websockets, server_no_context_takeover=True),
    "websockets, remembers": functools.partial(open_websockets, client_max_window_bits=True),
    "websockets, small windows": functools.partial(open_websockets, server_max_window_bits=9, client_max_window_bits=9),
    "websockets, medium windows": functools.partial(
        open_websockets, server_max_window_bits=12, client_max_window_bits=12
    ),
    "aiohttp": functools.partial(open_aiohttp, compress=15),
    "aiohttp, small window": functools.partial(open_aiohttp, compress=9),
    "node": open_node,
    "node, forgets": functools.partial(open_node, serverNoContextTakeover=True, clientNoContextTakeover=True),
    "node, small windows": functools.partial(open_node, serverMaxWindowBits=10, clientMaxWindowBits=10),
    "chromium": open_chromium,
}
