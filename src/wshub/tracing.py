"""OpenTelemetry spans of handshakes and messages. It needs ``opentelemetry-api``, which each SDK brings.

::

    hub = Hub()
    trace_hub(hub, messages=True)
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import Token
from typing import TYPE_CHECKING

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider

from wshub.core.connection_log import path_text
from wshub.core.observed_handshake import HandshakeSpan, MessageSpan
from wshub.errors import MisuseError
from wshub.hub import Hub
from wshub.protocol.http.headers import Headers
from wshub.protocol.message import MessageType

if TYPE_CHECKING:
    from wshub.core.connection import Connection
    from wshub.errors import HandshakeError
    from wshub.protocol.http.request import RequestHead
    from wshub.protocol.message import Message

__all__ = ["trace_hub"]


def trace_hub(hub: Hub, *, messages: bool = False, tracer_provider: TracerProvider | None = None) -> None:
    """Make a span of each handshake from now on, and of each message that ``on_message`` gets if ``messages`` is true.

    The parent of a handshake's span is the current span, such as one of instrumented middleware. If there is none, the
    request names it in the field ``traceparent`` (W3C Trace Context). The span is the current one in ``on_upgrade``.
    Its children are the spans of messages, and all spans that handlers of the connection begin. No span has a query, a
    header field or a payload.

    Args:
        hub: the hub. Its connections of before have no spans.
        messages: whether messages have spans too. Such a span is the current one in ``on_message``, and ends with it.
            Messages that ``receive()`` returns have none.
        tracer_provider: makes the tracer; None uses the global one.

    Raises:
        MisuseError: the hub is traced already, or is no Hub.
    """
    if not isinstance(hub, Hub):
        raise MisuseError(f"trace_hub() takes a Hub, not {hub!r}")
    if hub._tracer is not None:
        raise MisuseError("the hub is traced already: call trace_hub() once for each hub")
    tracer = trace.get_tracer("wshub", tracer_provider=tracer_provider)
    hub._trace(_HubTracer(tracer, hub.name), messages)


class _HubTracer:
    """Makes the spans of a hub."""

    def __init__(self, tracer: trace.Tracer, hub: str) -> None:
        self._tracer = tracer
        self._hub = hub

    def begin_handshake(self, request: RequestHead) -> HandshakeSpan:
        parent = None
        if not trace.get_current_span().get_span_context().is_valid:
            parent = propagate.extract(request.headers, getter=_FIELDS)
        attributes = {
            "http.request.method": request.method,
            "url.path": path_text(request.path),
            "network.protocol.name": "websocket",
            "wshub.hub": self._hub,
        }
        span = self._tracer.start_span("websocket handshake", parent, SpanKind.SERVER, attributes)
        return _Handshake(span)

    def begin_message(self, connection: Connection, message: Message) -> MessageSpan:
        attributes: dict[str, str | int] = {
            "wshub.hub": self._hub,
            "wshub.connection_id": connection.id,
            "wshub.message.type": "text" if message.type is MessageType.TEXT else "binary",
            "wshub.message.size": len(message),
        }
        return _Message(self._tracer.start_span("websocket message", None, SpanKind.CONSUMER, attributes))


class _Handshake:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def current(self) -> AbstractContextManager[object]:
        return trace.use_span(self._span, end_on_exit=False, record_exception=False, set_status_on_exception=False)

    def opened(self, connection: Connection) -> None:
        self._span.set_attributes({"http.response.status_code": 101, "wshub.connection_id": connection.id})
        if connection.remote_address is not None:
            self._span.set_attribute("client.address", connection.remote_address[0])
        self._span.end()

    def refused(self, error: HandshakeError) -> None:
        self._span.set_attributes({"http.response.status_code": error.status, "error.type": str(error.status)})
        if error.status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def abandoned(self) -> None:
        self._span.set_attribute("error.type", "abandoned")
        self._span.end()


class _Message:
    """The span of a message, which is the current one from its creation to its end."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        # The end is in the same context: that of the connection's handlers.
        self._token: Token[contexts.Context] = contexts.attach(trace.set_span_in_context(span))

    def end(self, error: BaseException | None) -> None:
        contexts.detach(self._token)
        if error is not None:
            self._span.set_attribute("error.type", type(error).__qualname__)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class _Fields(Getter[Headers]):
    """Reads header fields for a propagator."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        return [value.decode("latin-1") for value in carrier.get_all_raw(key.lower().encode("latin-1"))] or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier.raw]


_FIELDS = _Fields()
