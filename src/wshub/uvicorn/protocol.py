"""uvicorn's side: the protocol class that a WebSocket request is handed over to.

``uvicorn main:app --ws wshub.uvicorn.protocol:WebSocketProtocol``

The application answers the handshake as ASGI, so its middleware and access checks apply. Its scope has the extension
``wshub.takeover``. If its accept message names an opening handshake there, the hub of that handshake takes the
descriptor. Then neither uvicorn nor the application has a part in the connection.

uvicorn drops the bytes that it has read together with a request. A client must not send any before it has the response
(RFC 6455 section 4.1).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, unquote

from uvicorn.config import Config
from uvicorn.protocols.utils import (
    ClientDisconnected,
    get_client_addr,
    get_local_addr,
    get_remote_addr,
    is_ssl,
)
from uvicorn.server import ServerState

from wshub.asgi.endings import code_of, is_end_of
from wshub.asgi.scope import ENDS_WITH_APPLICATION, TAKEOVER
from wshub.asgi.tls_extension import tls_extension
from wshub.core.admission import is_address
from wshub.core.connection import Connection
from wshub.core.event_handler import receiving_handler_table
from wshub.core.hub_core import HubCore
from wshub.core.opening import Opening
from wshub.core.refusals import OUT_OF_RESOURCES, SHUTTING_DOWN, count_refusal, refuse
from wshub.errors import ConnectionClosed, HandshakeError
from wshub.links.asyncio_link import AsyncioLink
from wshub.links.shortage import ShortageLog, is_shortage
from wshub.links.stream_transport import StreamTransport
from wshub.links.transports import TransportTls
from wshub.protocol.handshake.server import Handshake
from wshub.protocol.http.headers import split_list
from wshub.protocol.http.request import (
    HEAD_TOO_LARGE,
    MAX_EARLY_SIZE,
    MAX_HEAD_SIZE,
    RequestHead,
    TlsPeer,
    parse_request_head,
)
from wshub.protocol.message import MessageType
from wshub.uvicorn.first_requests import protocol_of
from wshub.uvicorn.proxies import application_of, client_of, scheme_of
from wshub.uvicorn.server_hubs import Hubs, primary_hub
from wshub.uvicorn.server_start import join_before_accepting
from wshub.uvicorn.upgrades import recognise_lists_of_upgrades

__all__ = ["WebSocketProtocol"]

logger = logging.getLogger("uvicorn.error")

NOT_DUPLICATED = ShortageLog("a connection stays with its transport, no descriptor can be had for the hub (%s)")
NOT_ADOPTED = ShortageLog("a hub cannot take a connection (%s): it is refused with 503")

MOST_BUFFERED = 64 * 1024
"""Bytes that may be queued before ``send`` waits, as in asyncio's transports."""

REFUSAL_TIMEOUT = 10.0
"""Seconds after which a connection is aborted if its client does not read the refusal."""


class WebSocketProtocol(asyncio.Protocol):
    """Serves one WebSocket request that uvicorn has read."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._config = config
        self._state = server_state
        self._connections: set[Any] = server_state.connections
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._handed_over = False
        # The earlier request that uvicorn is still answering.
        self._behind: Any = None
        self._request: RequestHead | None = None
        self._key = ""
        self._scope: dict[str, Any] = {}
        self._peer: tuple[str, int] | None = None
        self._early = b""
        self._link: AsyncioLink | None = None
        self._connection: Connection | None = None
        self._answered = False
        self._denial: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._denial_begun = False
        self._denial_complete = False
        # The extension in the scope: it tells the application about the takeover, and a hub stores the guest in it.
        self._takeover: dict[str, Any] = {}
        self._taken_over = False
        self._ends_with_application = True
        self._connect_sent = False
        self._ending: asyncio.TimerHandle | None = None
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._writable = asyncio.Event()
        self._writable.set()

    # From uvicorn and the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._link is not None:
            self._link.data_received(data)
        elif not self._handed_over:
            self._handed_over = True
            self._follow(protocol_of(self._transport), data)
        elif self._connection is not None or not self._answered:
            self._early += data
            if len(self._early) > MAX_EARLY_SIZE:
                self._transport.abort()

    def eof_received(self) -> bool | None:
        return self._link.eof_received() if self._link is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._ending is not None:
            self._ending.cancel()
        if not self._lost.done():
            self._lost.set_result(None)
        if self._link is not None:
            self._link.connection_lost(exc)
        self._writable.set()

    def pause_writing(self) -> None:
        if self._link is not None:
            self._link.pause_writing()
        self._writable.clear()

    def resume_writing(self) -> None:
        if self._link is not None:
            self._link.resume_writing()
        self._writable.set()

    def shutdown(self) -> None:
        """Refuse the handshake if it is not answered yet: the server shuts down."""
        if self._behind is not None:
            # The connection ends after the response to the earlier request.
            self._behind.keep_alive = False
        elif not self._answered:
            self._refuse(self._primary_hub(), HandshakeError(*SHUTTING_DOWN))

    # The handshake

    def _follow(self, former: Any, data: bytes) -> None:
        """Start once ``former``, the protocol that has read the request, has answered the earlier request."""
        behind = getattr(former, "cycle", None)
        if behind is None or behind.response_complete:
            self._start(former, data)
            return
        on_response = behind.on_response

        def answered() -> None:
            self._behind = None
            on_response()
            if self._transport.is_closing():
                self._answered = True
            else:
                self._start(former, data)

        self._behind = behind
        behind.on_response = answered

    def _start(self, former: Any, data: bytes) -> None:
        if hasattr(former, "_unset_keepalive_if_required"):
            # Cancel the keep-alive timeout that an earlier request may have started.
            former._unset_keepalive_if_required()
        tls = self._transport.get_extra_info("ssl_object")
        client = self._tls_peer() if tls is not None else None
        try:
            if len(data) > MAX_HEAD_SIZE:
                raise HandshakeError(*HEAD_TOO_LARGE)
            self._request = request = parse_request_head(data, client)
            self._key = Handshake.check_request(request.method, _http_version(former, request), request.headers)
            # This call raises HandshakeError if Sec-WebSocket-Protocol is malformed.
            Handshake.choose_subprotocol(request.headers, ())
            offered = split_list(request.headers.get_all_raw(b"sec-websocket-protocol"))
        except HandshakeError as error:
            self._answered = True
            self._write(refuse(self._primary_hub(), error, request=self._request, source=self))
            self._end()
            return
        self._peer = peer = get_remote_addr(self._transport)
        app, trusted = application_of(self._config)
        self._takeover["peer"] = peer
        extensions: dict[str, Any] = {"websocket.http.response": {}, TAKEOVER: self._takeover}
        if tls is not None:
            self._takeover["tls"] = client
            extensions["tls"] = tls_extension(tls)
        raw_path = request.raw_path
        root_path = self._config.root_path
        self._scope = {
            "type": "websocket",
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.4"},
            "http_version": request.http_version,
            "scheme": scheme_of(trusted, peer, request.headers) or ("wss" if is_ssl(self._transport) else "ws"),
            "server": get_local_addr(self._transport),
            "client": client_of(trusted, peer, request.headers) or peer,
            "root_path": root_path,
            "path": root_path + unquote(raw_path.decode("ascii")),
            "raw_path": root_path.encode("ascii") + raw_path,
            "query_string": request.raw_query_string,
            "headers": list(request.headers.raw),
            "subprotocols": [name.decode("latin-1") for name in offered],
            "state": self._app_state.copy(),
            "extensions": extensions,
        }
        task = self._loop.create_task(self._run(app))
        task.add_done_callback(self._state.tasks.discard)
        self._state.tasks.add(task)

    def _tls_peer(self) -> TlsPeer | None:
        """Return what is asked for the client's certificate as long as the connection lives."""
        transport = self._transport
        return transport.link if isinstance(transport, StreamTransport) else TransportTls(transport)

    async def _run(self, app: Callable[..., Awaitable[None]]) -> None:
        """Run the application. Then end a connection that it leaves open."""
        try:
            await app(self._scope, self._receive, self._send)
        except (KeyboardInterrupt, SystemExit):
            raise
        except asyncio.CancelledError as error:
            if not self._is_cancelled():
                logger.error("Exception in ASGI application", exc_info=error)
            await self._end_connection(1011)
            raise
        except BaseException as error:
            await self._end_failed(error)
        else:
            await self._end_connection(1000)
        finally:
            if not self._answered:
                self._answer_for_application()

    def _answer_for_application(self) -> None:
        """Answer the handshake of an application that ended without an answer, or after only the start of one."""
        if self._denial is None:
            self._respond(500, [], b"Internal Server Error")
            return
        status, headers = self._denial
        self._respond(status, [field for field in headers if field[0].lower() != b"content-length"], b"")

    @staticmethod
    def _is_cancelled() -> bool:
        """Whether the server has cancelled the application. If not, the application itself raised CancelledError."""
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    async def _end_failed(self, error: BaseException) -> None:
        """End the connection of an application that has raised, with the exception's close code if it has one.

        Without one, the code is 1000 if the error is expected, and 1011 if not.
        """
        closing = code_of(error)
        if closing is not None:
            if not self._answered:
                self._respond(403, [], b"")
            await self._end_connection(*closing)
        elif self._is_expected(error):
            logger.debug("The application has failed since its connection has ended", exc_info=error)
            await self._end_connection(1000)
        else:
            logger.error("Exception in ASGI application", exc_info=error)
            await self._end_connection(1011)

    def _is_expected(self, error: BaseException) -> bool:
        """Whether the error is expected: the connection has ended, or a hub has refused its handshake."""
        if isinstance(error, ClientDisconnected):
            return True
        if self._connection is None:
            return isinstance(error, HandshakeError) and self._answered
        return any(is_end_of(connection, error) for connection in (self._connection, self._guest()) if connection)

    async def _end_connection(self, code: int, reason: str = "") -> None:
        guest = self._guest()
        if guest is not None:
            guest.close(code, reason)
            await guest.wait_closed()
        if self._connection is None or not self._ends_with_application:
            return
        if code == 1011:
            self._connection.hub.fail_connection(self._connection, code, reason)
        else:
            self._connection.close(code, reason)

    def _guest(self) -> Connection | None:
        """Return the hub's connection over ASGI, if middleware has kept the hub from taking over this connection."""
        return self._takeover.get("guest")

    async def _receive(self) -> dict[str, Any]:
        if not self._connect_sent:
            self._connect_sent = True
            return {"type": "websocket.connect"}
        if self._connection is None:
            await asyncio.shield(self._lost)
            return {"type": "websocket.disconnect", "code": 1006, "reason": ""}
        if self._taken_over:
            await self._connection.wait_closed()
            code, reason = self._connection.close_code, self._connection.close_reason
            return {"type": "websocket.disconnect", "code": code, "reason": reason}
        try:
            message = await self._connection.receive()
        except ConnectionClosed as closed:
            return {"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason}
        if message.type is MessageType.TEXT:
            return {"type": "websocket.receive", "text": message.data}
        return {"type": "websocket.receive", "bytes": message.data}

    async def _send(self, message: dict[str, Any]) -> None:
        kind = str.__str__(message["type"])
        if self._connection is not None:
            await self._send_open(self._connection, kind, message)
        elif self._denial is not None:
            await self._continue_denial(kind, message)
        elif self._answered or self._lost.done():
            raise ClientDisconnected
        elif kind == "websocket.accept":
            await self._accept(message)
        elif kind == "websocket.close":
            self._respond(403, [], b"")
        elif kind == "websocket.http.response.start":
            self._start_denial(message["status"], list(message.get("headers", ())))
        else:
            raise RuntimeError(f"an application cannot send {kind!r} before it has accepted or refused the connection")

    def _start_denial(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if not 200 <= status < 600:
            raise RuntimeError(f"a handshake cannot be refused with the status {status}: use 200 to 599")
        # Called only for its check: it raises if a field cannot be sent.
        Handshake.encode_fields(headers)
        self._denial = (status, headers)

    async def _continue_denial(self, kind: str, message: dict[str, Any]) -> None:
        """Send a body message of the response that refuses the handshake. No other message may follow its start."""
        if kind != "websocket.http.response.body":
            raise RuntimeError(f"Expected ASGI message 'websocket.http.response.body' but got {kind!r}.")
        if self._denial_complete:
            raise RuntimeError(f"an application cannot send {kind!r} after the response is complete")
        if self._answered or self._lost.done():
            raise ClientDisconnected
        more_body = message.get("more_body", False)
        self._denial_complete = not more_body
        await self._send_denial(message.get("body", b""), more_body)

    async def _send_denial(self, body: bytes, more_body: bool) -> None:
        """Send a part of the response that refuses the handshake. The connection ends after the last part."""
        assert self._denial is not None
        status, headers = self._denial
        if not self._denial_begun and not more_body:
            self._respond(status, headers, body)
            return
        if not self._denial_begun:
            self._denial_begun = True
            self._log(str(status))
            self._write(self._response_head(status, headers))
        self._write(body)
        if not more_body:
            self._answered = True
            self._end()
            return
        try:
            async with asyncio.timeout(REFUSAL_TIMEOUT):
                await self._writable.wait()
        except TimeoutError:
            self._transport.abort()
            raise ClientDisconnected from None

    async def _send_open(self, connection: Connection, kind: str, message: dict[str, Any]) -> None:
        try:
            if kind == "websocket.send":
                text = message.get("text")
                data: Any = text if text is not None else message.get("bytes")
                # Wait before the send too: several tasks of the application may send.
                while connection.buffered > MOST_BUFFERED:
                    await connection.drain()
                connection.send(data)
                while connection.buffered > MOST_BUFFERED:
                    await connection.drain()
            elif kind == "websocket.close":
                connection.close(message.get("code") or 1000, message.get("reason") or "")
            else:
                raise RuntimeError(f"an application cannot send {kind!r} after it has accepted the connection")
        except ConnectionClosed as closed:
            raise ClientDisconnected from closed

    async def _accept(self, message: dict[str, Any]) -> None:
        opening: Opening | None = message.get(TAKEOVER)
        assert self._request is not None
        hubs = Hubs.of(self._state)
        if opening is None:
            try:
                hub = hubs.default(self._config)
            except HandshakeError as error:
                self._refuse(self._primary_hub(), error)
                raise ClientDisconnected from error
            opening = Opening(hub, receiving_handler_table(), self._request)
            opening.register()
        else:
            self._taken_over = True
            self._ends_with_application = message.get(ENDS_WITH_APPLICATION, False)
        connection = opening.connection
        # Middleware may have changed the subprotocol and the client's address since the registration.
        connection.subprotocol = message.get("subprotocol")
        client = self._client()
        if client and client != self._peer:
            connection.forwarded_address = tuple(client[:2])
        headers = [*self._state.default_headers, *message.get("headers", ())]
        opening.handshake_key = self._key
        response = opening.respond(headers)
        hubs.add(opening.hub)
        self._connection = connection
        self._answered = True
        self._takeover |= {"accepted": True, "subprotocol": connection.subprotocol}
        self._log("[accepted]")
        self._connections.discard(self)
        self._request.headers.compact()
        await opening.open_from_loop(partial(self._open, opening, response), self._answer_for_cancelled)

    def _client(self) -> Any:
        """Return the client's address from the scope, which middleware may have changed; if invalid, the peer's."""
        client = self._scope["client"]
        return client if client and client != self._peer and is_address(client[0]) else self._peer

    def _answer_for_cancelled(self) -> None:
        """Answer the handshake with 500 if the application was cancelled before its answer was sent."""
        self._early = b""
        self._respond(500, [], b"Internal Server Error")

    def _open(self, opening: Opening, response: bytes) -> None:
        """Open the connection on a descriptor of its own, or over the transport. Raises if neither is possible."""
        early, self._early = self._early, b""
        try:
            if not (opening.hub.can_adopt() and self._can_be_taken()):
                self._serve_over_transport(opening, response, early)
            elif isinstance(self._transport, StreamTransport):
                # As below, the transport stays open if this fails.
                opening.hub._keep_reactor(self._transport.reactor)
                self._transport.hand_over(lambda link: opening.open_on(link, response, early))
            elif (descriptor := self._duplicate()) >= 0:
                # This call may fail. The transport stays open until then, to answer the client.
                opening.open_on_descriptor(descriptor, response, early)
                self._transport.close()
            else:
                self._serve_over_transport(opening, response, early)
        except Exception as error:
            if self._link is None and is_shortage(error):
                NOT_ADOPTED.failed(error)
                self._refuse(opening.hub, HandshakeError(*OUT_OF_RESOURCES), opening)
                raise ClientDisconnected from error
            self._transport.abort()
            raise

    def _duplicate(self) -> int:
        """Return a duplicate of the descriptor for the hub; -1 if there are no descriptors or no memory."""
        try:
            descriptor = int(self._transport.get_extra_info("socket").dup().detach())
        except (OSError, MemoryError) as error:
            NOT_DUPLICATED.failed(error)
            return -1
        NOT_DUPLICATED.recovered()
        return descriptor

    def _serve_over_transport(self, opening: Opening, response: bytes, early: bytes) -> None:
        self._link = AsyncioLink(self._transport, self._loop)
        opening.open_on(self._link, response, early)
        if self._lost.done():
            self._link.connection_lost(None)

    def _can_be_taken(self) -> bool:
        """Whether the connection needs its descriptor only, or its link.

        A transport with TLS of its own is needed, and so is one that has not sent an earlier response yet. A link has
        the keys, and its queue.
        """
        transport = self._transport
        if transport.is_closing():
            return False
        return isinstance(transport, StreamTransport) or not (is_ssl(transport) or transport.get_write_buffer_size())

    def _respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Refuse the handshake with a response, then close the transport."""
        if self._denial_begun:
            # A part of another response has been sent, so this one cannot be.
            self._answered = True
            self._end()
            return
        names = {name.lower() for name, _ in headers}
        if b"content-length" not in names:
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        if b"content-type" not in names and body:
            headers = [*headers, (b"content-type", b"text/plain; charset=utf-8")]
        head = self._response_head(status, headers)
        self._answered = True
        self._log(str(status))
        self._write(head + body)
        self._end()

    def _primary_hub(self) -> HubCore | None:
        return primary_hub(self._config, self._state)

    @property
    def peer(self) -> tuple[Any, ...] | None:
        """The client's address, as far as it is known."""
        return self._client() if self._scope else get_remote_addr(self._transport)

    def _refuse(self, hub: HubCore | None, error: HandshakeError, opening: Opening | None = None) -> None:
        """Refuse the handshake with the error, which counts for the hub."""
        count_refusal(hub, error, opening, request=self._request, source=self)
        fields = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in error.headers]
        self._respond(error.status, fields, error.reason.encode())

    def _write(self, data: bytes) -> None:
        """Write to the transport, unless the client has left: then uvloop's transport would raise."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def _end(self) -> None:
        """Close the transport once all bytes have left. Abort it after ``REFUSAL_TIMEOUT``."""
        if self._lost.done():
            return
        self._transport.close()
        self._ending = self._loop.call_later(REFUSAL_TIMEOUT, self._transport.abort)

    def _response_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the head of a response. If it has no Content-Length, the end of the connection ends the response."""
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        fields = Handshake.encode_fields([*self._state.default_headers, *headers, (b"connection", b"close")])
        return b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, phrase.encode("ascii"), fields)

    def _log(self, outcome: str) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        # Log the path without the query, which may contain a token.
        scope: Any = {"client": self._client()}
        address = get_client_addr(scope)
        logger.info('%s - "WebSocket %s" %s', address, quote(self._scope["path"]), outcome)


recognise_lists_of_upgrades(WebSocketProtocol)
join_before_accepting(WebSocketProtocol)


def _http_version(former: Any, request: RequestHead) -> str:
    """Return the HTTP version of the client's request. The head that uvicorn hands over always says 1.1."""
    scope = getattr(former, "scope", None)
    return str(scope["http_version"]) if scope else request.http_version
