"""Records that break the rules: the connection ends, and nothing else suffers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import struct

import pytest

from tests.brokers.mesh import Node, mesh, until
from tests.brokers.raw_worker import (
    ENVELOPE,
    HELLO,
    MATCHING,
    PING,
    PONG,
    SNAPSHOT_END,
    SUBSCRIBE,
    RawWorker,
    channels,
    number,
    record,
)
from wshub.brokers.interface import NodeInfo
from wshub.brokers.workers_hello import Hello

NODE = NodeInfo(id="0123456789abcdef", hub="hub", host="h", pid=1, started_at=2.5)


BEFORE_HELLO = {
    "no record": b"GET / HTTP/1.1\r\n\r\n",
    "an empty record": struct.pack("<I", 0),
    "a long record": struct.pack("<I", 65537),
    "an envelope": record(ENVELOPE, b"x"),
    "a ping": record(PING, number(1)),
    "an envelope for a pattern": record(MATCHING, channels("match:*")),
    "no JSON": record(HELLO, b"{"),
    "no fields": record(HELLO, b"{}"),
    "a list": record(HELLO, b"[]"),
    "deep JSON": record(HELLO, b"[" * 60_000),
    "a bad id": record(HELLO, json.dumps({"version": 1, "serial": 1, "node": {"id": "x", "hub": "hub"}}).encode()),
    "a bad serial": record(
        HELLO, json.dumps({"version": 1, "serial": "1", "node": {"id": "a" * 16, "hub": "hub"}}).encode()
    ),
}

AFTER_HELLO = {
    "a second hello": record(HELLO, b"{}"),
    "an empty record": struct.pack("<I", 0),
    "a long record": struct.pack("<I", (65 << 20) + 2),
    "a truncated name": record(SUBSCRIBE, struct.pack("<I", 5) + b"abcd"),
    "a truncated length": record(SUBSCRIBE, b"\x01\0\0"),
    "two wildcards": record(SUBSCRIBE, channels("match:a*b*")),
    "a truncated pattern": record(MATCHING, struct.pack("<I", 8) + b"match:*"),
    "a long pattern": record(MATCHING, struct.pack("<I", 0xFFFFFFFF) + b"match:*"),
    "a truncated length of a pattern": record(MATCHING, b"\x01\0\0"),
    "a pattern that is no UTF-8": record(MATCHING, struct.pack("<I", 1) + b"\xff"),
    "no UTF-8": record(SUBSCRIBE, struct.pack("<I", 1) + b"\xff"),
    "the end of no snapshot": record(SNAPSHOT_END),
    "a short ping": record(PING, b"1234567"),
    "a long pong": record(PONG, b"123456789"),
}


@pytest.mark.parametrize("sent", BEFORE_HELLO.values(), ids=BEFORE_HELLO)
async def test_a_connection_that_begins_wrongly_is_ended(path, sent, caplog) -> None:
    async with mesh(path, 2) as (node, other):
        raw = await RawWorker.connect(node)
        raw.writer.write(sent)
        assert await raw.is_closed()
        raw.close()
        assert (await other.broker.publish(node.own_channel, b"1")).receivers == 1
        await until(lambda: node.received == [b"1"])
        assert node.log == [b"1"]
        assert [line.levelno for line in caplog.records if line.name == "wshub.broker"] == [logging.WARNING]


@pytest.mark.parametrize("sent", AFTER_HELLO.values(), ids=AFTER_HELLO)
async def test_a_peer_that_breaks_the_rules_is_ended_and_logged_once(path, sent, caplog) -> None:
    async with mesh(path, 1) as (node,):
        for _ in range(3):
            raw = await RawWorker.meet(node, "d" * 16)
            raw.write(ENVELOPE, b"1")
            raw.writer.write(sent)
            raw.write(ENVELOPE, b"never")
            assert await raw.is_closed()
            raw.close()
            await until(lambda: node.peers == 0)
        assert node.received == [b"1"] * 3
        assert [line.getMessage() for line in caplog.records if "is ended" in line.getMessage()].__len__() == 1


async def test_records_of_an_unknown_kind_are_ignored(path) -> None:
    async with mesh(path, 1) as (node,):
        raw = await RawWorker.meet(node)
        raw.write(77, b"anything")
        raw.write(0)
        raw.write(ENVELOPE, b"1")
        await until(lambda: node.received == [b"1"])
        raw.close()


async def test_an_envelope_for_a_pattern_reaches_its_function_alone(path) -> None:
    matched: list[bytes] = []
    async with mesh(path, 1) as (node,):
        raw = await RawWorker.meet(node)
        node.broker.subscribe_pattern("a:*", matched.append)
        assert await raw.read() == (SUBSCRIBE, channels("match:a:*"))
        raw.write(MATCHING, channels("match:b:*") + b"of a pattern that the node does not have")
        raw.write(MATCHING, channels("match:a:*") + b"1")
        raw.write(MATCHING, channels("match:a:*"))
        raw.write(ENVELOPE, b"2")
        await until(lambda: node.received == [b"2"])
        assert matched == [b"1", b""]
        raw.close()


async def test_a_node_of_another_version_is_left_alone(path, caplog) -> None:
    async with mesh(path, 1) as (node,):
        for _ in range(3):
            raw = await RawWorker.connect(node, "d" * 16)
            raw.hello(version=2)
            kind, body = await raw.read()
            assert kind == HELLO
            assert Hello.decode(body).node == node.info
            assert await raw.is_closed()
            raw.close()
        assert node.peers == 0
        assert sum("another version" in line.getMessage() for line in caplog.records) == 1


async def test_records_arrive_in_pieces_of_any_size(path) -> None:
    chance = random.Random("pieces")
    envelopes = [chance.randbytes(chance.choice((0, 5, 100, 3000, 70_000))) for _ in range(200)]
    stream = b"".join(record(ENVELOPE, envelope) for envelope in envelopes)
    async with mesh(path, 1) as (node,):
        raw = await RawWorker.meet(node)
        position = 0
        while position < len(stream):
            size = chance.choice((1, 2, 3, 4, 5, 6, 50, 5000, 100_000))
            raw.writer.write(stream[position : position + size])
            position += size
            await asyncio.sleep(0)
        await until(lambda: len(node.received) == len(envelopes))
        assert node.received == envelopes
        raw.close()


async def test_random_bytes_never_hurt(path) -> None:
    chance = random.Random("bytes")
    async with mesh(path, 2) as (node, other):
        for _ in range(100):
            raw = await RawWorker.connect(node)
            if chance.random() < 0.7:
                raw.hello()
            for _ in range(chance.randrange(5)):
                body = chance.randbytes(chance.choice((0, 1, 4, 8, 30)))
                raw.writer.write(
                    chance.choice(
                        (
                            body,
                            record(chance.randrange(14), body),
                            record(SUBSCRIBE, channels("a", "b")[: chance.randrange(10)]),
                        )
                    )
                )
            with contextlib.suppress(ConnectionError):
                await raw.writer.drain()
            raw.close()
        await until(lambda: len(node.session._connections) == 1)
        assert (await other.broker.publish(node.own_channel, b"end")).receivers == 1
        await until(lambda: node.received[-1:] == [b"end"])


async def test_connections_that_say_nothing_are_bounded_in_number_and_time(path) -> None:
    async with mesh(path, 1) as (node,):
        silent = [await RawWorker.connect(node) for _ in range(300)]
        await until(lambda: len(node.session._connections) == 256)
        for now in range(100, 111):
            node.broker.sweep(now)
        await until(lambda: not node.session._connections)
        for raw in silent:
            raw.close()


def test_a_hello_is_what_it_was() -> None:
    hello = Hello(NODE, 7)
    assert Hello.decode(hello.encode()) == hello
    fields = json.loads(hello.encode())
    fields["new"] = fields["node"]["new"] = 1
    assert Hello.decode(json.dumps(fields).encode()) == hello


async def test_a_hello_with_the_id_of_this_node_is_refused(path) -> None:
    node = await Node(path).start()
    raw = await RawWorker.connect(node, node.info.id)
    raw.hello()
    assert await raw.is_closed()
    raw.close()
    await node.close()
