"""Spans of handshakes and messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import websockets
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.support.raw_peers import REQUEST, raw_peer
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import connected
from tests.support.ways_to_serve import WAYS, served, status_of
from wshub import EventHandler, HandshakeError, Hub, MisuseError
from wshub.tracing import trace_hub

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
ECHO = EventHandler(on_message=lambda connection, message: connection.send(message))


class Spans:
    """The spans of a provider that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def trace(self, hub: Hub, *, messages: bool = True) -> None:
        trace_hub(hub, messages=messages, tracer_provider=self.provider)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    async def one(self, name: str) -> ReadableSpan:
        while not self.named(name):
            await asyncio.sleep(0)
        (span,) = self.named(name)
        return span


@contextlib.asynccontextmanager
async def one_client(
    spans: Spans, handler: EventHandler, *, messages: bool = True
) -> AsyncIterator[websockets.ClientConnection]:
    """Serve a traced hub by itself. Yields a client of it."""
    prepare = partial(spans.trace, messages=messages)
    async with (
        served("Hub.serve", handler, prepare=prepare) as (_, port),
        connected(f"ws://127.0.0.1:{port}/") as client,
    ):
        yield client


def parent_of(span: ReadableSpan) -> tuple[str, str]:
    assert span.parent is not None
    return f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}"


def id_of(span: ReadableSpan) -> str:
    return f"{span.context.span_id:016x}"


@pytest.mark.parametrize("way", WAYS)
async def test_a_handshake_has_a_span_in_the_trace_of_its_request(way: str) -> None:
    spans = Spans()
    async with served(way, ECHO, prepare=spans.trace) as (_, port):
        url = f"ws://127.0.0.1:{port}/chat?token=secret"
        async with connected(url, additional_headers={"traceparent": TRACEPARENT, "Cookie": "a=secret"}):
            span = await spans.one("websocket handshake")
    assert parent_of(span) == (TRACE, PARENT)
    assert span.kind is SpanKind.SERVER
    assert span.attributes["http.response.status_code"] == 101
    assert span.attributes["url.path"] == "/chat"
    assert span.attributes["client.address"] == "127.0.0.1"
    assert "secret" not in str(span.attributes)


@pytest.mark.parametrize("way", WAYS)
async def test_a_message_has_a_span_below_that_of_its_handshake(way: str) -> None:
    spans = Spans()
    async with served(way, ECHO, prepare=spans.trace) as (_, port):
        url = f"ws://127.0.0.1:{port}/"
        async with connected(url, additional_headers={"traceparent": TRACEPARENT}) as client:
            await client.send("secret")
            await client.recv()
            await client.send(b"secrets")
            await client.recv()
    (handshake,) = spans.named("websocket handshake")
    text, binary = spans.named("websocket message")
    assert parent_of(text) == parent_of(binary) == (TRACE, id_of(handshake))
    assert (text.attributes["wshub.message.type"], text.attributes["wshub.message.size"]) == ("text", 6)
    assert (binary.attributes["wshub.message.type"], binary.attributes["wshub.message.size"]) == ("binary", 7)
    assert text.attributes["wshub.connection_id"] == handshake.attributes["wshub.connection_id"]
    assert "secret" not in str([text.attributes, binary.attributes])


@pytest.mark.parametrize("is_coroutine", [False, True])
async def test_what_a_handler_does_is_below_the_span_of_the_message(is_coroutine: bool) -> None:
    spans = Spans()
    tracer = spans.provider.get_tracer("application")

    def work(connection: Any, message: Any) -> None:
        with tracer.start_as_current_span(f"work {message.data}"):
            pass

    async def work_later(connection: Any, message: Any) -> None:
        await asyncio.sleep(0.001)
        work(connection, message)

    handler = EventHandler(
        on_open=lambda connection: tracer.start_span("open").end(), on_message=work_later if is_coroutine else work
    )
    async with one_client(spans, handler) as client:
        await client.send("1")
        await client.send("2")
        await spans.one("work 2")
        while len(spans.named("websocket message")) < 2:
            await asyncio.sleep(0)
    (handshake,) = spans.named("websocket handshake")
    assert parent_of(await spans.one("open"))[1] == id_of(handshake)
    messages = [id_of(span) for span in spans.named("websocket message")]
    assert [parent_of(await spans.one(f"work {number}"))[1] for number in (1, 2)] == messages
    # The span of the first message was not the current one any more.
    assert [parent_of(span)[1] for span in spans.named("websocket message")] == [id_of(handshake)] * 2


@pytest.mark.parametrize("is_coroutine", [False, True])
async def test_the_span_of_a_message_whose_handler_fails_is_an_error(is_coroutine: bool) -> None:
    spans = Spans()

    def fail(connection: Any, message: Any) -> None:
        raise ValueError("secret")

    async def fail_later(connection: Any, message: Any) -> None:
        await asyncio.sleep(0.001)
        raise ValueError("secret")

    handler = EventHandler(on_message=fail_later if is_coroutine else fail)
    async with one_client(spans, handler) as client:
        await client.send("x")
        span = await spans.one("websocket message")
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "ValueError"
    assert span.events == ()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("status", "is_error"), [(403, False), (503, True)])
async def test_a_refused_handshake_has_a_span_with_its_status(way: str, status: int, is_error: bool) -> None:
    spans = Spans()

    async def refuse(request: Any) -> None:
        with spans.provider.get_tracer("application").start_as_current_span("check"):
            await asyncio.sleep(0.001)
        raise HandshakeError(status, "No.")

    async with served(way, ECHO, on_upgrade=refuse, prepare=spans.trace) as (_, port):
        assert await status_of(port, REQUEST) == status
        span = await spans.one("websocket handshake")
    assert span.attributes["http.response.status_code"] == status
    assert (span.status.status_code is StatusCode.ERROR) == is_error
    assert parent_of(await spans.one("check"))[1] == id_of(span)


@needs_reactor
async def test_a_handshake_whose_client_leaves_before_the_answer_has_a_span() -> None:
    """A paused transport does not notice that its client leaves: there, the handshake is refused later."""
    spans = Spans()
    asked = asyncio.Event()

    async def wait(request: Any) -> None:
        asked.set()
        await asyncio.sleep(60)

    async with served("Hub.serve", ECHO, on_upgrade=wait, prepare=spans.trace) as (_, port):
        async with raw_peer(f"ws://127.0.0.1:{port}/", handshake=False) as peer:
            peer.write(REQUEST)
            await asked.wait()
            peer.reset()
        span = await spans.one("websocket handshake")
    assert span.attributes["error.type"] == "abandoned"


async def test_the_span_of_middleware_is_the_parent() -> None:
    spans = Spans()
    outer = spans.provider.get_tracer("middleware").start_span("outer")
    with trace.use_span(outer):
        hub = Hub()
        spans.trace(hub)
        scope = {"type": "websocket", "path": "/", "headers": [(b"traceparent", TRACEPARENT.encode())]}
        arrived: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for message in ({"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}):
            arrived.put_nowait(message)

        async def ignore(message: Any) -> None:
            pass

        await hub.asgi(ECHO)(scope, arrived.get, ignore)
        await hub.close()
    assert parent_of(await spans.one("websocket handshake"))[1] == f"{outer.get_span_context().span_id:016x}"


async def test_messages_have_no_spans_unless_asked() -> None:
    spans = Spans()
    async with one_client(spans, ECHO, messages=False) as client:
        await client.send("x")
        await client.recv()
    assert len(spans.named("websocket handshake")) == 1
    assert spans.named("websocket message") == []


def test_a_hub_is_traced_once() -> None:
    hub = Hub()
    trace_hub(hub)
    with pytest.raises(MisuseError, match="already"):
        trace_hub(hub)
    with pytest.raises(MisuseError, match="takes a Hub"):
        trace_hub("hub")  # type: ignore[arg-type]
