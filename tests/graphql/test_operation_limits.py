"""GraphQL over WebSocket: limits of a client's operations in number, bytes and tokens. They never block the loop."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from graphql import GraphQLArgument, GraphQLField, GraphQLObjectType, GraphQLSchema, GraphQLString

from tests.graphql.peers import Client, Source, make_schema, serving, speaking
from tests.support.raw_peers import masked
from wshub import Frame, Message
from wshub.graphql import GraphQLHandler
from wshub.graphql.messages import SubscribePayload
from wshub.graphql.pacer import BUDGET, Pacer

SUBSCRIBE = {"type": "subscribe", "payload": {"query": "{ work }"}}


def work() -> None:
    """Work for so long that the next operation waits for another loop iteration."""
    end = time.perf_counter() + BUDGET
    while time.perf_counter() < end:
        pass


class Iterations:
    """Counts the iterations of the running loop."""

    def __init__(self) -> None:
        self.number = 0
        self._loop = asyncio.get_running_loop()
        self._count()

    def _count(self) -> None:
        self.number += 1
        self._handle = self._loop.call_soon(self._count)

    def stop(self) -> None:
        self._handle.cancel()


def working_schema(resolve: Any) -> GraphQLSchema:
    return GraphQLSchema(GraphQLObjectType("Query", {"work": GraphQLField(GraphQLString, resolve=resolve)}))


async def send_all(client: Client, *messages: dict[str, Any]) -> None:
    """Send messages in one segment. The server handles them in one loop iteration."""
    client.connection.transport.write(b"".join(masked(Frame.text(json.dumps(message))) for message in messages))


async def until_done(handler: GraphQLHandler) -> None:
    while handler.tasks:
        await asyncio.sleep(0)


async def test_the_loop_goes_on_between_the_operations_of_all_clients() -> None:
    iterations = Iterations()
    begun: list[int] = []

    def resolve(*_: Any) -> str:
        begun.append(iterations.number)
        work()
        return "done"

    async with (
        serving(working_schema(resolve)) as (url, _, _hub),
        speaking(url) as one,
        speaking(url) as other,
    ):
        for client in (one, other):
            await client.introduce()
            await send_all(client, *({**SUBSCRIBE, "id": str(number)} for number in range(20)))
        for client in (one, other):
            answers = [await client.receive() for _ in range(40)]
            completed = [answer["id"] for answer in answers if answer["type"] == "complete"]
            assert completed == [str(number) for number in range(20)]
    iterations.stop()
    assert len(set(begun)) == 40


@pytest.mark.parametrize("end", ["complete", "break"])
def test_an_operation_that_ends_while_it_waits_for_its_turn_leaves_nothing_behind(run, caplog, end) -> None:
    async def scenario() -> None:
        handlers: list[GraphQLHandler] = []
        begun = 0

        def resolve(_: Any, info: Any) -> str:
            nonlocal begun
            begun += 1
            connection = info.context["connection"]
            if begun == 3 and end == "break":
                handlers[0].on_message(connection, Message("unheard-of"))
            elif begun == 3:
                for number in range(3, 19):
                    text = json.dumps({"type": "complete", "id": str(number)})
                    handlers[0].on_message(connection, Message(text))
            work()
            return "done"

        def make(*arguments: Any) -> GraphQLHandler:
            handlers.append(GraphQLHandler(*arguments))
            return handlers[0]

        async with serving(working_schema(resolve), kind=make) as (url, _, _hub):
            async with speaking(url) as client:
                await client.introduce()
                await send_all(client, *({**SUBSCRIBE, "id": str(number)} for number in range(20)))
                if end == "complete":
                    answers = [await client.receive() for _ in range(8)]
                    assert [answer["id"] for answer in answers[::2]] == ["0", "1", "2", "19"]
                else:
                    await client.closed()
            await until_done(handlers[0])
            assert begun == (4 if end == "complete" else 3)
            async with speaking(url) as client:
                await client.introduce()
                await client.subscribe("1", "{ work }")
                assert (await client.receive())["payload"] == {"data": {"work": "done"}}

    run(scenario())
    gc.collect()
    assert caplog.records == []


async def test_whoever_is_cancelled_in_the_pacer_lets_the_next_one_in() -> None:
    pacer = Pacer(asyncio.get_running_loop())
    started: list[int] = []

    async def start(number: int) -> None:
        await pacer.wait()
        with pacer.charge():
            started.append(number)
            work()

    tasks = [asyncio.create_task(start(number)) for number in range(6)]
    await asyncio.sleep(0)
    # The second has the lock and pauses. The others wait for the lock.
    for number in (1, 3, 5):
        tasks[number].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert started == [0, 2, 4]
    await start(6)
    assert started[-1] == 6


def test_a_handler_paces_operations_on_one_loop_after_another(run, caplog) -> None:
    def resolve(*_: Any) -> str:
        work()
        return "done"

    handler = GraphQLHandler(working_schema(resolve))

    async def scenario(answers: int) -> None:
        async with serving(kind=lambda schema: handler) as (url, _, _hub), speaking(url) as client:
            await client.introduce()
            await send_all(client, *({**SUBSCRIBE, "id": str(number)} for number in range(20)))
            for _ in range(answers):
                assert (await client.receive())["type"] in ("next", "complete")

    # Operations are still waiting when the first server is closed.
    run(scenario(2))
    run(scenario(40))
    assert caplog.records == []


async def test_an_operation_of_too_many_tokens_is_an_error_and_the_others_go_on() -> None:
    async with serving(max_tokens=4) as (url, _, _hub), speaking(url) as client:
        await client.introduce()
        await client.subscribe("1", "{ hello hello hello }")
        answer = await client.receive()
        assert (answer["id"], answer["type"]) == ("1", "error")
        assert "tokens" in answer["payload"][0]["message"]
        await client.subscribe("1", "{ hello hello }")
        assert (await client.receive())["payload"] == {"data": {"hello": "hello you"}}
    async with serving() as (url, _, _hub), speaking(url) as client:
        await client.introduce()
        await client.subscribe("1", "{" + "hello " * 1000 + "}")
        assert (await client.receive())["type"] == "error"


class Unwinding:
    """A schema whose source needs some time to end."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.go_on = asyncio.Event()
        self.handler: Any = None

    def make(self, _: Any, **options: Any) -> GraphQLHandler:
        schema = make_schema(Source())
        text = {"text": GraphQLArgument(GraphQLString)}
        slow = GraphQLField(GraphQLString, text, subscribe=self.slow)
        subscription = GraphQLObjectType("Subscription", {"slow": slow})
        self.handler = GraphQLHandler(GraphQLSchema(schema.query_type, subscription=subscription), **options)
        return self.handler

    async def slow(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        self.begun += 1
        try:
            await asyncio.Event().wait()
            yield
        finally:
            await self.go_on.wait()
            self.ended += 1

    async def until_begun(self, number: int) -> None:
        while self.begun < number:
            await asyncio.sleep(0)


async def test_an_operation_counts_until_its_source_has_ended_and_its_id_is_free_at_once() -> None:
    source = Unwinding()
    async with serving(kind=source.make, max_operations=2) as (url, _, _hub), speaking(url) as client:
        await client.introduce()
        for number in (1, 2):
            await client.subscribe("a", "subscription { slow }")
            await source.until_begun(number)
            await client.send("complete", id="a")
        await client.subscribe("a", "{ hello }")
        answer = await client.receive()
        assert (answer["id"], answer["type"]) == ("a", "error")
        assert "too many operations" in answer["payload"][0]["message"]
        assert (source.begun, source.ended) == (2, 0)
        source.go_on.set()
        await until_done(source.handler)
        await client.subscribe("a", "{ hello }")
        assert (await client.receive())["payload"] == {"data": {"hello": "hello you"}}


async def test_the_running_operations_of_a_connection_are_bounded_in_bytes() -> None:
    source = Unwinding()
    query = "subscription A($x: String) { slow(text: $x) }"
    # Each character has two bytes.
    payload = {"query": query, "variables": {"x": "é" * 1000}}
    text = json.dumps({"type": "subscribe", "id": "a", "payload": payload}, ensure_ascii=False)
    options = {"max_operation_bytes": 2 * len(text.encode())}
    async with serving(kind=source.make, **options) as (url, _, _hub), speaking(url) as client:
        await client.introduce()
        for number in (1, 2):
            await client.connection.send(text)
            await source.until_begun(number)
            await client.send("complete", id="a")
        await client.subscribe("b", "{ hello }")
        answer = await client.receive()
        assert (answer["id"], answer["type"]) == ("b", "error")
        assert "too large" in answer["payload"][0]["message"]
        source.go_on.set()
        await until_done(source.handler)
        await client.subscribe("b", "{ hello }")
        assert (await client.receive())["payload"] == {"data": {"hello": "hello you"}}
        assert (await client.receive())["type"] == "complete"
        await client.connection.send(text)
        await client.connection.send(text.replace('"a"', '"c"'))
        await source.until_begun(4)


async def test_an_operation_that_is_completed_before_it_begins_frees_its_number_and_bytes() -> None:
    source = Unwinding()
    subscribe = {"type": "subscribe", "id": "a", "payload": {"query": "subscription { slow }"}}
    options = {"max_operations": 3, "max_operation_bytes": 3 * len(json.dumps(subscribe))}
    async with serving(kind=source.make, **options) as (url, _, _hub), speaking(url) as client:
        await client.introduce()
        for _ in range(3):
            await send_all(client, *[subscribe, {"type": "complete", "id": "a"}] * 3, {"type": "ping"})
            assert await client.receive() == {"type": "pong"}
            await until_done(source.handler)
        assert source.begun == 0
        source.go_on.set()


async def test_a_running_subscription_does_not_keep_what_its_client_sent() -> None:
    source = Unwinding()
    async with serving(kind=source.make) as (url, _, _hub), speaking(url) as client:
        await client.introduce()
        await client.subscribe("a", "subscription { slow }")
        await source.until_begun(1)
        gc.collect()
        kept = [value for value in gc.get_objects() if type(value) is SubscribePayload]
        assert not [value for value in kept if value.query == "subscription { slow }"]
        source.go_on.set()
