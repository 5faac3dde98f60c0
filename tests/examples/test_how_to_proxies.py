"""The configurations of the page on proxies, each with the real proxy and a server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import websockets
import yaml

from tests.support import nginx
from tests.support.certificate import Certificate
from tests.support.free_ports import free_port
from tests.support.pages import page, program, programs
from tests.support.programs import running_program
from tests.support.replacing import replaced
from tests.support.wshub_serve import serving
from wshub import HubConfig

SBIN = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
HAPROXY = shutil.which("haproxy", path=SBIN)
CADDY = shutil.which("caddy", path=SBIN)
TRAEFIK = shutil.which("traefik", path=str(Path(sys.executable).parent))

# A client that says nothing is told when a pong of it has come more than two seconds after the opening.
APPLICATION = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from wshub import Hub, HubConfig

pinging = Hub(HubConfig(ping_interval_ms=200, pong_timeout_ms=10_000))
quiet = Hub(HubConfig(ping_interval_ms=600_000))

async def wait(connection):
    connection.send(connection.remote_address[0])
    opened = connection.hub.now()
    while connection.last_pong_time < opened + 4:
        try:
            await connection.receive(timeout=0.02)
        except TimeoutError:
            pass
    connection.send("alive")
    await connection.receive()

async def ready(request):
    return PlainTextResponse(f"{request.url.scheme} {request.client.host}")

app = Starlette(routes=[
    Route("/health/ready", ready),
    WebSocketRoute("/pinging", pinging.asgi(wait)),
    WebSocketRoute("/quiet", quiet.asgi(wait)),
])
"""


class Proxy(NamedTuple):
    """A running proxy: its address, such as ``127.0.0.1:8080``, and whether it does TLS."""

    address: str
    has_tls: bool


@contextlib.contextmanager
def behind_nginx(directory: Path, certificate: Certificate, timeout: str) -> Iterator[Proxy]:
    uds = str(directory / "s")
    port = free_port()
    http = replaced(
        program("proxies.md", "chat.conf"),
        {
            "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
            "/etc/ssl/chat.pem": certificate.chain,
            "/etc/ssl/chat.key": certificate.key,
            "/run/chat/chat.sock": uds,
            "proxy_read_timeout 75s;": f"proxy_read_timeout {timeout};",
        },
    )
    with (
        serving("main:app", "--app-dir", str(directory), "--forwarded-allow-ips", "*", uds=uds),
        nginx.running(http, directory / "nginx", port),
    ):
        yield Proxy(f"127.0.0.1:{port}", True)


def without_sanitizers() -> dict[str, str]:
    """Return an environment in which a program does not get the sanitizers that the tests may run under."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


@contextlib.contextmanager
def behind_haproxy(directory: Path, certificate: Certificate, timeout: str) -> Iterator[Proxy]:
    assert HAPROXY is not None
    port = free_port()
    both = directory / "both.pem"
    both.write_text(Path(certificate.chain).read_text() + Path(certificate.key).read_text())
    with serving("main:app", "--app-dir", str(directory)) as server:
        text = replaced(
            program("proxies.md", "haproxy.cfg"),
            {
                "maxconn 50000": "maxconn 100",
                "bind :443": f"bind 127.0.0.1:{port}",
                "/etc/haproxy/chat.pem": str(both),
                "timeout tunnel 75s": f"timeout tunnel {timeout}",
                "127.0.0.1:8000": server.address,
                "127.0.0.1:8001": server.address,
            },
        )
        file = directory / "haproxy.cfg"
        file.write_text(text)
        with running_program([HAPROXY, "-db", "-f", str(file)], port=port, env=without_sanitizers()):
            yield Proxy(f"127.0.0.1:{port}", True)


@contextlib.contextmanager
def behind_caddy(directory: Path, certificate: Certificate, timeout: str) -> Iterator[Proxy]:
    assert CADDY is not None
    port = free_port()
    with serving("main:app", "--app-dir", str(directory)) as server:
        text = replaced(
            program("proxies.md", "Caddyfile"),
            {"chat.example.com {": f"http://127.0.0.1:{port} {{", "127.0.0.1:8000": server.address},
        )
        file = directory / "Caddyfile"
        file.write_text("{\n    admin off\n    auto_https off\n}\n" + text)
        command = [CADDY, "run", "--config", str(file), "--adapter", "caddyfile"]
        variables = {**without_sanitizers(), "HOME": str(directory), "XDG_DATA_HOME": str(directory)}
        with running_program(command, port=port, env=variables):
            yield Proxy(f"127.0.0.1:{port}", False)


@contextlib.contextmanager
def behind_traefik(directory: Path, certificate: Certificate, timeout: str) -> Iterator[Proxy]:
    assert TRAEFIK is not None
    port = free_port()
    with serving("main:app", "--app-dir", str(directory)) as server:
        text = replaced(
            program("proxies.md", "dynamic.yaml"),
            {
                "chat.example.com": "127.0.0.1",
                "certResolver: letsencrypt": "{}",
                "127.0.0.1:8000": server.address,
                "127.0.0.1:8001": server.address,
            },
        )
        certificates = {"certificates": [{"certFile": certificate.chain, "keyFile": certificate.key}]}
        file = directory / "dynamic.yaml"
        file.write_text(text + yaml.safe_dump({"tls": certificates}))
        command = [
            *(TRAEFIK, f"--entryPoints.websecure.address=127.0.0.1:{port}", f"--providers.file.filename={file}"),
            *(f"--entryPoints.websecure.transport.respondingTimeouts.idleTimeout={timeout}", "--log.level=ERROR"),
            *("--global.checkNewVersion=false", "--global.sendAnonymousUsage=false"),
        ]
        with running_program(command, port=port, env=without_sanitizers()):
            wait_until_ready(f"https://127.0.0.1:{port}/health/ready", certificate)
            yield Proxy(f"127.0.0.1:{port}", True)


def wait_until_ready(url: str, certificate: Certificate) -> None:
    """Return when a proxy passes requests on. Traefik listens before it has read its routes."""
    with httpx.Client(trust_env=False, verify=certificate.client_context()) as client:
        for _ in range(1000):
            with contextlib.suppress(httpx.TransportError):
                if client.get(url).is_success:
                    return
            time.sleep(0.02)
    raise AssertionError("the proxy passes nothing on")


# An idle WebSocket lives on behind these, whatever their timeouts.
NEVER_END = (behind_caddy, behind_traefik)

Behind = Callable[[Path, Certificate, str], contextlib.AbstractContextManager[Proxy]]

PROXIES: list[Any] = [
    pytest.param(
        behind_nginx, id="nginx", marks=pytest.mark.skipif(nginx.PATH is None, reason="nginx is not installed")
    ),
    pytest.param(
        behind_haproxy, id="haproxy", marks=pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")
    ),
    pytest.param(behind_caddy, id="caddy", marks=pytest.mark.skipif(CADDY is None, reason="caddy is not installed")),
    pytest.param(
        behind_traefik, id="traefik", marks=pytest.mark.skipif(TRAEFIK is None, reason="traefik is not installed")
    ),
]


@pytest.mark.parametrize("behind", PROXIES)
def test_a_proxy_passes_websockets_on_and_pings_keep_them_alive(
    behind: Behind, tmp_path: Path, certificate: Certificate
) -> None:
    (tmp_path / "main.py").write_text(APPLICATION)
    forged = {"X-Forwarded-For": "198.51.100.1", "X-Forwarded-Proto": "ftp"}

    async def scenario(proxy: Proxy) -> None:
        context = certificate.client_context() if proxy.has_tls else None
        options: dict[str, Any] = {"proxy": None, "ping_interval": None, "additional_headers": forged, "ssl": context}
        url = f"{'wss' if proxy.has_tls else 'ws'}://{proxy.address}"
        async with websockets.connect(f"{url}/pinging", **options) as client:
            assert await client.recv() == "127.0.0.1"
            # With pings, a connection lives on beyond the idle timeout of three seconds.
            assert await client.recv() == "alive"
        # By now the proxy has asked the server whether it is ready.
        http = f"{'https' if proxy.has_tls else 'http'}://{proxy.address}/health/ready"
        async with httpx.AsyncClient(trust_env=False, verify=context or True) as browser:
            answer = await browser.get(http, headers=forged)
        assert answer.text == f"{'https' if proxy.has_tls else 'http'} 127.0.0.1"
        if behind not in NEVER_END:
            async with websockets.connect(f"{url}/quiet", **options) as client:
                assert await client.recv() == "127.0.0.1"
                with pytest.raises(websockets.ConnectionClosedError):
                    await client.recv()

    with behind(tmp_path, certificate, "3s") as proxy:
        asyncio.run(asyncio.wait_for(scenario(proxy), 30))


@pytest.mark.skipif(nginx.PATH is None, reason="nginx is not installed")
def test_nginx_takes_the_address_from_cloudflare_alone(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APPLICATION)
    files = programs(page("proxies.md"))
    port, uds = free_port(), str(tmp_path / "s")
    server = replaced(
        files["chat.conf"],
        {
            "listen 443 ssl;": f"listen 127.0.0.1:{port};",
            "ssl_certificate /etc/ssl/chat.pem;": "",
            "ssl_certificate_key /etc/ssl/chat.key;": "",
            "/run/chat/chat.sock": uds,
        },
    )

    async def address_that_the_server_sees() -> object:
        headers = {"CF-Connecting-IP": "203.0.113.7"}
        async with websockets.connect(f"ws://127.0.0.1:{port}/quiet", proxy=None, additional_headers=headers) as client:
            return await client.recv()

    seen = []
    for network in ("127.0.0.0/8", "173.245.48.0/20"):
        cloudflare = replaced(files["cloudflare.conf"], {"173.245.48.0/20": network})
        with (
            serving("main:app", "--app-dir", str(tmp_path), "--forwarded-allow-ips", "*", uds=uds),
            nginx.running(cloudflare + server, tmp_path / network.replace("/", "-"), port),
        ):
            seen.append(asyncio.run(asyncio.wait_for(address_that_the_server_sees(), 20)))
    assert seen == ["203.0.113.7", "127.0.0.1"]


def test_the_timeouts_of_the_page_are_longer_than_a_ping_and_its_pong() -> None:
    files = programs(page("proxies.md"))
    longest = (HubConfig().ping_interval_ms + HubConfig().pong_timeout_ms) / 1000
    assert "proxy_read_timeout 75s;" in files["chat.conf"]
    assert "timeout tunnel 75s" in files["haproxy.cfg"]
    assert longest < 75
    text = " ".join(page("proxies.md").read_text().split())
    assert f"An idle timeout above {longest:.0f} seconds" in text


@pytest.mark.skipif(nginx.PATH is None, reason="nginx is not installed")
def test_nginx_passes_websockets_to_several_servers(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APPLICATION)
    port = free_port()

    async def scenario() -> None:
        async with websockets.connect(f"ws://127.0.0.1:{port}/quiet", proxy=None) as client:
            assert await client.recv() == "127.0.0.1"

    with serving("main:app", "--app-dir", str(tmp_path)) as server:
        servers = {"10.0.0.1:8000": server.address, "10.0.0.2:8000": server.address}
        site = replaced(
            program("proxies.md", "chat.conf"),
            {
                "listen 443 ssl;": f"listen 127.0.0.1:{port};",
                "    ssl_certificate /etc/ssl/chat.pem;\n": "",
                "    ssl_certificate_key /etc/ssl/chat.key;\n": "",
                "http://unix:/run/chat/chat.sock": "http://chat",
            },
        )
        with nginx.running(replaced(program("proxies.md", "upstream.conf"), servers) + site, tmp_path / "nginx", port):
            asyncio.run(asyncio.wait_for(scenario(), 20))
