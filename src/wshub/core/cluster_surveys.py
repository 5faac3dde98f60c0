"""Surveys: questions to all nodes of a cluster, and their answers."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

from wshub.brokers.interface import ALL_NODES, node_channel
from wshub.core.cluster_types import Survey
from wshub.errors import BrokerUnavailable, MisuseError

__all__ = ["ANSWER_TIMEOUT", "MAX_ANSWERING", "ROOM_COUNT", "Answer", "Surveys", "check_answer"]

logger = logging.getLogger("wshub.broker")

ANSWER_TIMEOUT = 10.0
"""Seconds that a coroutine has to answer a survey."""

MAX_ANSWERING = 64
"""Coroutines that may answer other nodes at once. A node that asks for one more is told ``busy``."""

ROOM_COUNT = "wshub.room_count"
"""The topic that every node answers with the number of members of a room, whose name is the body."""

Answer: TypeAlias = Callable[[Any], Any]


def check_answer(topic: object, answer: object) -> str:
    """Return the topic of a survey as a plain str.

    Raises:
        MisuseError: the topic is no str or is wshub's own, or the answer cannot be called.
    """
    if not isinstance(topic, str):
        raise MisuseError(f"the topic of a survey is a str, not {type(topic).__name__}")
    if topic.startswith("wshub."):
        raise MisuseError(f"the topic {topic!r} is wshub's own: choose one that does not begin with wshub.")
    if not callable(answer):
        raise MisuseError(f"the answer is a function that takes the body of the survey, not {type(answer).__name__}")
    return str.__str__(topic)


class _OpenSurvey:
    """A survey that waits for answers."""

    __slots__ = ("answers", "done", "missing", "topic", "waiting")

    def __init__(self, topic: str, nodes: Collection[str], done: asyncio.Future[None]) -> None:
        self.topic = topic
        self.waiting = set(nodes)
        self.answers: dict[str, Any] = {}
        self.missing: set[str] = set()
        self.done = done

    def add(self, node: str, answer: Any) -> None:
        """Take the answer of a node. Only the first one counts."""
        if node in self.waiting:
            self.answers[node] = answer
            self._has_finished(node)

    def miss(self, node: str) -> None:
        """Wait for the answer of this node no longer."""
        if node in self.waiting:
            self.missing.add(node)
            self._has_finished(node)

    def _has_finished(self, node: str) -> None:
        self.waiting.discard(node)
        if not self.waiting:
            self.end()

    def end(self) -> None:
        """Wait for no more answers."""
        if not self.done.done():
            self.done.set_result(None)


class Surveys:
    """The surveys of one node, and its answers to those of the others.

    Args:
        node: the id of this node.
        send: sends a command on a channel. It returns whether the broker has taken it.
        answers: what the application answers with, by topic. The application may change it at any time.
        room_size: returns the number of members that a room has here.
    """

    def __init__(
        self,
        node: str,
        send: Callable[[str, dict[str, Any]], bool],
        answers: dict[str, Answer],
        room_size: Callable[[str], int],
    ) -> None:
        self._node = node
        self._send = send
        self._answers = answers
        self._room_size = room_size
        self._open: dict[int, _OpenSurvey] = {}
        self._last_number = 0
        self._is_closed = False
        # Coroutines that answer other nodes, and those that answer this one.
        self._answering: set[asyncio.Task[None]] = set()
        self._answering_own: set[asyncio.Task[None]] = set()

    async def ask(self, topic: str, body: Any, timeout: float, others: Collection[str]) -> Survey:
        """Ask all nodes. Return when each has answered, cannot answer or is gone, or when the time is over.

        Args:
            topic: what is asked.
            body: anything that JSON can hold.
            timeout: seconds.
            others: the ids of the other nodes that are known.

        Raises:
            BrokerUnavailable: the other nodes were not asked.
            MisuseError: the topic is no str.
            TypeError, ValueError: the body is no JSON, or no name of a room where it has to be one.
        """
        if not isinstance(topic, str):
            raise MisuseError(f"the topic of a survey is a str, not {type(topic).__name__}")
        topic = str.__str__(topic)
        if topic == ROOM_COUNT and not isinstance(body, str):
            raise TypeError(f"the name of a room must be a str, not {type(body).__name__}")
        # This node gets what JSON makes of the body, as the others do.
        own_body = through_json(body)
        loop = asyncio.get_running_loop()
        survey = _OpenSurvey(topic, {self._node, *others}, loop.create_future())
        if self._is_closed:
            return Survey(missing=tuple(sorted(survey.waiting)))
        self._last_number += 1
        number = self._last_number
        if not self._send(ALL_NODES, {"do": "survey", "topic": topic, "number": number, "body": body}) and others:
            raise BrokerUnavailable("the survey was not sent to the other nodes: the broker has not taken it")
        self._open[number] = survey
        timer = loop.call_later(timeout, survey.end)
        own_answer = None
        try:
            own_answer = self._answer_own(survey, own_body)
            await survey.done
        finally:
            timer.cancel()
            del self._open[number]
            if own_answer is not None:
                own_answer.cancel()
        return Survey(answers=survey.answers, missing=tuple(sorted(survey.missing | survey.waiting)))

    def answered(self, node: str, number: int, reply: dict[str, Any]) -> None:
        """Take the reply of a node, which has an answer or an error. Raises ``ValueError`` if it has neither."""
        survey = self._open.get(number)
        if survey is None:
            return
        if "answer" in reply and (survey.topic != ROOM_COUNT or is_count(reply["answer"])):
            survey.add(node, reply["answer"])
            return
        survey.miss(node)
        if "error" not in reply:
            raise ValueError("a reply to a survey without a proper answer")

    def asked(self, node: str, topic: str, number: int, body: Any) -> None:
        """Answer the survey of another node, or say that this one cannot."""
        if topic == ROOM_COUNT:
            if not isinstance(body, str):
                raise ValueError("the name of a room is no str")
            self._reply(node, topic, number, self._room_size(body))
            return
        if topic not in self._answers:
            self._refuse(node, number, "unknown topic")
            return
        if len(self._answering) >= MAX_ANSWERING:
            self._refuse(node, number, "busy")
            return
        found, answer = self._call(topic, body)
        if not found:
            self._refuse(node, number, "failed")
        elif inspect.isawaitable(answer):
            self._start(self._reply_later(node, topic, number, answer), self._answering)
        else:
            self._reply(node, topic, number, answer)

    def forget(self, node: str) -> None:
        """Wait for no answer of a node that is gone."""
        for survey in tuple(self._open.values()):
            survey.miss(node)

    def close(self) -> None:
        """End all surveys, and answer no more."""
        self._is_closed = True
        for task in (*self._answering, *self._answering_own):
            task.cancel()
        for survey in self._open.values():
            survey.end()

    # Answers

    def _answer_own(self, survey: _OpenSurvey, body: Any) -> asyncio.Task[None] | None:
        """Answer a survey of this node. Return the task if a coroutine does it."""
        if survey.topic == ROOM_COUNT:
            survey.add(self._node, self._room_size(body))
            return None
        found, answer = self._call(survey.topic, body) if survey.topic in self._answers else (False, None)
        if found and inspect.isawaitable(answer):
            return self._start(self._answer_own_later(survey, answer), self._answering_own)
        self._add_own(survey, found, answer)
        return None

    async def _answer_own_later(self, survey: _OpenSurvey, awaited: Any) -> None:
        self._add_own(survey, *await self._wait(survey.topic, awaited))

    def _add_own(self, survey: _OpenSurvey, found: bool, answer: Any) -> None:
        try:
            if found:
                survey.add(self._node, through_json(answer))
        except (TypeError, ValueError):
            logger.exception("the answer on %r is no JSON", survey.topic)
        survey.miss(self._node)

    def _call(self, topic: str, body: Any) -> tuple[bool, Any]:
        """Return whether the application's function has not failed, and what it has returned."""
        try:
            return True, self._answers[topic](body)
        except Exception:
            logger.exception("the survey on %r could not be answered", topic)
            return False, None

    async def _wait(self, topic: str, awaited: Any) -> tuple[bool, Any]:
        """Return whether there is an answer in time, and the answer."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return True, await awaited
        except TimeoutError:
            logger.warning("the survey on %r was not answered within %d s", topic, ANSWER_TIMEOUT)
        except Exception:
            logger.exception("the survey on %r could not be answered", topic)
        return False, None

    async def _reply_later(self, node: str, topic: str, number: int, awaited: Any) -> None:
        found, answer = await self._wait(topic, awaited)
        if found:
            self._reply(node, topic, number, answer)
        else:
            self._refuse(node, number, "failed")

    def _reply(self, node: str, topic: str, number: int, answer: Any) -> None:
        try:
            self._send(node_channel(node), {"do": "answer", "number": number, "answer": answer})
        except (TypeError, ValueError, RecursionError):
            logger.exception("the answer on %r is no JSON", topic)
            self._refuse(node, number, "failed")

    def _refuse(self, node: str, number: int, reason: str) -> None:
        """Tell a node that it gets no answer, so that it does not wait for one."""
        self._send(node_channel(node), {"do": "answer", "number": number, "error": reason})

    def _start(self, coroutine: Any, tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task


def through_json(value: Any) -> Any:
    """Return what another node would get. Raises ``TypeError`` or ``ValueError`` if the value is no JSON."""
    try:
        return json.loads(json.dumps(value))
    except RecursionError:
        raise ValueError("it is nested too deeply for JSON") from None


def is_count(value: object) -> bool:
    """Whether a value is a number of members."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
