"""A client cannot choose its address behind a real nginx that is configured as in the documentation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets

from tests.support import nginx
from tests.support.free_ports import free_port
from tests.support.pages import program
from tests.support.replacing import replaced
from tests.support.serving_hub import connected
from tests.support.wshub_serve import serving
from wshub import Connection, EventHandler, Hub, HubConfig

pytestmark = pytest.mark.skipif(nginx.PATH is None, reason="there is no nginx")

DOCUMENTED = "proxy_set_header X-Forwarded-For $remote_addr;"
APPENDING = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
FORGERIES: list[dict[str, str]] = [
    {},
    {"X-Forwarded-For": "198.51.100.1"},
    {"X-Forwarded-For": "198.51.100.2, 198.51.100.3"},
    {"X-Forwarded-For": "unknown"},
]


@contextlib.contextmanager
def nginx_of_the_documents(unix: str, forwarded: str, prefix: Path) -> Iterator[str]:
    """Run the nginx of the page on proxies, without TLS. Yields its address, ``127.0.0.1:port``."""
    port = free_port()
    http = replaced(
        program("proxies.md", "chat.conf"),
        {
            "listen 443 ssl;": f"listen 127.0.0.1:{port};",
            "ssl_certificate /etc/ssl/chat.pem;": "",
            "ssl_certificate_key /etc/ssl/chat.key;": "",
            "/run/chat/chat.sock": unix,
            DOCUMENTED: forwarded,
        },
    )
    with nginx.running(http, prefix, port):
        yield f"127.0.0.1:{port}"


async def statuses_of(stack: contextlib.AsyncExitStack, url: str, told: list[Any]) -> list[int]:
    """Connect once with each forgery, and return the statuses. The connections stay open."""
    statuses = []
    for headers in FORGERIES:
        try:
            client = await stack.enter_async_context(connected(url, additional_headers=headers))
        except websockets.InvalidStatus as error:
            statuses.append(error.response.status_code)
        else:
            statuses.append(101)
            told.append(await client.recv())
    return statuses


@pytest.mark.one_loop
@pytest.mark.parametrize("forwarded", [DOCUMENTED, APPENDING], ids=["overwritten", "appended"])
@pytest.mark.parametrize(("app", "query"), [("bounded", ""), ("bounded_and_guarded", "?token=secret")])
def test_a_client_behind_nginx_cannot_choose_its_address(run, tmp_path: Path, app, query, forwarded) -> None:
    unix = str(tmp_path / "s")

    async def scenario(address: str) -> None:
        told: list[Any] = []
        async with contextlib.AsyncExitStack() as stack:
            assert await statuses_of(stack, f"ws://{address}/echo/x{query}", told) == [101, 101, 429, 429]
        assert [line.split(" ")[:2] for line in told] == [["x", "127.0.0.1"]] * 2

    with (
        serving(f"tests.support.served_applications:{app}", "--forwarded-allow-ips", "*", uds=unix),
        nginx_of_the_documents(unix, forwarded, tmp_path / "nginx") as address,
    ):
        run(scenario(address))


@pytest.mark.parametrize("forwarded", [DOCUMENTED, APPENDING], ids=["overwritten", "appended"])
async def test_a_client_of_a_hub_that_serves_behind_nginx_cannot_choose_its_address(tmp_path: Path, forwarded) -> None:
    unix = str(tmp_path / "s")

    def on_open(connection: Connection) -> None:
        connection.send(str(connection.remote_address))

    # With any trusted proxy, the hub trusts a Unix socket too. The clients' address must not be trusted here.
    hub = Hub(HubConfig(max_connections_per_address=2, trusted_proxies=("192.0.2.1",)))
    told: list[Any] = []
    async with hub.serve(unix=unix, handler=EventHandler(on_open=on_open)):
        with nginx_of_the_documents(unix, forwarded, tmp_path / "nginx") as address:
            async with contextlib.AsyncExitStack() as stack:
                assert await statuses_of(stack, f"ws://{address}/", told) == [101, 101, 429, 429]
    assert told == ["('127.0.0.1', 0)"] * 2
