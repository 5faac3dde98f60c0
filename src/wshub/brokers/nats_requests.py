"""Requests to a NATS server, and their answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, TypeAlias

from nats.aio.msg import Msg

from wshub.brokers.nats_connection import MessageSink, NatsConnection
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

__all__ = ["API", "ApiError", "NoResponderError", "Outcome", "Requests", "read_answer", "status_of"]

API = "$JS.API"
"""The beginning of the subjects on which JetStream takes requests."""

SECONDS = 5.0
"""Seconds in which the engine must have answered."""

TEMPORARY = (10008, 10009, 10118)
"""The codes of errors of JetStream in a cluster that chooses a leader, or whose server with the stream is away."""

NO_RESPONDERS = "503"
"""The status of an answer that says that nobody takes the request."""

Outcome: TypeAlias = Msg | BrokerError

Take: TypeAlias = Callable[[Outcome], bool]
"""Takes an answer, or an error instead of it. Returns whether there are more answers to come."""


class ApiError(BrokerError):
    """An answer of JetStream that is an error. ``code`` is its number."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class NoResponderError(BrokerUnavailable):
    """Nobody takes requests on the subject, so nothing was done."""


class Open:
    """A request that waits for answers."""

    __slots__ = ("deadline", "subject", "take")

    def __init__(self, subject: str, take: Take, deadline: float) -> None:
        self.subject = subject
        self.take = take
        self.deadline = deadline


class Requests:
    """The requests of a node. One subscription brings all answers.

    nats-py would have a task and a timer for each request.

    Args:
        inbox: the beginning of the subjects of answers, which no other node has.
        now: returns the time in seconds.
    """

    def __init__(self, inbox: str, now: Callable[[], float]) -> None:
        self._inbox = inbox
        self._now = now
        self._connection: NatsConnection | None = None
        self._is_subscribed = False
        self._sink = MessageSink(self._take_answer)
        self._number = 0
        # Requests by the subject of their answers; and those subjects in the order of the deadlines.
        self._open: dict[str, Open] = {}
        self._deadlines: deque[str] = deque()

    @property
    def connection(self) -> NatsConnection | None:
        """The connection; None if there is none."""
        return self._connection

    def attach(self, connection: NatsConnection) -> None:
        """Send over a new connection from now on."""
        self._connection = connection
        self._is_subscribed = False

    def detach(self, error: BrokerUncertain) -> None:
        """Fail all requests: the connection has ended."""
        self._connection = None
        self._deadlines.clear()
        failed, self._open = self._open, {}
        for request in failed.values():
            request.take(BrokerUncertain(*error.args))

    def send(self, subject: str, payload: bytes, take: Take, headers: dict[str, str] | None = None) -> bool:
        """Send a request. Return False if there is no connection: then ``take`` is not called."""
        connection = self._connection
        if connection is None:
            return False
        if not self._is_subscribed:
            self._is_subscribed = connection.subscribe(f"{self._inbox}.*", self._sink) is not None
        self._number += 1
        inbox = f"{self._inbox}.{self._number}"
        if not connection.publish(subject, payload, inbox, headers):
            return False
        self._open[inbox] = Open(subject, take, self._now() + SECONDS)
        self._deadlines.append(inbox)
        return True

    async def request(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> Msg:
        """Return the answer to a request.

        Raises:
            BrokerUnavailable: nothing was sent, or nobody takes the request.
            BrokerUncertain: there is no answer.
            BrokerError: the engine refuses it.
        """
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        if not self.send(subject, payload, partial(settle, answer), headers):
            raise BrokerUnavailable("there is no connection to the engine")
        try:
            return await answer
        finally:
            # An error of this future holds the traceback, and so this frame and the future: only the collector would
            # free them.
            del answer

    async def ask(
        self, subject: str, question: dict[str, Any] | None = None, *, ignore: Collection[int] = ()
    ) -> dict[str, Any]:
        """Return the answer of JetStream to a question that changes nothing, or that can be asked again.

        Args:
            subject: what follows ``$JS.API.``.
            question: the request.
            ignore: the codes of errors that are as good as an answer.

        Raises:
            ApiError: the answer is another error.
            BrokerUnavailable: there is no answer.
        """
        payload = json.dumps(question).encode() if question else b""
        try:
            return read_answer(await self.request(f"{API}.{subject}", payload))
        except NoResponderError:
            raise BrokerUnavailable(
                "the engine has no JetStream, which rooms with history and presence need: "
                "enable it on the servers and for the account"
            ) from None
        except ApiError as error:
            if error.code in ignore:
                return {}
            if error.code in TEMPORARY:
                raise BrokerUnavailable(str(error)) from None
            raise
        except BrokerUncertain as error:
            raise BrokerUnavailable(str(error)) from None

    async def store(self, subject: str, payload: bytes, headers: dict[str, str]) -> dict[str, Any]:
        """Have a stream store a message, and return its answer.

        Raises:
            ApiError: the stream refuses it.
            NoResponderError: no stream has the subject.
            BrokerUnavailable, BrokerUncertain: nothing was sent; there is no answer.
        """
        return read_answer(await self.request(subject, payload, headers))

    @contextlib.contextmanager
    def several(self, subject: str, question: dict[str, Any]) -> Iterator[Answers]:
        """Ask JetStream a question that has several answers, and yield where they arrive.

        Args:
            subject: what follows ``$JS.API.``.
            question: the request.

        Raises:
            BrokerUnavailable: there is no connection.
        """
        connection = self._connection
        self._number += 1
        inbox = f"{self._inbox}.several.{self._number}"
        answers = Answers()
        # The subjects of the answers may be those of stored messages, so the answers have a subscription of their own.
        subscription = connection.subscribe(inbox, MessageSink(answers.take)) if connection is not None else None
        if connection is None or subscription is None:
            raise BrokerUnavailable("there is no connection to the engine")
        self._open[inbox] = Open(f"{API}.{subject}", answers.fail, self._now() + SECONDS)
        self._deadlines.append(inbox)
        try:
            connection.publish(f"{API}.{subject}", json.dumps(question).encode(), inbox)
            yield answers
        finally:
            self._open.pop(inbox, None)
            if self._connection is connection:
                connection.unsubscribe(subscription)

    def tell(self, subject: str, question: dict[str, Any] | None = None) -> None:
        """Send JetStream a request whose answer does not matter."""
        if self._connection is not None:
            self._connection.publish(f"{API}.{subject}", json.dumps(question).encode() if question else b"")

    def refused(self, subject: str, error: BrokerError) -> bool:
        """Fail the requests on a subject that the engine refuses. Return whether there are any.

        Args:
            subject: in small letters.
            error: what the engine has said.
        """
        refused = [inbox for inbox, request in self._open.items() if request.subject.lower() == subject]
        for inbox in refused:
            self._open.pop(inbox).take(BrokerError(*error.args))
        return bool(refused)

    def sweep(self, now: float) -> None:
        """Fail the requests that have waited too long."""
        while self._deadlines:
            request = self._open.get(self._deadlines[0])
            if request is not None and request.deadline > now:
                break
            inbox = self._deadlines.popleft()
            if request is not None:
                del self._open[inbox]
                request.take(BrokerUncertain(f"the engine has not answered within {SECONDS:g} s"))

    def _take_answer(self, message: Msg) -> None:
        request = self._open.get(message.subject)
        if request is None:
            return
        outcome: Outcome = message
        if is_from_nobody(message):
            outcome = NoResponderError("nobody takes the request")
        if not request.take(outcome):
            self._open.pop(message.subject, None)
        # Those that were answered in order leave nothing behind.
        while self._deadlines and self._deadlines[0] not in self._open:
            self._deadlines.popleft()


class Answers:
    """The answers to one question, as they arrive."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Outcome] = asyncio.Queue()

    def take(self, message: Msg) -> None:
        """Take an answer."""
        self._queue.put_nowait(message)

    def fail(self, outcome: Outcome) -> bool:
        """Take an error. Nothing follows."""
        self._queue.put_nowait(outcome)
        return False

    async def next(self) -> Msg:
        """Return the next answer.

        Raises:
            NoResponderError: nobody takes the question.
            BrokerUnavailable: it was not answered.
            BrokerError: the engine refuses it.
        """
        outcome = await self._queue.get()
        if isinstance(outcome, BrokerUncertain):
            raise BrokerUnavailable(str(outcome))
        if isinstance(outcome, BrokerError):
            raise outcome
        if is_from_nobody(outcome):
            raise NoResponderError("nobody takes the request")
        return outcome


def is_from_nobody(message: Msg) -> bool:
    """Return whether an answer says that nobody takes the request."""
    return status_of(message) == NO_RESPONDERS and not message.data


def settle(answer: asyncio.Future[Msg], outcome: Outcome) -> bool:
    """Set the outcome of a future. There are no more answers to come."""
    if not answer.done():
        if isinstance(outcome, BrokerError):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
    return False


def status_of(message: Msg) -> str | None:
    """Return the status of an answer that is a status."""
    return message.headers.get("Status") if message.headers is not None else None


def read_answer(message: Msg) -> dict[str, Any]:
    """Return an answer of JetStream, or raise the error that it is."""
    try:
        answer = json.loads(message.data)
        error = answer.get("error")
        if error is not None:
            raise ApiError(f"JetStream refuses: {error.get('description')}", int(error.get("err_code", 0)))
    except (ValueError, AttributeError, TypeError):
        raise BrokerUncertain("the answer is not one of JetStream") from None
    found: dict[str, Any] = answer
    return found
