"""TLS servers whose context has callbacks: ``python -m tests.support.tls_callbacks SERVER LOOP DIRECTORY``.

Every client makes a real handshake, and gets an echo. A fault ends the process: the last line of the output names the
case.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import uvloop
import websockets
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.support.certificate import Certificate
from tests.support.uvicorn_server import listening
from wshub import EventHandler, Hub
from wshub.uvicorn.event_loop import accept_natively

SEEN: list[str] = []


class OwnObject(ssl.SSLObject):
    """An application's own class of SSL objects."""

    @property
    def context(self) -> ssl.SSLContext:
        SEEN.append("sslobject_class")
        return super().context


class OwnContext(ssl.SSLContext):
    """An application's own class of contexts."""

    sslobject_class = OwnObject

    def wrap_bio(self, *arguments: Any, **keywords: Any) -> ssl.SSLObject:
        SEEN.append("subclass")
        return super().wrap_bio(*arguments, **keywords)


def note(name: str) -> Callable[..., None]:
    return lambda *_: SEEN.append(name)


class Cases:
    """Ways to give callbacks to a context."""

    def __init__(self, certificate: Certificate, directory: Path) -> None:
        self.certificate = certificate
        self.log = directory / "keys.log"

    def sni_callback(self, context: ssl.SSLContext) -> None:
        context.sni_callback = note("sni_callback")

    def set_servername_callback(self, context: ssl.SSLContext) -> None:
        context.set_servername_callback(note("set_servername_callback"))

    def keylog_filename(self, context: ssl.SSLContext) -> None:
        context.keylog_filename = str(self.log)

    def msg_callback(self, context: Any) -> None:
        context._msg_callback = note("msg_callback")

    def other_context(self, context: ssl.SSLContext) -> None:
        other = self.certificate.server_context()
        self.keylog_filename(other)
        self.msg_callback(other)
        self.sni_callback(other)

        def choose(connection: Any, name: str | None, _context: ssl.SSLContext) -> None:
            SEEN.append("other_context")
            connection.context = other

        context.sni_callback = choose

    def refusing_callback(self, context: ssl.SSLContext) -> None:
        """A callback that fails refuses the connection."""

        def fail(*_: Any) -> None:
            SEEN.append("refusing_callback")
            raise ValueError("no such name")

        context.sni_callback = fail

    def alpn(self, context: ssl.SSLContext) -> None:
        context.set_alpn_protocols(["http/1.1"])

    def client_certificates(self, context: ssl.SSLContext) -> None:
        context.load_verify_locations(self.certificate.chain)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.post_handshake_auth = True

    def tickets(self, context: ssl.SSLContext) -> None:
        context.num_tickets = 4

    def psk(self, context: Any) -> None:
        if hasattr(context, "set_psk_server_callback"):
            context.set_psk_server_callback(lambda _identity: SEEN.append("psk") or b"key")


CASES = [name for name in vars(Cases) if not name.startswith("_")]
TIMES = ["before the server", "after the server", "after accept"]


@contextlib.asynccontextmanager
async def hub_server(context: ssl.SSLContext) -> AsyncIterator[int]:
    async with Hub().serve("127.0.0.1", 0, echo(), ssl=context) as server:
        yield server.port


@contextlib.asynccontextmanager
async def uvicorn_server(context: ssl.SSLContext) -> AsyncIterator[int]:
    app = Starlette(routes=[Mount("/", Hub().asgi(echo()))])
    async with listening(app, ssl_context_factory=lambda _config, _default: context) as address:
        yield int(address.rpartition(":")[2])


def echo() -> EventHandler:
    return EventHandler(on_message=lambda connection, message: connection.send(message))


async def connect_and_echo(cases: Cases, connected: socket.socket, set_later: Callable[[], None]) -> None:
    # The server accepts before the client sends anything.
    for _ in range(20):
        await asyncio.sleep(0)
    set_later()
    client = cases.certificate.client_context()
    client.set_alpn_protocols(["http/1.1"])
    client.post_handshake_auth = True
    if hasattr(client, "set_psk_client_callback"):
        client.set_psk_client_callback(lambda _hint: ("client", b"key"))
    options = {"ssl": client, "server_hostname": "localhost", "sock": connected, "proxy": None, "compression": None}
    async with websockets.connect("wss://localhost/", **options) as peer:
        await peer.send("hello")
        assert await peer.recv() == "hello"


async def run_case(serve: Any, cases: Cases, name: str, time: str, context: ssl.SSLContext) -> None:
    set_it = lambda: getattr(cases, name)(context)  # noqa: E731
    nothing = lambda: None  # noqa: E731
    SEEN.clear()
    if time == "before the server":
        set_it()
    async with serve(context) as port:
        if time == "after the server":
            set_it()
        connected = socket.create_connection(("127.0.0.1", port))
        connected.setblocking(False)
        try:
            await connect_and_echo(cases, connected, set_it if time == "after accept" else nothing)
        except (ssl.SSLError, ConnectionError):
            if name != "refusing_callback":
                raise
    if name in ("sni_callback", "set_servername_callback", "msg_callback", "other_context", "refusing_callback"):
        # A message callback is looked up when the SSL object is made. That is before or after accept.
        assert name in SEEN, SEEN
    if name == "keylog_filename":
        assert "CLIENT_TRAFFIC_SECRET_0" in cases.log.read_text()
    if name == "psk" and time != "after accept" and sys.version_info >= (3, 13):
        assert "psk" in SEEN


async def main(server: str, directory: Path) -> None:
    accept_natively(asyncio.get_running_loop())
    cases = Cases(Certificate(directory), directory)
    serve = hub_server if server == "hub" else uvicorn_server
    for time in TIMES:
        for name in CASES:
            print(server, name, time, flush=True)
            await run_case(serve, cases, name, time, cases.certificate.server_context())
    own = OwnContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(cases.certificate.chain, cases.certificate.key)
    print(server, "subclass", flush=True)
    await run_case(serve, cases, "tickets", TIMES[0], own)
    assert "subclass" in SEEN
    print("all served")


if __name__ == "__main__":
    factory = uvloop.new_event_loop if sys.argv[2] == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(sys.argv[1], Path(sys.argv[3])))
