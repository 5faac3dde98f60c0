"""``wshub serve`` with TLS, for clients of other projects."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from tests.support import chromium, firefox
from tests.support.certificate import Certificate
from tests.support.foreign_clients import open_chromium, open_node, why_missing
from tests.support.serving_hub import connected
from tests.support.wshub_serve import serving

APP = "tests.support.served_applications:api"
LARGE_APP = "tests.support.served_applications:large_api"
MESSAGE = bytes(range(256)) * 200


ECHOES = Path(__file__).with_name("echoes.js")
SIZES = [0, 125, 126, 65535, 65536, 1_000_000]


def within(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 40))


@pytest.fixture(scope="module")
def ecdsa(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("ecdsa"), "ECDSA")


@pytest.fixture(scope="module", params=["rsa-asyncio", "ecdsa-uvloop"])
def served(request: pytest.FixtureRequest, certificate: Certificate, ecdsa: Certificate) -> Iterator[Any]:
    """A port, and the certificate that is served there."""
    kind, loop = request.param.split("-")
    own = ecdsa if kind == "ecdsa" else certificate
    with serving(APP, "--loop", loop, "--ssl-certfile", own.chain, "--ssl-keyfile", own.key) as server:
        yield server.port, own
        assert "Traceback" not in server.end()


@pytest.fixture(scope="module", params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    """The only version that the client speaks."""
    return request.param


def context_of(certificate: Certificate, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = certificate.client_context()
    context.minimum_version = context.maximum_version = version
    return context


def test_websockets_and_httpx(served, version) -> None:
    port, certificate = served
    context = context_of(certificate, version)

    async def scenario() -> None:
        for path in ("ws/", "own"):
            async with connected(f"wss://localhost:{port}/{path}", ssl=context) as client:
                for message in (MESSAGE, b"", b"x"):
                    await client.send(message)
                    assert await client.recv() == message

    within(scenario())
    with httpx.Client(base_url=f"https://localhost:{port}", verify=context, trust_env=False) as client:
        assert client.get("/").json() == {"connections": 0}
        assert client.post("/items", content=MESSAGE * 40).json() == {"bytes": len(MESSAGE) * 40}


def test_aiohttp(served, version) -> None:
    port, certificate = served

    async def scenario() -> None:
        connector = aiohttp.TCPConnector(ssl=context_of(certificate, version))
        async with aiohttp.ClientSession(f"https://localhost:{port}", connector=connector) as session:
            async with session.get("/") as response:
                assert "connections" in await response.json()
            for path in ("/ws/", "/own"):
                async with session.ws_connect(path) as socket:
                    await socket.send_bytes(MESSAGE)
                    assert await socket.receive_bytes() == MESSAGE

    within(scenario())


def test_curl(served, version, tmp_path) -> None:
    port, certificate = served
    number = "1.2" if version is ssl.TLSVersion.TLSv1_2 else "1.3"
    body = tmp_path / "body"
    body.write_bytes(MESSAGE * 40)
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--cacert", certificate.chain]
    command += [f"--tlsv{number}", "--tls-max", number, "--header", "Expect: 100-continue"]
    command += ["--data-binary", f"@{body}", f"https://localhost:{port}/items", f"https://localhost:{port}/items"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=40, check=True).stdout
    assert output == json.dumps({"bytes": len(MESSAGE) * 40}, separators=(",", ":")) * 2


def test_s_client_and_its_tickets(served, version) -> None:
    port, certificate = served
    option = "-tls1_2" if version is ssl.TLSVersion.TLSv1_2 else "-tls1_3"
    command = ["openssl", "s_client", "-connect", f"localhost:{port}", "-CAfile", certificate.chain]
    command += ["-verify_return_error", option]
    request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    asked = subprocess.run(
        [*command, "-quiet", "-ign_eof"], input=request, capture_output=True, text=True, timeout=40, check=False
    )
    assert "HTTP/1.1 200" in asked.stdout
    assert asked.stdout.endswith("}")
    if option == "-tls1_2":
        resumed = subprocess.run(
            [*command, "-reconnect"], input="", capture_output=True, text=True, timeout=40, check=True
        )
        assert resumed.stdout.count("Reused, TLSv1.2") == 5


@pytest.mark.skipif(bool(missing := why_missing("node")), reason=str(missing))
def test_node(served, monkeypatch) -> None:
    port, certificate = served
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", certificate.chain)

    async def scenario() -> None:
        for path in ("ws/", "own"):
            async with open_node(f"wss://localhost:{port}/{path}", compress=False) as client:
                await client.send(MESSAGE)
                assert await client.receive() == MESSAGE

    within(scenario())


@pytest.mark.skipif(chromium.MISSING is not None, reason=str(chromium.MISSING))
def test_chromium(served) -> None:
    port, _ = served

    async def scenario() -> None:
        address = f"localhost:{port}"
        async with open_chromium(f"wss://{address}/ws/", f"https://{address}/") as client:
            assert "connections" in await client.page.inner_text("body")
            await client.send(MESSAGE)
            assert await client.receive() == MESSAGE

    within(scenario())


@pytest.mark.skipif(firefox.MISSING is not None, reason=str(firefox.MISSING))
def test_firefox(certificate, ecdsa) -> None:
    async def scenario() -> None:
        async with firefox.running_firefox() as browser:
            for own, loop in ((certificate, "asyncio"), (ecdsa, "uvloop")):
                files = ["--ssl-certfile", own.chain, "--ssl-keyfile", own.key]
                with serving(LARGE_APP, "--loop", loop, *files) as server:
                    address = f"localhost:{server.port}"
                    await browser.goto(f"https://{address}/")
                    assert "connections" in await browser.evaluate("() => document.body.innerText")
                    found = await browser.evaluate(ECHOES.read_text(), f"wss://{address}/ws/", json.dumps(SIZES))
                    assert found["echoed"] == [f"{kind} {size}" for size in SIZES for kind in ("text", "binary")]
                    assert found["closed"] == [4001, "done", True]
                    assert "Traceback" not in server.end()

    within(scenario())


@pytest.mark.long
def test_new_workers_read_the_new_certificate(certificate, ecdsa, tmp_path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"

    def install(of: Certificate) -> None:
        for source, target in ((of.chain, chain), (of.key, key)):
            shutil.copy(source, tmp_path / "new")
            Path(tmp_path / "new").rename(target)

    def is_served_with(port: int, of: Certificate) -> bool:
        try:
            answer = httpx.get(f"https://localhost:{port}/", verify=of.client_context(), trust_env=False)
        except httpx.ConnectError:
            return False
        return answer.status_code == 200

    install(certificate)
    arguments = [
        "--workers",
        "2",
        "--timeout-worker-healthcheck",
        "60",
        "--ssl-certfile",
        str(chain),
        "--ssl-keyfile",
        str(key),
    ]
    with serving(APP, *arguments) as server:
        assert is_served_with(server.port, certificate)
        install(ecdsa)
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        # Each request may reach either worker: several in a row have reached new ones.
        successes = 0
        while successes < 20:
            successes = successes + 1 if is_served_with(server.port, ecdsa) else 0
            assert time.monotonic() < deadline, server.end()
        assert "Traceback" not in server.end()
