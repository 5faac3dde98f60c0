"""Workers in processes of their own, which are stopped, killed and replaced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time

from tests.brokers.mesh import Node, mesh, sockets, until, worker

MEBIBYTE = 1 << 20
SANITIZED = "WSHUB_SANITIZED" in os.environ


async def sweep_until(node: Node, condition, seconds: float = 30) -> None:
    """Sweep a few times a second of real time until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition does not hold in time"
        node.broker.sweep(time.monotonic())
        await asyncio.sleep(0.05)


async def test_what_a_killed_worker_had_sent_still_arrives(path) -> None:
    async with mesh(path, 1) as (node,), worker(path) as other:
        await node.join("room:a")
        await until(lambda: node.peers == 1)
        await other.ask("send", "room:a", 20_000, 64)
        await other.ask("stats")
        sent = (await other.ask("stats"))["sent"]
        await other.kill()
        # It is lost while this node has much to read, and writes to it.
        node.broker.send(f"node:{other.id}", bytes(64))
        await until(lambda: node.peers == 0)
        numbers = [int(envelope.split(b" ")[0]) for envelope in node.received]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= sent > 0
        assert node.log[-1] == ("interrupted", "lost")
        await sweep_until(node, lambda: len(sockets(path)) == 1)
        assert node.log[-1] == ("restored",)


async def test_a_pattern_gets_what_other_processes_send(path) -> None:
    matched: list[bytes] = []
    async with mesh(path, 1) as (node,), worker(path) as other, worker(path) as third:
        await until(lambda: node.peers == 2)
        node.broker.subscribe_pattern("a:*", matched.append)
        await node.broker.pattern_subscribed("a:*")
        for process in (other, third):
            await process.ask("send", "room:b", 10, 64)
            await process.ask("send", "room:a:1", 1_000, 64)
        await until(lambda: len(matched) == 2_000)
        assert sorted(int(envelope.split(b" ")[0]) for envelope in matched) == sorted([*range(1_000)] * 2)
        node.broker.unsubscribe_pattern("a:*")
        assert node.received == []


async def test_a_stopped_worker_is_ended_and_comes_back(path) -> None:
    async with mesh(path, 1, max_pending=4 * MEBIBYTE) as (node,), worker(path) as other, worker(path) as third:
        for process in (other, third):
            await process.ask("join", "room:a")
        await sweep_until(node, lambda: node.peers == 2)
        other.signal(signal.SIGSTOP)
        stopped_at = time.monotonic()
        durations = []

        def flood() -> bool:
            for _ in range(40):
                began = time.perf_counter()
                node.broker.send("room:a", b"0 " + bytes(2000))
                durations.append(time.perf_counter() - began)
            return node.peers < 2

        await sweep_until(node, flood)
        assert 5 < time.monotonic() - stopped_at < 16
        stats = node.broker.stats()
        assert stats.dropped["full"] > 0
        assert node.broker.health().pending_bytes < 9 * MEBIBYTE
        assert sorted(durations)[len(durations) // 2] < 0.001
        assert ("interrupted", "lost") in node.log
        # The third worker had everything meanwhile.
        expected = len(durations)
        while len(await third.ask("numbers")) < expected:
            await asyncio.sleep(0.05)
        other.signal(signal.SIGCONT)
        # A connection that the stopped worker took may be lost again.
        await sweep_until(node, lambda: node.peers == 2 and node.log[-1] == ("restored",))
        assert node.broker.stats().reconnects >= 1
        deadline = time.monotonic() + 20
        while (await node.broker.publish("room:a", b"1 ")).receivers < 2:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        while (await other.ask("numbers"))[-1:] != [1]:
            await asyncio.sleep(0.05)
        # It had not read for long: it was told that it may have missed something.
        assert (await other.ask("events"))[0] == ["interrupted", "lost"]


async def test_a_stopped_worker_costs_bounded_memory(path) -> None:
    async with worker(path) as sender, worker(path) as stopped:
        await stopped.ask("join", "room:a")
        await sender.ask("send", "room:a", 1000, 2000)
        before = await sender.memory()
        stopped.signal(signal.SIGSTOP)
        taken = await sender.ask("send", "room:a", 50_000, 2000)
        assert taken < 20_000
        # The sanitizers keep what was freed.
        assert SANITIZED or await sender.memory() - before < 24 * MEBIBYTE
        assert (await sender.ask("stats"))["dropped"]["full"] == 50_000 - taken
        stopped.signal(signal.SIGCONT)
        while ["interrupted", "full"] not in await stopped.ask("events"):
            await asyncio.sleep(0.05)


async def test_a_worker_whose_loop_is_blocked_for_some_seconds_stays(path) -> None:
    async with mesh(path, 1) as (node,), worker(path) as other:
        await sweep_until(node, lambda: node.peers == 1)
        blocking = asyncio.create_task(other.ask("block", 4))
        await sweep_until(node, blocking.done)
        node.broker.send(f"node:{other.id}", b"1 ")
        while await other.ask("numbers") != [1]:
            await asyncio.sleep(0.01)
        assert node.log == []
        assert await other.ask("events") == []


async def test_workers_are_replaced_while_messages_flow(path) -> None:
    async with mesh(path, 1) as (node,):
        for turn in range(3):
            async with worker(path) as other:
                await other.ask("join", "room:a")
                assert (await node.broker.publish("room:a", b"%d " % turn)).receivers == 1
                while await other.ask("numbers") != [turn]:
                    await asyncio.sleep(0.01)
                if turn == 1:
                    other.signal(signal.SIGKILL)
                else:
                    assert other.process.stdin is not None
                    other.process.stdin.close()
                await other.process.wait()
                await sweep_until(node, lambda: node.peers == 0 and len(sockets(path)) == 1)
        assert node.log == [("interrupted", "lost"), ("restored",)]
    assert sockets(path) == []


def test_a_forked_process_leaves_the_socket_to_its_parent(path) -> None:
    async def scenario() -> None:
        node = await Node(path).start()
        child = os.fork()
        if not child:
            node.session.directory.remove()
            os._exit(0)
        os.waitpid(child, 0)  # noqa: ASYNC222
        assert len(sockets(path)) == 1
        await node.close()

    asyncio.run(scenario())
    assert json.dumps(sockets(path)) == "[]"
