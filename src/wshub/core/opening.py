"""The opening handshake of every connection, without I/O: check, decide, accept, open; or refuse.

Each way of serving moves bytes, and calls these steps. If a step raises, it answers with ``refuse``; or it writes a
response by itself, and calls ``count_refusal``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import isawaitable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from wshub.core.admission import UNKNOWN_ADDRESS
from wshub.core.binding import bind_for_request
from wshub.core.connection_log import HasPeer
from wshub.core.observed_handshake import ObservedHandshake
from wshub.core.refusals import SHUTTING_DOWN, UNDECIDED
from wshub.errors import HandshakeError, MisuseError
from wshub.protocol.handshake.server import Handshake
from wshub.protocol.http.fields import HeaderField

if TYPE_CHECKING:
    from wshub.core.connection import Connection
    from wshub.core.handler_table import HandlerTable
    from wshub.core.lifecycle import HubLifecycle
    from wshub.protocol.http.request import RequestHead

__all__ = ["Opening"]

logger = logging.getLogger("wshub.server")


class Opening:
    """The opening handshake of one request for a hub.

    Args:
        hub: that the connection is to belong to.
        table: the handlers of the connection.
        request: the request.
        source: the accepted connection; None if the address is known already, or the hub does not need it.
        client: the client's address that a trusted proxy tells; None if none does.
    """

    __slots__ = ("client", "connection", "handshake_key", "hub", "observed", "request", "source", "table", "waits")

    connection: Connection
    """The registered connection, once the request is accepted or registered."""

    def __init__(
        self,
        hub: HubLifecycle,
        table: HandlerTable,
        request: RequestHead,
        source: HasPeer | None = None,
        client: tuple[Any, ...] | None = None,
    ) -> None:
        self.hub = hub
        self.table = table
        self.request = request
        self.source = source
        self.client = client
        # None unless the hub measures times or makes spans.
        self.observed = ObservedHandshake(hub, request) if hub._observes_handshakes else None
        self.handshake_key = ""
        """The ``Sec-WebSocket-Key``. A server that has checked the handshake by itself sets it."""
        self.waits = False
        """Whether the application takes its time: ``decide`` has returned an awaitable."""

    def check(self) -> None:
        """Check the key, the version and whether the hub takes a connection. Raises ``HandshakeError`` if not."""
        request = self.request
        self.handshake_key = Handshake.check_request(request.method, request.http_version, request.headers)
        self.admit()

    def admit(self) -> None:
        """Do what ``check`` does of a request whose handshake the server has checked by itself."""
        hub, request = self.hub, self.request
        if self.client is not None or hub.wants_address:
            request.remote_address = self.client or (self.source.peer if self.source is not None else None)
        _ensure_open(hub)
        hub._admission.check(request.headers, request.remote_address, hub.connection_count)

    def decide(self) -> Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None:
        """Call ``on_upgrade``. Returns the metadata of the connection, or an awaitable of that.

        Raises what ``on_upgrade`` raises.
        """
        on_upgrade = self.hub.on_upgrade
        if on_upgrade is None:
            return None
        if self.observed is None:
            decision = on_upgrade(self.request)
        else:
            with self.observed.in_span():
                decision = on_upgrade(self.request)
        self.waits = isawaitable(decision)
        return decision

    async def wait(self, decision: Awaitable[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
        """Return what the awaitable of ``decide`` results in.

        Raises ``HandshakeError`` if that takes longer than ``handshake_timeout_ms``, or if the hub closes before.
        """
        hub = self.hub
        async with _Wait(hub.now() + hub.config.handshake_timeout_ms / 1000, hub):
            with self.in_span():
                return await decision

    def in_span(self) -> AbstractContextManager[object]:
        """Return a block in which the span of the handshake is the current span, if handshakes have spans."""
        return self.observed.in_span() if self.observed is not None else nullcontext()

    def accept(
        self,
        subprotocols: Sequence[str],
        *,
        metadata: Mapping[str, Any] | None = None,
        path_params: dict[str, Any] | None = None,
        headers: Iterable[HeaderField] | bytes = (),
    ) -> bytes:
        """Register the connection, and return its 101. Raises ``HandshakeError`` if that cannot be.

        Args:
            subprotocols: those that may be chosen, in the client's order of preference.
            metadata: what the application has decided.
            path_params: the parameters in the path.
            headers: further header fields of the 101, as ``Handshake.create_response`` takes them.
        """
        request_headers = self.request.headers
        subprotocol = Handshake.choose_subprotocol(request_headers, subprotocols)
        connection = self.register(subprotocol, metadata=metadata, path_params=path_params)
        if self.client is not None and self.client is not UNKNOWN_ADDRESS:
            connection.forwarded_address = self.client
        response = self.respond(headers)
        request_headers.compact()
        return response

    def register(
        self,
        subprotocol: str | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        path_params: dict[str, Any] | None = None,
        extensions: bool = True,
    ) -> Connection:
        """Register the connection, without a response. Raises ``HandshakeError`` if the hub is full by now.

        Args:
            subprotocol: that is chosen.
            metadata: what the application has decided.
            path_params: the parameters in the path.
            extensions: False if another server answers, which negotiates extensions by itself.
        """
        if metadata is not None and not isinstance(metadata, Mapping):
            raise MisuseError(
                f"on_upgrade must return a mapping or None, not {type(metadata).__name__}: to refuse the request, "
                "raise HandshakeError(403, ...)"
            )
        if self.waits:
            self._check_capacity()
        register = self.hub.register_connection if self.observed is None else self._register_in_span
        self.connection = register(
            self.table, self.request, subprotocol, path_params, extensions=extensions, metadata=metadata
        )
        return self.connection

    def _register_in_span(self, *arguments: Any, **keywords: Any) -> Connection:
        # The handlers of the connection run in a copy of the current context, and so within the span.
        with self.in_span():
            return self.hub.register_connection(*arguments, **keywords)

    def _check_capacity(self) -> None:
        """Raise ``HandshakeError`` if the hub has become full, or has closed, while the application decided."""
        hub = self.hub
        _ensure_open(hub)
        hub._admission.check_capacity(self.request.remote_address, hub.connection_count)

    def respond(self, headers: Iterable[HeaderField] | bytes = ()) -> bytes:
        """Return the 101 of a registered connection. The opening is cancelled if there cannot be one."""
        connection = self.connection
        compression = connection.compression
        try:
            return Handshake.create_response(
                self.handshake_key,
                subprotocol=connection.subprotocol,
                extensions=compression.response if compression is not None else None,
                headers=headers,
            )
        except BaseException:
            self.cancel()
            raise

    def open_on(self, link: Any, response: bytes, rest: bytes) -> None:
        """Send the response on a link, and open the connection there.

        Args:
            link: that the connection has from now on.
            response: the 101; empty if another server has sent it.
            rest: what the client has sent behind its request.
        """
        observed = self.observed
        if observed is None:
            self.hub.open_on_link(self.connection, link, response, rest)
            return
        observed.answered()
        self.hub.open_on_link(self.connection, link, response, rest)
        observed.opened(self.connection)

    def open_on_descriptor(self, descriptor: int, response: bytes, rest: bytes) -> None:
        """Do what ``open_on`` does on a connected socket, which the hub's reactor owns from now on."""
        observed = self.observed
        if observed is None:
            self.hub.open_on_descriptor(self.connection, descriptor, response, rest)
            return
        observed.answered()
        self.hub.open_on_descriptor(self.connection, descriptor, response, rest)
        observed.opened(self.connection)

    async def open_from_loop(self, open_it: Callable[[], None], cancelled: Callable[[], None] | None = None) -> None:
        """Have the event loop call ``open_it``, and return when it has. Raises what ``open_it`` raises.

        A connection is opened in this way wherever a task runs: handlers are called from the loop, never from within a
        task. If the task is cancelled before, the opening is cancelled too, and ``cancelled`` is called.
        """
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()

        def step() -> None:
            if opened.cancelled():
                self.cancel()
                if cancelled is not None:
                    cancelled()
                return
            try:
                open_it()
            except BaseException as error:
                self.cancel()
                if opened.done():
                    logger.exception("a connection cannot be served")
                else:
                    opened.set_exception(error)
            else:
                if not opened.done():
                    opened.set_result(None)

        loop.call_soon(step)
        await opened

    def drop_compression(self) -> None:
        """Drop what is negotiated: the server that sends the 101 compresses by itself."""
        self.hub.drop_compression(self.connection)

    def cancel(self) -> None:
        """End a registered connection that is not open: no handler is called. Of an open one, nothing changes."""
        self.hub.cancel_opening(self.connection)
        self.abandoned()

    def refused(self, error: HandshakeError) -> None:
        """End the span of the handshake with a refusal."""
        if self.observed is not None:
            self.observed.refused(error)

    def abandoned(self) -> None:
        """End the span of the handshake, unless it has an outcome: the client gets no answer."""
        if self.observed is not None:
            self.observed.abandoned()


class _Wait:
    """A block that ends with a refusal when its time is over. The hub's sweep looks at the time."""

    __slots__ = ("_hub", "_refusal", "_timeout", "deadline")

    def __init__(self, deadline: float, hub: HubLifecycle) -> None:
        self.deadline = deadline
        self._hub = hub
        self._timeout = asyncio.timeout(None)
        self._refusal = UNDECIDED

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._hub.waits.add(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hub.waits.discard(self)
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise HandshakeError(*self._refusal) from None

    def expire(self) -> None:
        """End the block since its time is over."""
        self._hub.waits.discard(self)
        self._timeout.reschedule(asyncio.get_running_loop().time())

    def shut_down(self) -> None:
        """End the block since the hub has closed."""
        self._refusal = SHUTTING_DOWN
        self.expire()


def _ensure_open(hub: HubLifecycle) -> None:
    """Bind a hub that is not in use. Raise ``HandshakeError`` if that cannot be, or if the hub is closing."""
    if hub.is_closing:
        raise HandshakeError(*SHUTTING_DOWN)
    if not hub.is_in_use:
        bind_for_request(hub)
