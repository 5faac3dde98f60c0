"""``wshub serve``, run as a command. Everything that it serves is in separate processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import httpx
import pytest
import websockets

from tests.support.programs import ROOT
from tests.support.serving_hub import connected
from tests.support.wshub_serve import Serving, serving

ORIGIN = "http://ok.example"


def within(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 40))


async def greeted(address: str, path: str = "/echo/me") -> str:
    async with connected(f"ws://{address}{path}", origin=ORIGIN) as client:
        greeting = await client.recv()
        await client.send("hi")
        assert await client.recv() == "hi"
        return greeting


@pytest.mark.parametrize("loop", ["auto", "asyncio", "uvloop"])
def test_an_app_is_served_on_each_loop(loop) -> None:
    with serving("tests.support.served_applications:app", "--loop", loop) as server:
        assert httpx.get(f"http://{server.address}/", trust_env=False).text == "hello"
        assert within(greeted(server.address)).startswith("me 127.0.0.1")
        output = server.end()
    assert '"WebSocket /echo/me" [accepted]' in output
    assert '"GET / HTTP/1.1" 200' in output
    assert "Traceback" not in output


def test_several_processes_share_a_port() -> None:
    async def scenario(address: str) -> set[str]:
        processes: set[str] = set()
        # Any free process accepts a connection. Many connections at once reach both.
        for _ in range(50):
            processes |= {
                greeting.split()[2] for greeting in await asyncio.gather(*(greeted(address) for _ in range(16)))
            }
            if len(processes) == 2:
                break
        return processes

    with serving("tests.support.served_applications:app", "--workers", "2") as server:
        assert len(within(scenario(server.address))) == 2
        assert "Traceback" not in server.end()


def test_a_unix_socket_and_ipv6_are_served(tmp_path) -> None:
    path = str(tmp_path / "app.sock")

    async def over_unix() -> None:
        async with websockets.unix_connect(path, "ws://localhost/echo/me", origin=ORIGIN, proxy=None) as client:
            assert (await client.recv()).startswith("me -")

    with serving("tests.support.served_applications:app", uds=path) as server:
        within(over_unix())
        transport = httpx.HTTPTransport(uds=path)
        with httpx.Client(transport=transport) as client:
            assert client.get("http://localhost/").text == "hello"
        assert "Traceback" not in server.end()
    assert not os.path.exists(path)
    with serving("tests.support.served_applications:app", host="::1") as server:
        assert within(greeted(f"[::1]:{server.port}")).startswith("me ::1")


def test_tls_is_served(certificate) -> None:
    async def scenario(port: int) -> None:
        async with connected(
            f"wss://localhost:{port}/echo/me", origin=ORIGIN, ssl=certificate.client_context()
        ) as client:
            assert (await client.recv()).startswith("me ")
            await client.send("y" * 60_000)
            assert await client.recv() == "y" * 60_000

    arguments = ["--ssl-certfile", certificate.chain, "--ssl-keyfile", certificate.key]
    with serving("tests.support.served_applications:app", *arguments) as server:
        within(scenario(server.port))
        page = httpx.get(f"https://localhost:{server.port}/", verify=certificate.client_context(), trust_env=False)
        assert page.text == "hello"
        assert "Traceback" not in server.end()


def test_nothing_that_guards_http_is_bypassed() -> None:
    async def status(address: str, path: str) -> int:
        try:
            async with connected(f"ws://{address}{path}") as client:
                await client.recv()
        except websockets.InvalidStatus as error:
            return error.response.status_code
        return 101

    with serving("tests.support.served_applications:guarded") as server:
        assert within(status(server.address, "/echo/me")) == 401
        assert within(status(server.address, "/echo/me?token=secret")) == 101
        output = server.end()
    assert '"WebSocket /echo/me" 401' in output
    assert '"WebSocket /echo/me" [accepted]' in output
    assert "secret" not in output


@pytest.mark.parametrize("app", ["tests.support.served_applications:api", "tests.support.served_applications:alone"])
def test_a_mounted_hub_and_a_hub_alone_are_served(app) -> None:
    async def scenario(address: str) -> None:
        async with connected(f"ws://{address}/ws/", subprotocols=["a", "b"]) as client:
            await client.send("hi")
            while await client.recv() != "hi":
                pass

    async def over(address: str) -> None:
        if app.endswith("api"):
            await scenario(address)

    with serving(app) as server:
        within(over(server.address))
        assert "Traceback" not in server.end()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_closes_all_connections_with_1001_and_ends_the_process(stop, workers) -> None:
    async def scenario(server: Serving) -> str:
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(connected(f"ws://{server.address}/echo/me", origin=ORIGIN))
                for _ in range(8)
            ]
            for client in clients:
                await client.recv()
            output = await asyncio.to_thread(server.end, stop)
            for client in clients:
                await client.wait_closed()
                assert client.close_code == 1001
        return output

    with serving("tests.support.served_applications:app", "--workers", workers) as server:
        output = within(scenario(server))
    assert "Traceback" not in output


SLOW_TO_STOP = {"/accepted": "accept", "/events/": "on_close", "/routed/": "asgi", "/app/coroutine": "App"}


@pytest.mark.one_loop
@pytest.mark.parametrize("path", SLOW_TO_STOP)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_handlers_clean_up_before_the_process_ends(path, loop) -> None:
    async def scenario(server: Serving) -> str:
        async with connected(f"ws://{server.address}{path}") as client:
            output = await asyncio.to_thread(server.end)
            await client.wait_closed()
            assert client.close_code == 1001
        return output

    with serving("tests.cli.slow_cleanup:api", "--loop", loop) as server:
        output = within(scenario(server))
    assert f"{SLOW_TO_STOP[path]} has cleaned up" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_exit_out_of_a_handler_closes_all_connections_with_1001_and_ends_the_process(loop) -> None:
    async def scenario(server: Serving) -> str:
        url = f"ws://{server.address}/events/"
        async with connected(url) as client, connected(url) as other:
            await client.send("3")
            output = await asyncio.to_thread(server.program.wait)
            for each in (client, other):
                await each.wait_closed()
                assert each.close_code == 1001
        return output

    with serving("tests.cli.slow_cleanup:api", "--loop", loop) as server:
        output = within(scenario(server))
        assert server.process.returncode == 3
    assert output.count("on_close has cleaned up") == 2


def test_reload_starts_the_application_anew_when_its_source_changes(tmp_path) -> None:
    source = tmp_path / "reloaded.py"
    text = (
        "from wshub.app import App\napp = App()\napp.enable_websocket()\n"
        "@app.websocket('/')\nasync def greet(connection):\n"
        "    connection.send('VERSION')\n    await connection.receive()\n"
    )
    source.write_text(text.replace("VERSION", "one"))

    async def greeting(address: str) -> str:
        async with connected(f"ws://{address}/") as client:
            return await client.recv()

    async def until_new(address: str) -> None:
        assert await greeting(address) == "one"
        while True:
            # Write it more than once: the reloader may not have looked at the file before the first time.
            source.write_text(text.replace("VERSION", "another"))
            with contextlib.suppress(OSError, websockets.WebSocketException):
                if await greeting(address) == "another":
                    return
            await asyncio.sleep(0.5)

    arguments = ["--reload", "--reload-dir", str(tmp_path), "--app-dir", str(tmp_path)]
    with serving("reloaded:app", *arguments) as server:
        within(until_new(server.address))


def test_what_cannot_be_served_says_why() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wshub", "serve", "tests.support.served_applications:nothing"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode != 0
    assert "nothing" in done.stdout + done.stderr
