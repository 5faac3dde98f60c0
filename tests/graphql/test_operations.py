"""GraphQL over WebSocket: a failure, an end or a violation affects one operation if the protocol allows that."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from graphql import (
    GraphQLError,
    GraphQLField,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    GraphQLString,
)

from tests.graphql.peers import Client, reference_client, serving, speaking
from tests.support.raw_peers import masked
from wshub import ConnectionClosed, Frame, HubConfig, Message, RateLimits
from wshub.graphql import GraphQLHandler

INIT = {"type": "connection_init"}
ANYTHING = GraphQLScalarType("Anything", serialize=lambda value: value)


class Sources:
    """Sources of subscriptions. Most of them fail, each in another way."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended: list[str] = []

    def schema(self) -> GraphQLSchema:
        def subscribing(name: str) -> GraphQLField:
            return GraphQLField(ANYTHING, subscribe=getattr(self, name), resolve=lambda value, info: value)

        names = [name for name in dir(self) if not name.startswith("_") and name not in ("begun", "go_on", "ended")]
        names.remove("schema")
        names.remove("stubborn_value")
        fields = {name: subscribing(name) for name in names}
        query = {
            "hello": GraphQLField(GraphQLString, resolve=lambda *_: "hello"),
            "stubborn": GraphQLField(GraphQLString, resolve=self.stubborn_value),
            "extensions": GraphQLField(ANYTHING, resolve=lambda _, info: info.context["extensions"]),
        }
        return GraphQLSchema(GraphQLObjectType("Query", query), subscription=GraphQLObjectType("Subscription", fields))

    async def steady(self, *_: Any) -> AsyncIterator[Any]:
        try:
            number = 0
            while True:
                yield number
                number += 1
                await asyncio.sleep(0.001)
        finally:
            self.ended.append("steady")

    async def after_an_item(self, *_: Any) -> AsyncIterator[Any]:
        yield "item"
        raise RuntimeError("asked to fail")

    async def before_an_item(self, *_: Any) -> AsyncIterator[Any]:
        raise RuntimeError("asked to fail")
        yield

    def at_once(self, *_: Any) -> AsyncIterator[Any]:
        raise RuntimeError("asked to fail")

    async def while_set_up(self, *_: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        raise RuntimeError("asked to fail")

    async def on_purpose(self, *_: Any) -> AsyncIterator[Any]:
        yield "item"
        raise GraphQLError("asked to fail", extensions={"code": "NO"})

    async def of_another_connection(self, *_: Any) -> AsyncIterator[Any]:
        yield "item"
        raise ConnectionClosed(1000, "asked to fail")

    async def cancelled(self, *_: Any) -> AsyncIterator[Any]:
        yield "item"
        raise asyncio.CancelledError

    async def no_json(self, *_: Any) -> AsyncIterator[Any]:
        yield object()

    async def no_number(self, *_: Any) -> AsyncIterator[Any]:
        yield math.nan

    async def no_text(self, *_: Any) -> AsyncIterator[Any]:
        yield "\ud800"

    async def no_text_in_an_error(self, *_: Any) -> AsyncIterator[Any]:
        yield "item"
        raise GraphQLError("\ud800")

    async def no_source(self, *_: Any) -> Any:
        return 5

    async def slow_to_set_up(self, *_: Any) -> AsyncIterator[Any]:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append("set-up")
        return self.steady()

    async def slow(self, *_: Any) -> AsyncIterator[Any]:
        self.begun.set()
        try:
            await asyncio.Event().wait()
            yield
        finally:
            # A source may have work to do when it ends.
            await asyncio.sleep(0)
            self.ended.append("slow")

    async def stubborn_source(self, *_: Any) -> AsyncIterator[Any]:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await self.go_on.wait()
        yield "too late"

    async def fails_to_end(self, *_: Any) -> AsyncIterator[Any]:
        self.begun.set()
        try:
            yield "item"
            await asyncio.Event().wait()
        finally:
            self.ended.append("fails_to_end")
            raise RuntimeError("asked to fail at the end")

    async def stubborn_value(self, *_: Any) -> str:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await self.go_on.wait()
        return "too late"


FAILING = {
    "after_an_item": "asked to fail",
    "before_an_item": "asked to fail",
    "at_once": "asked to fail",
    "while_set_up": "asked to fail",
    "on_purpose": "asked to fail",
    "of_another_connection": "asked to fail",
    "cancelled": "Internal server error",
    "no_json": "",
    "no_number": "",
    "no_text": "",
    "no_text_in_an_error": "Internal server error",
    "no_source": "",
}


async def answers_to(client: Client, operation_id: str) -> list[dict[str, Any]]:
    """Return the messages that a client gets for an operation, up to its end."""
    answers = []
    while True:
        answer = await client.receive()
        if answer.get("id") == operation_id:
            answers.append(answer)
            if answer["type"] != "next":
                return answers


@pytest.mark.parametrize("name", FAILING)
def test_a_source_that_fails_is_an_error_of_its_operation_and_the_others_go_on(run, caplog, name) -> None:
    async def scenario() -> None:
        sources = Sources()
        async with serving(sources.schema()) as (url, _, _hub), speaking(url) as client:
            await client.introduce()
            await client.subscribe("steady", "subscription { steady }")
            await client.subscribe("a", f"subscription {{ {name} }}")
            *items, last = await answers_to(client, "a")
            assert all(item["payload"] == {"data": {name: "item"}} for item in items)
            assert last["type"] == "error"
            assert FAILING[name] in last["payload"][0]["message"]
            assert name != "on_purpose" or last["payload"][0]["extensions"] == {"code": "NO"}
            # The id is free again, and the other subscription goes on.
            await client.subscribe("a", "{ hello }")
            assert [answer["type"] for answer in await answers_to(client, "a")] == ["next", "complete"]
            assert (await client.receive())["id"] == "steady"
        assert sources.ended == ["steady"]

    run(scenario())
    # Errors of the first call, and GraphQL errors raised on purpose, go to the client only: they are not logged.
    quiet = ("at_once", "while_set_up", "on_purpose", "no_text_in_an_error")
    # graphql-core 3.2 raises for a resolver that returns no source.
    assert name == "no_source" or len(caplog.records) == (0 if name in quiet else 1)


def test_a_context_that_fails_is_an_error_of_its_operation_and_is_logged(run, caplog) -> None:
    async def context(connection, payload) -> None:
        raise RuntimeError("a secret")

    async def scenario() -> None:
        async with serving(context=context) as (url, _, _hub), speaking(url) as client:
            await client.introduce()
            await client.subscribe("1", "{ hello }")
            assert await client.receive() == {
                "id": "1",
                "type": "error",
                "payload": [{"message": "Internal server error"}],
            }

    run(scenario())
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "a secret" in caplog.text


async def test_what_on_connect_takes_does_not_count_for_the_time_to_introduce_oneself() -> None:
    async def on_connect(connection, payload) -> None:
        await asyncio.sleep(0.2)

    options = {"on_connect": on_connect, "connection_init_timeout": 0.1}
    async with serving(**options) as (url, _, _hub), speaking(url) as client:
        await client.introduce()


def test_a_failing_on_connect_closes_with_4499_if_the_client_waits_for_it(run, caplog) -> None:
    begun = asyncio.Event()

    async def on_connect(connection, payload) -> None:
        if payload is None:
            raise RuntimeError("a secret")
        begun.set()
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with serving(on_connect=on_connect) as (url, _, hub):
            async with speaking(url) as client:
                await client.send("connection_init")
                assert await client.closed() == (4499, "Internal server error")
            assert len(caplog.records) == 1
            async with speaking(url) as client:
                await client.send("connection_init", payload={})
                await begun.wait()
            while hub.connection_count:
                await asyncio.sleep(0)

    run(scenario())
    assert len(caplog.records) == 1


async def send_in_one_segment(client: Client, *messages: dict[str, Any]) -> None:
    frames = b"".join(masked(Frame.text(json.dumps(message))) for message in messages)
    client.connection.transport.write(frames)


def test_a_complete_right_behind_its_subscribe_leaves_nothing_behind(run, caplog) -> None:
    """A task may be cancelled before it begins. A client that leaves at once also causes that."""

    async def scenario() -> None:
        sources = Sources()
        subscribe = {"type": "subscribe", "id": "1", "payload": {"query": "subscription { steady }"}}
        complete = {"type": "complete", "id": "1"}
        async with serving(sources.schema()) as (url, _, hub):
            async with speaking(url) as client:
                await client.introduce()
                await send_in_one_segment(client, subscribe, complete, subscribe, complete, {"type": "ping"})
                assert await client.receive() == {"type": "pong"}
                await send_in_one_segment(client, subscribe, {"type": "unheard-of"})
                assert (await client.closed())[0] == 4400
            async with speaking(url) as client:
                await send_in_one_segment(client, INIT, {"type": "unheard-of"})
                assert (await client.closed())[0] == 4400
            while hub.connection_count:
                await asyncio.sleep(0)
        assert sources.ended == []

    run(scenario())
    # A coroutine that was never awaited warns when it is collected. Here the warning is an error.
    gc.collect()
    assert caplog.records == []


@pytest.mark.parametrize("name", ["slow_to_set_up", "slow"])
@pytest.mark.parametrize("end", ["complete", "leave", "break"])
def test_a_source_ends_when_nobody_listens_any_more(run, caplog, name, end) -> None:
    async def scenario() -> None:
        sources = Sources()
        async with serving(sources.schema()) as (url, _, _hub), speaking(url) as client:
            await client.introduce()
            await client.subscribe("1", f"subscription {{ {name} }}")
            await sources.begun.wait()
            if end == "complete":
                await client.send("complete", id="1")
                await client.subscribe("1", "{ hello }")
                assert [answer["type"] for answer in await answers_to(client, "1")] == ["next", "complete"]
            elif end == "leave":
                client.connection.transport.abort()
            else:
                await client.send("unheard-of")
            while not sources.ended:
                await asyncio.sleep(0)
        assert sources.ended == ["set-up" if name == "slow_to_set_up" else "slow"]

    run(scenario())
    assert caplog.records == []


async def test_a_source_that_fails_while_it_is_ended_ends_nothing_else() -> None:
    sources = Sources()
    async with serving(sources.schema()) as (url, _, _hub), speaking(url) as client:
        await client.introduce()
        await client.subscribe("1", "subscription { fails_to_end }")
        assert (await client.receive())["type"] == "next"
        await client.send("complete", id="1")
        while not sources.ended:
            await asyncio.sleep(0)
        await client.subscribe("1", "{ hello }")
        assert [answer["type"] for answer in await answers_to(client, "1")] == ["next", "complete"]


@pytest.mark.parametrize("query", ["{ stubborn }", "subscription { stubborn_source }"])
async def test_an_operation_that_survives_its_cancellation_sends_nothing_under_a_reused_id(query) -> None:
    sources = Sources()
    async with serving(sources.schema()) as (url, _, _hub), speaking(url) as client:
        await client.introduce()
        await client.subscribe("1", query)
        await sources.begun.wait()
        await client.send("complete", id="1")
        await client.subscribe("1", "subscription { steady }")
        assert (await client.receive())["payload"] == {"data": {"steady": 0}}
        sources.go_on.set()
        for number in range(1, 20):
            assert (await client.receive())["payload"] == {"data": {"steady": number}}


PAIR = "\\ud83d\\ude00"
WITH_A_STRING = [
    '{"type":"connection_init","payload":{"x":"%s"}}',
    '{"type":"ping","payload":{"x":"%s"}}',
    '{"type":"pong","payload":{"%s":1}}',
    '{"type":"subscribe","id":"%s","payload":{"query":"{ hello }"}}',
    '{"type":"subscribe","id":"1","payload":{"query":"{ hello } # %s"}}',
    '{"type":"subscribe","id":"1","payload":{"query":"query A { hello }","operationName":"%s"}}',
    '{"type":"subscribe","id":"1","payload":{"query":"{ hello }","variables":{"x":["%s"]}}}',
    '{"type":"subscribe","id":"1","payload":{"query":"{ hello }","variables":{"%s":1}}}',
    '{"type":"subscribe","id":"1","payload":{"query":"{ hello }","extensions":{"x":{"y":"%s"}}}}',
    '{"type":"complete","id":"%s"}',
]


@pytest.mark.parametrize("message", WITH_A_STRING)
@pytest.mark.parametrize("escape", ["\\ud800", "\\uDFFF", "a\\udc00\\ud800b", "\\ud83d\\ude00\\ud83d"])
def test_a_lone_surrogate_is_an_invalid_message_and_nothing_in_the_log(run, caplog, message, escape) -> None:
    async def scenario() -> None:
        async with serving() as (url, _, _hub):
            async with speaking(url) as client:
                if "connection_init" not in message:
                    await client.introduce()
                await client.connection.send(message % escape)
                assert await client.closed() == (4400, "Invalid message: a string has a lone surrogate")
            async with speaking(url) as client:
                if "connection_init" not in message:
                    await client.introduce()
                await client.connection.send(message % PAIR)
                await client.send("ping", payload={"last": 1})
                while await client.receive() != {"type": "pong", "payload": {"last": 1}}:
                    pass

    run(scenario())
    assert caplog.records == []


@pytest.mark.parametrize(
    "message",
    [
        '{"type":"ping","payload":{"x":NaN}}',
        '{"type":"ping","payload":{"x":-Infinity}}',
        '{"type":"ping","payload":{"x":1e999}}',
        '{"type":"subscribe","id":"1","payload":{"query":"{ hello }","extensions":[]}}',
        '{"type":"subscribe","id":"1","payload":{"query":"{ hello }","operationName":1}}',
        '{"type":"subscribe","id":1,"payload":{"query":"{ hello }"}}',
        '{"type":"subscribe","id":"","payload":{"query":"{ hello }"}}',
        '{"type":"subscribe","id":"1","payload":null}',
        '{"type":"complete"}',
        '{"type":"next","id":"1","payload":{}}',
        '{"type":"connection_ack"}',
        '{"type":["ping"]}',
        "null",
        "",
    ],
)
def test_a_message_of_another_form_is_4400(run, caplog, message) -> None:
    async def scenario() -> None:
        async with serving() as (url, _, _hub), speaking(url) as client:
            await client.introduce()
            await client.connection.send(message)
            code, reason = await client.closed()
            assert code == 4400
            assert str(reason).startswith("Invalid message: ")

    run(scenario())
    assert caplog.records == []


@pytest.mark.parametrize("given", [None, {"persistedQuery": {"version": 1}}])
def test_the_extensions_of_an_operation_reach_its_context(run, given) -> None:
    def context(connection, payload, extensions) -> dict[str, Any]:
        return {"extensions": {"seen": extensions}}

    async def scenario() -> None:
        fields = {} if given is None else {"extensions": given}
        for options, expected in (({}, given), ({"context": context}, {"seen": given})):
            schema = Sources().schema()
            async with serving(schema, **options) as (url, _, _hub), speaking(url) as client:
                await client.introduce()
                await client.subscribe("1", "{ extensions }", **fields)
                assert (await client.receive())["payload"] == {"data": {"extensions": expected}}

    run(scenario())


class FailsOnce(GraphQLHandler):
    """A handler that fails once."""

    failed = False

    def on_message(self, connection: Any, message: Message) -> None:
        if not self.failed:
            self.failed = True
            raise RuntimeError("asked to fail")
        super().on_message(connection, message)


LIMITS: dict[str, dict[str, Any]] = {
    "size": {"config": HubConfig(max_message_size=1000)},
    "rate": {"config": HubConfig(rates=RateLimits(bytes=1000, burst_ms=1000, excess="close"))},
    "fragments": {"config": HubConfig(max_fragments=2)},
    "exception": {"kind": FailsOnce},
}


@pytest.mark.parametrize("limit", LIMITS)
async def test_what_the_hub_itself_closes_for_is_4499(limit) -> None:
    async with serving(**LIMITS[limit]) as (url, _, hub):
        async with speaking(url) as client:
            text = json.dumps({"type": "connection_init", "payload": {"x": "x" * 2000}})
            await client.connection.send([text[:-2], "", "}", "}"] if limit == "fragments" else text)
            code, reason = await client.closed()
            assert code == 4499
            assert reason
        while hub.connection_count:
            await asyncio.sleep(0)
        assert hub.stats().closes == {4499: 1}


@pytest.mark.skipif("WSHUB_SANITIZED" in os.environ, reason="Node.js does not start with the sanitizers preloaded")
@pytest.mark.parametrize("limit", ["size", "rate", "exception", "on_connect"])
async def test_the_reference_client_connects_again_after_a_limit_or_an_exception(limit) -> None:
    def on_connect(connection, payload) -> None:
        if limit == "on_connect" and "x" in payload:
            raise RuntimeError("asked to fail")

    async with serving(**LIMITS.get(limit, {}), on_connect=on_connect) as (url, _, _hub):
        lines = await reference_client(url, [{"x": "x" * 2000}, {}], "{ hello }")
        assert lines[0] == {"closed": 4499}
        assert lines[1:3] == [
            {"index": 0, "next": {"data": {"hello": "hello you"}}},
            {"index": 0, "complete": True},
        ]
