"""A callback in an SSL context never ends the process, with any transport and whenever it was set."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tests.support.programs import environment
from tests.support.serving_hub import connected
from tests.support.wshub_serve import serving

HUB_WITH_KEY_LOG = """
import asyncio, sys
from wshub import EventHandler, Hub

async def main():
    echo = EventHandler(on_message=lambda connection, message: connection.send(message))
    async with Hub().serve("127.0.0.1", 0, echo, ssl_certfile=sys.argv[1], ssl_keyfile=sys.argv[2]) as server:
        print(server.port, flush=True)
        await server.wait_closed()

asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("server", ["hub", "uvicorn"])
def test_a_context_with_any_callback_set_at_any_time_is_served(server, loop, tmp_path) -> None:
    command = [sys.executable, "-m", "tests.support.tls_callbacks", server, loop, str(tmp_path)]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout[-500:] + result.stderr
    assert result.stdout.endswith("all served\n")


async def echoes_over_tls(port: int, certificate, path: str = "/") -> None:
    async with connected(f"wss://localhost:{port}{path}", ssl=certificate.client_context()) as client:
        await client.send("hello")
        assert await client.recv() == "hello"


def test_a_key_log_in_the_environment_is_written_and_harms_nobody(certificate, tmp_path) -> None:
    log = tmp_path / "keys.log"
    command = [sys.executable, "-c", HUB_WITH_KEY_LOG, certificate.chain, certificate.key]
    with subprocess.Popen(command, env=environment(SSLKEYLOGFILE=str(log)), stdout=subprocess.PIPE, text=True) as hub:
        try:
            assert hub.stdout is not None
            asyncio.run(echoes_over_tls(int(hub.stdout.readline()), certificate))
            assert hub.poll() is None
        finally:
            hub.kill()
    assert "CLIENT_TRAFFIC_SECRET_0" in log.read_text()


def test_wshub_serve_is_served_with_a_key_log_in_the_environment(certificate, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
    arguments = ["--ssl-certfile", certificate.chain, "--ssl-keyfile", certificate.key]

    with serving("tests.support.served_applications:api", *arguments) as server:
        asyncio.run(echoes_over_tls(server.port, certificate, "/ws/"))
        assert "Traceback" not in server.end()
