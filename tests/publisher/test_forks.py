"""A publisher in a process that was forked."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing

from tests.publisher.hub_with_member import Member
from wshub.publisher import AsyncPublisher, Publisher


def publish_in_child(publisher: Publisher) -> None:
    publisher.publish("from the child", room="lobby")
    publisher.close()


async def test_a_forked_process_connects_anew(directory) -> None:
    member = Member(directory)
    async for client in member.clients():
        publisher = Publisher(member.url)
        await asyncio.to_thread(publisher.publish, "from the parent", room="lobby")
        child = multiprocessing.get_context("fork").Process(target=publish_in_child, args=(publisher,))
        child.start()
        await asyncio.to_thread(child.join, 20)
        assert child.exitcode == 0
        await asyncio.to_thread(publisher.publish, "the parent again", room="lobby")
        await asyncio.to_thread(publisher.close)
        assert [await client.recv() for _ in range(3)] == ["from the parent", "from the child", "the parent again"]


async def test_a_process_that_was_forked_within_a_call_connects_anew(directory) -> None:
    member = Member(directory)
    async with contextlib.aclosing(member.clients()) as clients:
        async for client in clients:
            publisher = Publisher(member.url)
            await asyncio.to_thread(publisher.publish, "from the parent", room="lobby")
            # As if another thread were within publish() at the moment of the fork.
            with publisher._state().lock:
                child = multiprocessing.get_context("fork").Process(target=publish_in_child, args=(publisher,))
                child.start()
            await asyncio.to_thread(child.join, 20)
            exitcode = child.exitcode
            child.kill()
            assert exitcode == 0
            await asyncio.to_thread(publisher.close)
            assert [await client.recv() for _ in range(2)] == ["from the parent", "from the child"]


def publish_on_a_loop_in_child(publisher: AsyncPublisher) -> None:
    async def publish() -> None:
        await publisher.publish("from the child", room="lobby")
        await publisher.close()

    asyncio.run(publish())


async def test_a_process_that_was_forked_from_a_loop_connects_anew(directory) -> None:
    member = Member(directory)
    async with contextlib.aclosing(member.clients()) as clients:
        async for client in clients:
            publisher = AsyncPublisher(member.url)
            await publisher.publish("from the parent", room="lobby")
            child = multiprocessing.get_context("fork").Process(target=publish_on_a_loop_in_child, args=(publisher,))
            child.start()
            await asyncio.to_thread(child.join, 20)
            exitcode = child.exitcode
            child.kill()
            assert exitcode == 0
            await publisher.publish("the parent again", room="lobby")
            await publisher.close()
            assert [await client.recv() for _ in range(3)] == ["from the parent", "from the child", "the parent again"]
