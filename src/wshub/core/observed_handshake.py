"""Observes one handshake: how long it took, and its span.

A hub that measures no times and has no tracer does not use this module.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from wshub.core.connection import Connection
    from wshub.errors import HandshakeError
    from wshub.protocol.http.request import RequestHead
    from wshub.protocol.message import Message

__all__ = ["HandshakeSpan", "MessageSpan", "ObservedHandshake", "Tracer"]


class HandshakeSpan(Protocol):
    """The span of a handshake. One of ``opened``, ``refused`` and ``abandoned`` ends it."""

    def current(self) -> AbstractContextManager[object]:
        """Return a block in which the span is the current one."""

    def opened(self, connection: Connection) -> None:
        """The handshake has become a connection."""

    def refused(self, error: HandshakeError) -> None:
        """The handshake was refused."""

    def abandoned(self) -> None:
        """The client has left before the answer, or the application has failed."""


class MessageSpan(Protocol):
    """The span of a message. It is the current one while the handler of the message runs."""

    def end(self, error: BaseException | None) -> None:
        """The handler has ended, with an exception or None."""


class Tracer(Protocol):
    """Makes the spans of a hub."""

    def begin_handshake(self, request: RequestHead) -> HandshakeSpan:
        """Begin the span of a handshake, from its complete request."""

    def begin_message(self, connection: Connection, message: Message) -> MessageSpan:
        """Begin the span of a message, and make it the current one."""


class ObservingHub(Protocol):
    """A hub, as far as its handshakes are observed."""

    @property
    def _tracer(self) -> Tracer | None: ...
    def now(self) -> float: ...
    def _count_handshake_time(self, seconds: float) -> None: ...


class ObservedHandshake:
    """One handshake, from its complete request to its answer."""

    __slots__ = ("_began", "_hub", "_span", "_took")

    def __init__(self, hub: ObservingHub, request: RequestHead) -> None:
        self._hub = hub
        self._began = hub.now()
        self._took = 0.0
        self._span = hub._tracer.begin_handshake(request) if hub._tracer is not None else None

    def in_span(self) -> AbstractContextManager[object]:
        """Return a block in which the span of the handshake, if there is one, is the current span."""
        return self._span.current() if self._span is not None else nullcontext()

    def answered(self) -> None:
        """Take the time: the answer is ready. ``on_open`` does not count."""
        self._took = self._hub.now() - self._began

    def opened(self, connection: Connection) -> None:
        """The connection has opened."""
        self._hub._count_handshake_time(self._took)
        span, self._span = self._span, None
        if span is not None:
            span.opened(connection)

    def refused(self, error: HandshakeError) -> None:
        """The handshake was refused."""
        span, self._span = self._span, None
        if span is not None:
            span.refused(error)

    def abandoned(self) -> None:
        """There was no answer. Does nothing after another end."""
        span, self._span = self._span, None
        if span is not None:
            span.abandoned()
