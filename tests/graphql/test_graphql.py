"""GraphQL over WebSocket: all of graphql-transport-ws, with raw clients and with the reference client."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest

from tests.graphql.peers import Source, make_schema, reference_client, serving, speaking
from wshub import ConfigurationError, MisuseError
from wshub.graphql import GraphQLHandler


async def test_a_query_a_mutation_and_a_subscription_are_answered() -> None:
    async with serving() as (url, source, _), speaking(url) as client:
        await client.introduce(payload={"user": "ada"})
        await client.subscribe("1", "query A($name: String) { hello(name: $name) who }", variables={"name": "me"})
        assert await client.receive() == {
            "id": "1",
            "type": "next",
            "payload": {"data": {"hello": "hello me", "who": "ada"}},
        }
        assert await client.receive() == {"id": "1", "type": "complete"}
        await client.subscribe("1", 'mutation B { shout(name: "a") }', operationName="B")
        assert (await client.receive())["payload"] == {"data": {"shout": "A"}}
        assert (await client.receive())["type"] == "complete"
        await client.subscribe("2", "subscription { count(to: 3) }")
        received = [await client.receive() for _ in range(4)]
        assert [message.get("payload") for message in received[:3]] == [
            {"data": {"count": number}} for number in range(3)
        ]
        assert received[3] == {"id": "2", "type": "complete"}
        assert (source.started, source.ended) == (1, 1)


async def test_errors_are_told_and_the_connection_goes_on() -> None:
    async with serving(max_operations=1) as (url, _, _hub), speaking(url) as client:
        await client.introduce()
        deep = "{ a " * 15_000
        for query in ("{ nonsense", "{ unknown }", "query A { hello } query B { hello }", deep):
            await client.subscribe("1", query)
            answer = await client.receive()
            assert (answer["id"], answer["type"]) == ("1", "error")
            assert answer["payload"][0]["message"]
        await client.subscribe("1", "{ fails }")
        answer = await client.receive()
        assert answer["payload"]["data"] == {"fails": None}
        assert answer["payload"]["errors"][0]["message"] == "asked to fail"
        assert (await client.receive())["type"] == "complete"
        # This server allows one operation at a time.
        await client.subscribe("2", "subscription { endless }")
        assert (await client.receive())["type"] == "next"
        await client.subscribe("3", "{ hello }")
        while (answer := await client.receive())["type"] == "next":
            pass
        assert (answer["id"], answer["type"]) == ("3", "error")


async def test_a_client_ends_a_subscription_and_may_use_its_id_again() -> None:
    async with serving() as (url, source, _), speaking(url) as client:
        await client.introduce()
        await client.subscribe("1", "subscription { endless }")
        assert (await client.receive())["type"] == "next"
        await client.send("complete", id="1")
        await client.send("complete", id="never there")
        while not source.ended:
            await asyncio.sleep(0)
        await client.subscribe("1", "{ hello }")
        while (answer := await client.receive())["payload"]["data"] != {"hello": "hello you"}:
            pass
        assert (answer["id"], (await client.receive())["type"]) == ("1", "complete")


async def test_a_disconnect_ends_everything_that_was_under_way() -> None:
    async with serving() as (url, source, hub):
        async with speaking(url) as client:
            await client.introduce()
            for number in range(5):
                await client.subscribe(str(number), "subscription { endless }")
            while source.started < 5:
                await client.receive()
            client.connection.transport.abort()
        while source.ended < 5 or hub.connection_count:
            await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("wshub GraphQL")]


async def test_a_slow_reader_slows_its_source() -> None:
    async with serving() as (url, source, hub), speaking(url, max_queue=1) as client:
        await client.introduce()
        await client.subscribe("1", "subscription { endless }")
        before = -1
        while before != source.values or not before:
            before = source.values
            await asyncio.sleep(0.1)
        assert not hub.stats().dropped.total
        for _ in range(before):
            assert (await client.receive())["type"] == "next"


async def test_pings_are_answered_with_what_they_carry() -> None:
    async with serving() as (url, _, _hub), speaking(url) as client:
        await client.send("ping")
        assert await client.receive() == {"type": "pong"}
        await client.send("ping", payload={"a": 1})
        assert await client.receive() == {"type": "pong", "payload": {"a": 1}}
        await client.send("pong", payload={})
        await client.introduce()


async def test_the_application_decides_who_may_connect() -> None:
    async def on_connect(connection, payload) -> Any:
        return {"welcome": payload["user"]} if payload and "user" in payload else False

    async with serving(on_connect=on_connect) as (url, _, _hub):
        async with speaking(url) as client:
            await client.send("connection_init", payload={"user": "ada"})
            assert await client.receive() == {"type": "connection_ack", "payload": {"welcome": "ada"}}
        async with speaking(url) as client:
            await client.send("connection_init")
            assert await client.closed() == (4403, "Forbidden")


QUERY = {"query": "{ hello }"}


@pytest.mark.parametrize(
    ("messages", "code", "reason"),
    [
        ([{"type": "subscribe", "id": "1", "payload": QUERY}], 4401, "Unauthorized"),
        ([{"type": "connection_init"}] * 2, 4429, "Too many initialisation requests"),
        (["no JSON"], 4400, "Invalid message"),
        (["[" * 60_000], 4400, "Invalid message"),
        ([[1]], 4400, "Invalid message"),
        ([{"type": "unheard-of"}], 4400, "Invalid message"),
        ([{"type": "ping", "payload": 1}], 4400, "Invalid message"),
        ([{"type": "subscribe", "payload": QUERY}], 4400, "Invalid message"),
        ([{"type": "subscribe", "id": "1"}], 4400, "Invalid message"),
        (
            [{"type": "subscribe", "id": "1", "payload": {"query": "{ hello }", "variables": 1}}],
            4400,
            "Invalid message",
        ),
        ([b"{}"], 4400, "Invalid message"),
    ],
)
async def test_what_breaks_the_protocol_closes_the_connection(messages, code, reason) -> None:
    async with serving() as (url, _, _hub), speaking(url, max_size=None) as client:
        for message in messages:
            raw = isinstance(message, str | bytes)
            await client.connection.send(message if raw else json.dumps(message))
        closed = await client.closed()
        assert closed[0] == code
        assert str(closed[1]).startswith(reason)


async def test_an_id_that_is_in_use_closes_the_connection() -> None:
    async with serving() as (url, _, _hub), speaking(url) as client:
        await client.introduce()
        long = "\u00e9" * 200
        await client.subscribe(long, "subscription { endless }")
        assert (await client.receive())["type"] == "next"
        await client.subscribe(long, "subscription { endless }")
        code, reason = await client.closed()
        assert code == 4409
        assert str(reason).startswith("Subscriber for \u00e9")


async def test_who_does_not_introduce_itself_in_time_is_closed() -> None:
    async with serving(connection_init_timeout=0.05) as (url, _, _hub), speaking(url) as client:
        assert await client.closed() == (4408, "Connection initialisation timeout")


async def test_another_subprotocol_is_closed() -> None:
    async with serving() as (url, _, _hub), speaking(url, subprotocols=None) as client:
        assert await client.closed() == (4406, "Subprotocol not acceptable")


@pytest.mark.parametrize(
    "options",
    [
        {"connection_init_timeout": 0},
        {"connection_init_timeout": float("nan")},
        {"connection_init_timeout": True},
        {"connection_init_timeout": "3"},
        {"max_operations": 0},
        {"max_operations": 1.5},
        {"max_operations": True},
        {"max_operation_bytes": 0},
        {"max_operation_bytes": 1.5},
        {"max_operation_bytes": True},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": True},
    ],
)
def test_settings_are_checked(options) -> None:
    with pytest.raises(ConfigurationError):
        GraphQLHandler(make_schema(Source()), **options)
    with pytest.raises(ConfigurationError, match="GraphQLSchema"):
        GraphQLHandler("type Query")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["context", "on_connect"])
def test_functions_are_checked(name) -> None:
    async def generates(connection, payload):
        yield

    with pytest.raises(MisuseError, match=rf"{name} .* generator function"):
        GraphQLHandler(make_schema(Source()), **{name: generates})
    with pytest.raises(MisuseError, match=rf"{name} is called with \(connection, payload\)"):
        GraphQLHandler(make_schema(Source()), **{name: lambda connection: None})


@pytest.mark.skipif("WSHUB_SANITIZED" in os.environ, reason="Node.js does not start with the sanitizers preloaded")
async def test_the_reference_client_is_served() -> None:
    async with serving() as (url, source, _):
        lines = await reference_client(
            url, {"user": "ada"}, "subscription { count(to: 100) }", "{ who }", "{ unknown }"
        )
        of = {index: [line for line in lines if line["index"] == index] for index in range(3)}
        counted = [{"index": 0, "next": {"data": {"count": number}}} for number in range(100)]
        assert of[0] == [*counted, {"index": 0, "complete": True}]
        assert of[1] == [{"index": 1, "next": {"data": {"who": "ada"}}}, {"index": 1, "complete": True}]
        assert len(of[2]) == 1
        assert "unknown" in of[2][0]["error"][0]
        assert (source.started, source.ended) == (1, 1)
    async with serving(on_connect=lambda connection, payload: False) as (url, _, _hub):
        assert await reference_client(url, {}, "{ hello }") == [{"index": 0, "error": 4403}]
