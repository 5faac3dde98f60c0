"""Questions to other processes that wait for answers."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

__all__ = ["OpenRequest", "OpenRequests"]

LARGEST_NUMBER = 2**32 - 1


class OpenRequest:
    """A question that waits for answers, within a ``with`` block.

    Args:
        requests: that it belongs to.
        number: of the question.
    """

    def __init__(self, requests: OpenRequests, number: int) -> None:
        self.number = number
        self._requests = requests
        self._answers: asyncio.Queue[tuple[str, object]] = asyncio.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._requests.close(self.number)

    def add(self, node: str, answer: object) -> None:
        """Take the answer of a node."""
        self._answers.put_nowait((node, answer))

    def answers(self, expected: int | None, timeout: float) -> Answers:
        """Return an iterator over nodes and their answers, until there are enough or the time is over.

        Args:
            expected: the number of answers; None if that is not known.
            timeout: seconds.
        """
        return Answers(self._answers, expected, asyncio.get_running_loop().time() + timeout)


class Answers:
    """The answers to a question, as they arrive. It is no generator, which would have to be closed.

    Args:
        queue: of the answers.
        expected: their number, or None.
        deadline: when to wait no longer, by the time of the loop.
    """

    def __init__(self, queue: asyncio.Queue[tuple[str, object]], expected: int | None, deadline: float) -> None:
        self._queue = queue
        self._missing = expected
        self._deadline = deadline

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[str, object]:
        if self._missing is not None:
            if self._missing <= 0:
                raise StopAsyncIteration
            self._missing -= 1
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._queue.get()
        except TimeoutError:
            raise StopAsyncIteration from None


class OpenRequests:
    """The questions of this process. It belongs to one event loop."""

    def __init__(self) -> None:
        self._open: dict[int, OpenRequest] = {}
        self._last = 0

    def open(self) -> OpenRequest:
        """Return a new question. Answers are taken until its block ends."""
        self._last = self._last % LARGEST_NUMBER + 1
        request = self._open[self._last] = OpenRequest(self, self._last)
        return request

    def close(self, number: int) -> None:
        """Take no more answers to a question."""
        self._open.pop(number, None)

    def answered(self, node: str, number: int, answer: object) -> None:
        """Take an answer. One that comes too late is ignored."""
        request = self._open.get(number)
        if request is not None:
            request.add(node, answer)
