"""Random coroutines for handlers, and a record of all that can be observed of them.

The same program runs as asyncio tasks and as handlers. It consists of a few actors. Each actor is a list of steps that
await, cancel, time out and inspect tasks. The actors share futures, tasks and one record of everything that happens, in
order.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")
FUTURES = 3
ACTORS = 4
STEPS = 5
FOREVER = 1000

Step = Callable[["Stage", "Actor"], Awaitable[None]]


class Stage:
    """The objects that the actors of one run share."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.futures = [self.loop.create_future() for _ in range(FUTURES)]
        self.load: asyncio.Task[str] | None = None
        self.tasks: dict[int, asyncio.Task[Any]] = {}
        self.kept: dict[int, asyncio.Task[Any]] = {}
        self.record: list[Any] = []
        self.left = ACTORS
        self.ended = self.loop.create_future()

    async def load_once(self) -> str:
        """Run one piece of work that several actors wait for."""
        if self.load is None or self.load.done():
            self.load = self.loop.create_task(_work(), name="load")
        return await self.load

    def leave(self) -> None:
        """Count one more actor that has ended."""
        self.left -= 1
        if not self.left:
            self.ended.set_result(None)

    async def settle(self) -> None:
        """Wait until every actor has ended, and complete what they wait for until then."""
        for _ in range(30):
            await asyncio.sleep(0)
        for index, future in enumerate(self.futures):
            if not future.done():
                future.set_result(index)
            await asyncio.sleep(0)
        for _ in range(20):
            if self.ended.done():
                break
            for task in self.tasks.values():
                task.cancel("the end")
            for _ in range(10):
                await asyncio.sleep(0)
        await self.ended
        for _ in range(10):
            await asyncio.sleep(0)


class Actor:
    """One handler: its steps, and its place in the record."""

    def __init__(self, number: int, steps: list[Step]) -> None:
        self.number = number
        self.steps = steps

    def note(self, stage: Stage, *what: Any) -> None:
        """Record something that the other actors can see too."""
        stage.record.append((self.number, *what))

    async def play(self, stage: Stage) -> None:
        """Run the steps as a handler does, and raise the exception that ends it."""
        task = asyncio.current_task()
        assert task is not None
        stage.tasks[self.number] = task
        try:
            for step in self.steps:
                await step(stage, self)
                if asyncio.current_task() is not task:
                    self.note(stage, "another task")
            self.note(stage, "returns")
        except BaseException as error:
            self.note(stage, "raises", described(error))
            raise
        finally:
            self.note(stage, task.cancelling(), VARIABLE.get(), task.get_coro().__name__)
            stage.leave()


def described(error: BaseException) -> Any:
    """Return an exception in a form that two runs can compare."""
    if isinstance(error, BaseExceptionGroup):
        return type(error).__name__, [described(inner) for inner in error.exceptions]
    if isinstance(error, asyncio.CancelledError):
        # The name of an anyio scope contains its address.
        return "CancelledError", [str(argument).split(" by ")[0].split(" via ")[0] for argument in error.args]
    return type(error).__name__, str(error) if isinstance(error, LookupError) else ""


async def _work() -> str:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return "loaded"


def program(seed: int) -> list[Actor]:
    """Return the actors that a seed stands for."""
    draw = random.Random(seed)
    return [
        Actor(number, [_draw_step(draw, depth=2) for _ in range(draw.randint(1, STEPS))]) for number in range(ACTORS)
    ]


def _draw_step(draw: random.Random, depth: int) -> Step:
    makers = [*PLAIN, *NESTING] if depth else PLAIN
    return draw.choice(makers)(draw, depth)


# Steps that contain no other steps


def _awaits_a_shared_future(draw: random.Random, _: int) -> Step:
    index = draw.randrange(FUTURES)

    async def step(stage: Stage, actor: Actor) -> None:
        actor.note(stage, "future", index, await stage.futures[index])

    return step


def _completes_a_future(draw: random.Random, _: int) -> Step:
    index, fails = draw.randrange(FUTURES), draw.random() < 0.3

    async def step(stage: Stage, actor: Actor) -> None:
        future = stage.futures[index]
        if not future.done():
            if fails:
                future.set_exception(LookupError("the future"))
                # Python counts it as retrieved, whether it is awaited or not.
                future.exception()
            else:
                future.set_result(index)

    return step


def _renews_a_future(draw: random.Random, _: int) -> Step:
    index = draw.randrange(FUTURES)

    async def step(stage: Stage, actor: Actor) -> None:
        if stage.futures[index].done():
            stage.futures[index] = stage.loop.create_future()

    return step


def _awaits_a_shared_task(draw: random.Random, _: int) -> Step:
    async def step(stage: Stage, actor: Actor) -> None:
        actor.note(stage, await stage.load_once())

    return step


def _lets_others_go_first(draw: random.Random, _: int) -> Step:
    times = draw.randint(1, 3)

    async def step(stage: Stage, actor: Actor) -> None:
        for _ in range(times):
            await asyncio.sleep(0)

    return step


def _keeps_its_task(draw: random.Random, _: int) -> Step:
    async def step(stage: Stage, actor: Actor) -> None:
        task = asyncio.current_task()
        assert task is not None
        stage.kept[actor.number] = task

    return step


def _cancels_a_kept_task(draw: random.Random, _: int) -> Step:
    number = draw.randrange(ACTORS)

    async def step(stage: Stage, actor: Actor) -> None:
        if number in stage.kept:
            actor.note(stage, "cancels", number, stage.kept[number].cancel(f"by {number}"))

    return step


def _looks_at_a_kept_task(draw: random.Random, _: int) -> Step:
    number = draw.randrange(ACTORS)

    async def step(stage: Stage, actor: Actor) -> None:
        if number in stage.kept:
            task = stage.kept[number]
            actor.note(stage, "sees", number, task.done(), task.cancelling(), task is asyncio.current_task())

    return step


def _cancels_itself(draw: random.Random, _: int) -> Step:
    async def step(stage: Stage, actor: Actor) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("itself")

    return step


def _sets_a_variable(draw: random.Random, _: int) -> Step:
    value = f"value {draw.randrange(3)}"

    async def step(stage: Stage, actor: Actor) -> None:
        VARIABLE.set(value)

    return step


def _raises(draw: random.Random, _: int) -> Step:
    async def step(stage: Stage, actor: Actor) -> None:
        raise LookupError("on purpose")

    return step


def _starts_a_task(draw: random.Random, _: int) -> Step:
    waits = draw.random() < 0.5

    async def step(stage: Stage, actor: Actor) -> None:
        async def child() -> None:
            await asyncio.sleep(0)
            actor.note(stage, "child", VARIABLE.get())

        task = asyncio.create_task(child())
        if waits:
            await task

    return step


# Steps that contain other steps


def _gathers(draw: random.Random, depth: int) -> Step:
    inner = [_draw_step(draw, depth - 1) for _ in range(2)]
    keeps = draw.random() < 0.5

    async def step(stage: Stage, actor: Actor) -> None:
        found = await asyncio.gather(*(one(stage, actor) for one in inner), return_exceptions=keeps)
        actor.note(stage, "gathered", [described(one) for one in found if isinstance(one, BaseException)])

    return step


def _waits_for(draw: random.Random, depth: int) -> Step:
    inner, timeout = _draw_step(draw, depth - 1), draw.choice([0, FOREVER, None])

    async def step(stage: Stage, actor: Actor) -> None:
        try:
            await asyncio.wait_for(inner(stage, actor), timeout)
        except TimeoutError:
            actor.note(stage, "wait_for timed out")

    return step


def _times_out(draw: random.Random, depth: int) -> Step:
    inner, timeout = _draw_step(draw, depth - 1), draw.choice([0, FOREVER, None])

    async def step(stage: Stage, actor: Actor) -> None:
        try:
            async with asyncio.timeout(timeout):
                await inner(stage, actor)
        except TimeoutError:
            actor.note(stage, "timed out")

    return step


def _runs_a_task_group(draw: random.Random, depth: int) -> Step:
    inner = [_draw_step(draw, depth - 1) for _ in range(2)]

    async def step(stage: Stage, actor: Actor) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for one in inner:
                    group.create_task(one(stage, actor))  # type: ignore[arg-type]
        except* LookupError as group:
            actor.note(stage, "a group has failed", described(group))

    return step


def _runs_an_anyio_group(draw: random.Random, depth: int) -> Step:
    inner, cancels = _draw_step(draw, depth - 1), draw.random() < 0.5

    async def step(stage: Stage, actor: Actor) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(inner, stage, actor)
            if cancels:
                group.cancel_scope.cancel()
        actor.note(stage, "an anyio group", group.cancel_scope.cancelled_caught)

    return step


def _is_in_a_cancel_scope(draw: random.Random, depth: int) -> Step:
    inner, cancels, shield = _draw_step(draw, depth - 1), draw.random() < 0.5, draw.random() < 0.3

    async def step(stage: Stage, actor: Actor) -> None:
        with anyio.CancelScope(shield=shield) as scope:
            if cancels:
                scope.cancel()
            await inner(stage, actor)
        actor.note(stage, "a scope", scope.cancelled_caught)

    return step


def _moves_on(draw: random.Random, depth: int) -> Step:
    inner, delay = _draw_step(draw, depth - 1), draw.choice([0, FOREVER])

    async def step(stage: Stage, actor: Actor) -> None:
        with anyio.move_on_after(delay) as scope:
            await inner(stage, actor)
        actor.note(stage, "moves on", scope.cancelled_caught)

    return step


def _shields(draw: random.Random, depth: int) -> Step:
    inner = _draw_step(draw, depth - 1)

    async def step(stage: Stage, actor: Actor) -> None:
        await asyncio.shield(asyncio.ensure_future(inner(stage, actor)))

    return step


def _catches_a_cancellation(draw: random.Random, depth: int) -> Step:
    inner, uncancels = _draw_step(draw, depth - 1), draw.random() < 0.5

    async def step(stage: Stage, actor: Actor) -> None:
        try:
            await inner(stage, actor)
        except asyncio.CancelledError as error:
            actor.note(stage, "catches", described(error))
            task = asyncio.current_task()
            assert task is not None
            if uncancels:
                actor.note(stage, "uncancels", task.uncancel())

    return step


def _iterates(draw: random.Random, depth: int) -> Step:
    inner, stops = _draw_step(draw, depth - 1), draw.random() < 0.5

    async def step(stage: Stage, actor: Actor) -> None:
        async def generate() -> AsyncIterator[int]:
            try:
                for index in range(3):
                    await inner(stage, actor)
                    yield index
            finally:
                actor.note(stage, "the generator ends")

        async with contextlib.aclosing(generate()) as items:
            async for index in items:
                actor.note(stage, "item", index)
                if stops:
                    break

    return step


PLAIN = [
    *[_awaits_a_shared_future] * 3,
    *[_lets_others_go_first] * 2,
    *[_keeps_its_task] * 2,
    _awaits_a_shared_task,
    _completes_a_future,
    _renews_a_future,
    _cancels_a_kept_task,
    _looks_at_a_kept_task,
    _cancels_itself,
    _sets_a_variable,
    _raises,
    _starts_a_task,
]
NESTING = [
    _gathers,
    _waits_for,
    _times_out,
    _runs_a_task_group,
    _runs_an_anyio_group,
    _is_in_a_cancel_scope,
    _moves_on,
    _shields,
    _catches_a_cancellation,
    _iterates,
]
