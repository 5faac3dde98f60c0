"""WebSocket clients of other projects, each with the same methods."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import websockets
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from tests.support import chromium
from tests.support.node_packages import node_modules

NODE_PACKAGE = "ws@8.18.3"
NODE_SCRIPT = Path(__file__).with_name("foreign_client.js")
EXTENSION = "permessage-deflate"


class ForeignClient(Protocol):
    """One connection."""

    async def send(self, message: str | bytes) -> None: ...

    async def receive(self) -> str | bytes: ...


class FragmentingClient(ForeignClient, Protocol):
    """One connection of a library in which the application chooses the fragments of a message."""

    async def send_fragments(self, fragments: Sequence[bytes], *, binary: bool) -> None:
        """Send a message as these fragments, with a ping between each two."""


Opening = Callable[[str], contextlib.AbstractAsyncContextManager[Any]]


class Websockets:
    def __init__(self, connection: websockets.ClientConnection) -> None:
        self.connection = connection
        self.send = connection.send
        self.receive = connection.recv

    async def send_fragments(self, fragments: Sequence[bytes], *, binary: bool) -> None:
        async def with_pings() -> AsyncIterator[bytes]:
            for index, fragment in enumerate(fragments):
                if index:
                    await self.connection.ping()
                yield fragment

        await self.connection.send(with_pings(), text=not binary)


@contextlib.asynccontextmanager
async def open_websockets(url: str, **parameters: Any) -> AsyncIterator[Websockets]:
    """Connect with the library's default offer, or with an offer of these parameters."""
    offer: dict[str, Any] = {}
    if parameters:
        offer = {"compression": None, "extensions": [ClientPerMessageDeflateFactory(**parameters)]}
    async with websockets.connect(url, **offer, proxy=None, max_size=None, max_queue=None) as connection:
        assert connection.response is not None
        assert EXTENSION in connection.response.headers["Sec-WebSocket-Extensions"]
        yield Websockets(connection)


@contextlib.asynccontextmanager
async def open_websockets_plain(url: str) -> AsyncIterator[Websockets]:
    async with websockets.connect(url, compression=None, proxy=None, max_size=None, max_queue=None) as connection:
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
async def open_aiohttp(url: str, compress: int) -> AsyncIterator[Aiohttp]:
    async with aiohttp.ClientSession() as session, session.ws_connect(url, compress=compress, max_msg_size=0) as socket:
        assert bool(socket.compress) == bool(compress)
        yield Aiohttp(socket)


class Node:
    """A Node.js process. It reads the messages to send, and writes the received ones, as lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def send(self, message: str | bytes) -> None:
        payload = message.encode() if isinstance(message, str) else message
        await self.send_fragments([payload], binary=isinstance(message, bytes))

    async def send_fragments(self, fragments: Sequence[bytes], *, binary: bool) -> None:
        line = {"fragments": [base64.b64encode(fragment).decode() for fragment in fragments], "binary": binary}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line).encode() + b"\n")
        await self.process.stdin.drain()

    async def receive(self) -> str | bytes:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        assert line, "the process has ended"
        found = json.loads(line)
        payload = base64.b64decode(found["data"])
        return payload if found["binary"] else payload.decode()


@contextlib.asynccontextmanager
async def open_node(url: str, compress: bool = True, **offer: Any) -> AsyncIterator[Node]:
    options = {"threshold": 0, **offer} if compress else False
    process = await asyncio.create_subprocess_exec(
        *("node", str(NODE_SCRIPT), url, json.dumps(options)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 24,
        env={**os.environ, "NODE_PATH": str(node_modules(NODE_PACKAGE))},
    )
    try:
        assert process.stdout is not None
        assert (EXTENSION.encode() in await process.stdout.readline()) == compress
        yield Node(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


class Chromium:
    """A page in a headless browser."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.received: list[dict[str, str]] = []

    async def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self.page.evaluate("message => socket.send(message)", message)
        else:
            await self.page.evaluate("base64 => socket.send(bytes(base64))", base64.b64encode(message).decode())

    async def receive(self) -> str | bytes:
        while not self.received:
            self.received = await self.page.evaluate("next()")
        found = self.received.pop(0)
        return found["text"] if "text" in found else base64.b64decode(found["base64"])


PAGE = """
(url) => new Promise((opened, failed) => {
    let received = [], match = () => {};
    window.bytes = base64 => Uint8Array.from(atob(base64), character => character.charCodeAt(0));
    // Resolves with everything received since the last call, once there is something.
    window.next = () => new Promise(found => {
        match = () => { if (received.length) { found(received); received = []; match = () => {}; } };
        match();
    });
    function base64(buffer) {
        let characters = "";
        for (const byte of new Uint8Array(buffer)) characters += String.fromCharCode(byte);
        return btoa(characters);
    }
    window.socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => opened(socket.extensions);
    socket.onerror = () => failed(new Error("no connection"));
    socket.onclose = event => { received.push({ text: "closed with " + event.code }); match(); };
    socket.onmessage = ({ data }) => {
        received.push(typeof data === "string" ? { text: data } : { base64: base64(data) });
        match();
    };
})
"""


@contextlib.asynccontextmanager
async def open_chromium(url: str, page_url: str | None = None) -> AsyncIterator[Chromium]:
    """Connect from a blank page, or from one whose certificate nobody knows. The browser offers compression."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium.PATH, args=chromium.OPTIONS)
        try:
            page = await browser.new_page(ignore_https_errors=page_url is not None)
            if page_url is not None:
                await page.goto(page_url)
            assert (EXTENSION in await page.evaluate(PAGE, url)) == (page_url is None)
            yield Chromium(page)
        finally:
            await browser.close()


FRAGMENTING: dict[str, Opening] = {
    "websockets": open_websockets,
    "websockets, server forgets": functools.partial(open_websockets, server_no_context_takeover=True),
    "websockets, client forgets": functools.partial(open_websockets, client_no_context_takeover=True),
    **{
        f"websockets, {bits} bits": functools.partial(
            open_websockets, server_max_window_bits=bits, client_max_window_bits=bits
        )
        for bits in range(9, 16)
    },
    "node": open_node,
    "node, both forget": functools.partial(open_node, serverNoContextTakeover=True, clientNoContextTakeover=True),
    "node, client forgets": functools.partial(open_node, clientNoContextTakeover=True, clientMaxWindowBits=True),
    "node, 9 bits": functools.partial(open_node, serverMaxWindowBits=9, clientMaxWindowBits=9),
    "node, 12 bits": functools.partial(open_node, serverMaxWindowBits=12, clientMaxWindowBits=12),
}
CLIENTS: dict[str, Opening] = {
    **FRAGMENTING,
    "aiohttp, 9 bits": functools.partial(open_aiohttp, compress=9),
    "aiohttp, 15 bits": functools.partial(open_aiohttp, compress=15),
    "chromium": open_chromium,
}
PLAIN_CLIENTS: dict[str, Opening] = {
    "websockets, plain": open_websockets_plain,
    "aiohttp, plain": functools.partial(open_aiohttp, compress=0),
    "node, plain": functools.partial(open_node, compress=False),
}


def why_missing(name: str) -> str | None:
    """Return the reason why this machine lacks the client, or None. The first call may take a while."""
    if "WSHUB_SANITIZED" in os.environ and name.startswith(("chromium", "node")):
        return "a foreign program does not run with a sanitizer preloaded"
    if name.startswith("chromium") and chromium.PATH is None:
        return "there is no chromium on this machine"
    if name.startswith("node"):
        found = node_modules(NODE_PACKAGE)
        return found if isinstance(found, str) else None
    return None
