"""A coroutine handler behaves like an asyncio task."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import sys
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.core.handler_programs import VARIABLE, Actor, Stage, program
from tests.support.raw_peers import masked
from wshub import EventHandler, Frame, Hub
from wshub.core.event_handler import handler_table_of
from wshub.links.eager_task import start_eager_task
from wshub.links.link_probe import LinkProbe
from wshub.links.memory_link import create_memory_links

PROGRAMS = 300
ATTEMPTS = 20
HAS_EAGER_TASKS = sys.version_info >= (3, 12)


class Wire:
    """A connection in memory; the test decides when a message arrives."""

    def __init__(self, hub: Hub, handler: EventHandler) -> None:
        self.connection = hub.register_connection(handler_table_of(handler), None)
        self._link, other = create_memory_links(loop=asyncio.get_running_loop())
        self.peer = LinkProbe(other)
        hub.open_on_link(self.connection, self._link, b"", b"")

    def receive(self, text: str = "go") -> None:
        """Deliver a message; its handler starts before this method returns."""
        self.peer.write(masked(Frame.text(text)))
        self._link.deliver()

    def lose(self) -> None:
        """End the connection."""
        self._link.cut(0)
        self._link.deliver()


async def as_tasks(stage: Stage, actors: list[Actor]) -> list[Any]:
    """Run the actors as ordinary asyncio tasks. Return the outcome of each."""
    tasks = [asyncio.create_task(actor.play(stage), context=contextvars.copy_context()) for actor in actors]
    await stage.settle()
    return [ending(task) for task in tasks]


async def as_eager_tasks(stage: Stage, actors: list[Actor]) -> list[Any]:
    """Run the actors as eagerly started tasks, from the loop."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[Any]] = []

    def start() -> None:
        for actor in actors:
            context = contextvars.copy_context()
            tasks.append(asyncio.Task(actor.play(stage), loop=loop, context=context, eager_start=True))

    loop.call_soon(start)
    await asyncio.sleep(0)
    await stage.settle()
    return [ending(task) for task in tasks]


async def as_handlers(stage: Stage, actors: list[Actor]) -> list[Any]:
    """Run each actor as the handler of its own connection. Return the outcome of each."""
    hub = Hub()
    hub.bind()
    wires = [Wire(hub, EventHandler(on_message=lambda *_, actor=actor: actor.play(stage))) for actor in actors]
    started = asyncio.get_running_loop().create_future()

    def start() -> None:
        for wire in wires:
            wire.receive()
        started.set_result(None)

    # The loop calls handlers.
    asyncio.get_running_loop().call_soon(start)
    await started
    await stage.settle()
    await close(hub, wires)
    return [ending(stage.tasks[actor.number]) for actor in actors]


def ending(task: asyncio.Task[Any]) -> Any:
    """Return the outcome of a finished task."""
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return type(error).__name__ if error is not None else "returned"


def each_by_itself(played: Any) -> Any:
    """Return the record of each actor, without the order between actors."""
    endings, record = played
    return endings, [[entry for entry in record if entry[0] == number] for number in range(len(endings))]


async def played(play: Callable[[Stage, list[Actor]], Awaitable[list[Any]]], seed: int, factory: Any = None) -> Any:
    """Return the outcomes of a program's actors, and their record."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    # Tasks that outlive their actor may end with an exception that is never retrieved.
    loop.set_exception_handler(lambda *_: None)
    token = VARIABLE.set("unset")
    stage = Stage()
    try:
        endings = await play(stage, program(seed))
    finally:
        VARIABLE.reset(token)
        loop.set_task_factory(None)
    return endings, stage.record


# The programs cancel coroutines before they start.
@pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("kind", ["tasks", "eager tasks", "eager task factory"])
async def test_a_handler_cannot_be_told_from_a_task(kind, caplog) -> None:
    if kind != "tasks" and not HAS_EAGER_TASKS:
        pytest.skip("Python has eager tasks from 3.12 on")
    caplog.set_level(logging.CRITICAL, "wshub.server")

    factory = asyncio.eager_task_factory if kind == "eager task factory" else None
    if factory is not None and not await works(factory):
        pytest.skip("this loop cannot use asyncio.eager_task_factory on this Python")
    reference = as_eager_tasks if kind == "eager tasks" else as_tasks
    for seed in range(PROGRAMS):
        for attempt in range(ATTEMPTS):
            expected = await played(reference, seed, factory)
            found = await played(as_handlers, seed, factory)
            assert each_by_itself(found) == each_by_itself(expected), f"program {seed}"
            # An eagerly started task may be one step ahead.
            if found == expected or (kind == "tasks" and HAS_EAGER_TASKS):
                break
            # anyio and task groups cancel a set of tasks in arbitrary order.
            assert attempt < ATTEMPTS - 1, f"program {seed}: the order differs"
    gc.collect()


async def works(factory: Any) -> bool:
    """Return True if the loop works with the factory; uvloop 0.23 passes an argument that Python 3.13.0 refuses."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    coroutine = asyncio.sleep(0)
    try:
        await asyncio.create_task(coroutine, context=contextvars.copy_context())
    except TypeError:
        coroutine.close()
        return False
    finally:
        loop.set_task_factory(None)
    return True


async def test_handlers_that_await_one_future_in_the_same_iteration_all_go_on() -> None:
    loop = asyncio.get_running_loop()
    hub = Hub()
    hub.bind()
    ready = loop.create_future()
    done: list[int] = []

    async def on_message(connection, message) -> None:
        await ready
        done.append(connection.id)

    wires = [Wire(hub, EventHandler(on_message=on_message)) for _ in range(5)]
    loop.call_soon(lambda: [wire.receive() for wire in wires])
    await asyncio.sleep(0)
    ready.set_result(None)
    while len(done) < 5:
        await asyncio.sleep(0)
    assert done == [wire.connection.id for wire in wires]
    await close(hub, wires)


async def test_a_task_that_a_handler_has_kept_is_done_once_the_handler_has_returned() -> None:
    loop = asyncio.get_running_loop()
    hub = Hub()
    hub.bind()
    kept: list[asyncio.Task[Any]] = []

    async def on_message(connection, message) -> None:
        kept.append(asyncio.current_task())
        if message.data == "wait":
            await asyncio.sleep(0)

    wires = [Wire(hub, EventHandler(on_message=on_message)) for _ in range(3)]

    def arrive() -> None:
        wires[0].receive()
        assert kept[0].done()
        assert kept[0].result() is None
        assert not kept[0].cancel()
        wires[1].receive("wait")
        wires[2].receive("wait")
        assert len(set(kept)) == 3
        kept[1].cancel()

    loop.call_soon(arrive)
    await asyncio.sleep(0)
    await asyncio.wait(kept[1:])
    assert [task.cancelled() for task in kept] == [False, True, False]
    await close(hub, wires)


async def test_what_is_kept_by_the_task_goes_with_it() -> None:
    loop = asyncio.get_running_loop()
    hub = Hub()
    hub.bind()
    sessions: weakref.WeakKeyDictionary[asyncio.Task[Any], str] = weakref.WeakKeyDictionary()
    found: list[str | None] = []

    async def on_message(connection, message) -> None:
        task = asyncio.current_task()
        found.append(sessions.get(task))
        sessions[task] = message.data

    wires = [Wire(hub, EventHandler(on_message=on_message)) for _ in range(2)]
    loop.call_soon(lambda: [wire.receive() for wire in wires * 2])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert found == [None] * 4
    assert not sessions
    await close(hub, wires)


async def test_a_task_factory_of_the_loop_makes_the_tasks_of_handlers() -> None:
    loop = asyncio.get_running_loop()
    hub = Hub()
    hub.bind()
    made: list[str] = []
    seen: list[object] = []

    def factory(loop, coroutine, **options):
        made.append(coroutine.__name__)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def on_message(connection, message) -> None:
        seen.append(asyncio.current_task())

    wire = Wire(hub, EventHandler(on_message=on_message))
    loop.set_task_factory(factory)
    loop.call_soon(wire.receive)
    while not seen:
        await asyncio.sleep(0)
    loop.set_task_factory(None)
    assert made == ["on_message"]
    await close(hub, [wire])


async def test_the_loop_is_as_it_was_after_a_handler_has_started() -> None:
    loop = asyncio.get_running_loop()
    hub = Hub()
    hub.bind()
    scheduled: list[str] = []
    before = dict(vars(loop)).get("call_soon")

    async def on_message(connection, message) -> None:
        loop.call_soon(scheduled.append, message.data)

    wire = Wire(hub, EventHandler(on_message=on_message))
    loop.call_soon(lambda: [wire.receive(text) for text in "ab"])
    while len(scheduled) < 2:
        await asyncio.sleep(0)
    assert scheduled == ["a", "b"]
    assert dict(vars(loop)).get("call_soon") is before
    await close(hub, [wire])


def test_a_cancelled_handler_closes_with_1011_and_leaves_no_traceback(run, caplog) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        hub = Hub()
        hub.bind()

        async def on_message(connection, message) -> None:
            asyncio.current_task().cancel()
            if message.data == "wait":
                await asyncio.sleep(0)

        wires = [Wire(hub, EventHandler(on_message=on_message)) for _ in range(2)]
        loop.call_soon(wires[0].receive)
        loop.call_soon(wires[1].receive, "wait")
        while not all(wire.peer.received for wire in wires):
            await asyncio.sleep(0)
        for wire in wires:
            assert wire.peer.received[2:4] == (1011).to_bytes(2, "big")
        await close(hub, wires)

    run(scenario())
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert not any(record.exc_info for record in caplog.records)


async def close(hub: Hub, wires: list[Wire]) -> None:
    """End the connections and the hub."""
    for wire in wires:
        wire.lose()
    await hub.close()


async def test_a_call_soon_that_a_program_has_given_its_loop_stays() -> None:
    loop = asyncio.get_running_loop()
    scheduled: list[Any] = []
    of_the_class = loop.call_soon

    def call_soon(*arguments: Any, **options: Any) -> Any:
        scheduled.append(arguments[0])
        return of_the_class(*arguments, **options)

    async def handler(steps: list[str]) -> None:
        steps.append("first")
        await asyncio.sleep(0)
        steps.append("second")

    for own in (None, call_soon):
        if own is not None:
            loop.call_soon = own  # type: ignore[assignment, method-assign]
        steps: list[str] = []
        task = start_eager_task(loop, handler(steps), contextvars.copy_context(), "a handler")
        assert steps == ["first"]
        assert loop.call_soon == (own or of_the_class)
        assert ("call_soon" in vars(loop)) == (own is not None)
        await task
        assert steps == ["first", "second"]
    assert scheduled
