"""TLS clients of other projects at ``Hub.serve``: versions 1.2 and 1.3, RSA and ECDSA."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import websockets

from tests.support import chromium
from tests.support.certificate import Certificate
from tests.support.foreign_clients import NODE_PACKAGE
from tests.support.node_packages import node_modules
from wshub import EventHandler, Hub, HubConfig

LARGE = "x" * 300_000

NODE_SCRIPT = """
const WebSocket = require("ws");
const socket = new WebSocket(process.argv[1]);
socket.on("open", () => socket.send("x".repeat(300000)));
socket.on("message", (data) => { console.log(data.length); socket.close(1000); });
socket.on("close", (code) => console.log(code));
"""

PAGE_SCRIPT = """
(url) => new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    socket.onopen = () => socket.send("x".repeat(300000));
    socket.onmessage = (event) => { socket.close(1000); resolve(event.data.length); };
    socket.onerror = () => reject(new Error("the connection has failed"));
})
"""


@pytest.fixture(scope="module", params=["RSA", "ECDSA"])
def authority(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(params=["1.2", "1.3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    return ssl.TLSVersion.TLSv1_2 if request.param == "1.2" else ssl.TLSVersion.TLSv1_3


@contextlib.asynccontextmanager
async def echoing(authority: Certificate, version: ssl.TLSVersion) -> AsyncIterator[int]:
    handler = EventHandler(on_message=lambda connection, message: connection.send(message))
    context = authority.server_context()
    context.minimum_version = context.maximum_version = version
    config = HubConfig(max_message_size=1 << 20, max_send_buffer=1 << 20)
    async with Hub(config).serve("127.0.0.1", 0, handler, ssl=context, health_path="/health") as server:
        yield server.port


async def output_of(*command: str, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | environment,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_websockets(authority, version) -> None:
    async with echoing(authority, version) as port:
        url = f"wss://localhost:{port}/"
        async with websockets.connect(url, ssl=authority.client_context(), proxy=None, max_size=None) as client:
            await client.send(LARGE)
            assert await client.recv() == LARGE
        assert client.close_code == 1000


async def test_aiohttp(authority, version) -> None:
    async with echoing(authority, version) as port, aiohttp.ClientSession() as session:
        url = f"wss://localhost:{port}/"
        async with session.ws_connect(url, ssl=authority.client_context(), max_msg_size=0) as client:
            await client.send_str(LARGE)
            assert await client.receive_str() == LARGE


async def test_node(authority, version) -> None:
    modules = node_modules(NODE_PACKAGE)
    if isinstance(modules, str):
        pytest.skip(modules)
    async with echoing(authority, version) as port:
        paths: dict[str, Any] = {"NODE_PATH": str(modules), "NODE_EXTRA_CA_CERTS": authority.chain}
        output = await output_of("node", "-e", NODE_SCRIPT, f"wss://localhost:{port}/", **paths)
        assert output.split() == ["300000", "1000"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
async def test_curl(authority, version) -> None:
    async with echoing(authority, version) as port:
        url = f"https://localhost:{port}/health/live"
        command = ["curl", "--silent", "--show-error", "--include", "--cacert", authority.chain, "--noproxy", "*"]
        assert "200 OK" in await output_of(*command, url)


@pytest.mark.long
@pytest.mark.skipif(chromium.MISSING is not None, reason=chromium.MISSING or "")
def test_chromium(authority) -> None:
    def browse(port: int) -> int:
        with chromium.running_browser() as browser, browser.new_context(ignore_https_errors=True) as context:
            page = context.new_page()
            page.goto(f"https://localhost:{port}/health/live")
            return page.evaluate(PAGE_SCRIPT, f"wss://localhost:{port}/")

    async def scenario() -> int:
        async with echoing(authority, ssl.TLSVersion.TLSv1_3) as port:
            return await asyncio.to_thread(browse, port)

    assert asyncio.run(scenario()) == 300_000
