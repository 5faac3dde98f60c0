"""The JetStream stream of who is in which room: messages that are replaced only by those who have read them."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, NamedTuple

from wshub.brokers.nats_reading import HAS_BATCHES, Page, StoredMessage, StreamReader
from wshub.brokers.nats_requests import API, ApiError, NoResponderError, Outcome, Requests
from wshub.brokers.nats_streams import EXPECTED, GONE, NO_MESSAGE, WRONG_SEQUENCE, digest, make_stream
from wshub.brokers.nats_subjects import SubjectNames
from wshub.errors import BrokerUnavailable, BrokerUncertain

__all__ = ["PAGE", "PresenceStream", "Record", "ReplacedError"]

# Messages and bytes of one reading of many messages.
PAGE = 1000
PAGE_BYTES = 4 * 1024 * 1024


class ReplacedError(Exception):
    """Another node has replaced the message first."""


class Record(NamedTuple):
    """A message of the stream."""

    sequence: int
    data: bytes


NONE = Record(0, b"")


class PresenceStream:
    """Keeps the newest message of each subject.

    Args:
        requests: asks the engine.
        names: the subjects of plain messages.
        replicas: how many servers of a cluster keep the messages.
    """

    def __init__(self, requests: Requests, names: SubjectNames, replicas: int) -> None:
        self.start = f"{names.prefix}.=presence.{names.hub}."
        """The beginning of all subjects. The methods take what follows."""
        self._requests = requests
        self._name = f"{names.prefix}-{digest(names.hub)}-presence"
        self._replicas = replicas
        self._reader = StreamReader(requests, replicas)
        self._is_ready = False
        # The sequences of messages that are to be deleted, by subject, until the engine has answered.
        self._deletions: dict[str, int] = {}

    def attached(self) -> None:
        """Make the stream again if it is gone: the connection is a new one."""
        self._is_ready = False

    def delete_again(self) -> None:
        """Delete what a former connection may not have deleted. The stream must be the same one as then."""
        for subject, sequence in tuple(self._deletions.items()):
            self.delete(subject, sequence)

    def forget_deletions(self) -> None:
        """Leave alone what may not have been deleted: another stream may have given the sequences to other messages."""
        self._deletions.clear()

    async def read(self, subject: str) -> Record:
        """Return the message of a subject; one with the sequence 0 if there is none.

        Raises ``BrokerUnavailable``.
        """
        await self._prepare()
        question = {"last_by_subj": self.start + subject}
        try:
            answer = await self._requests.ask(f"STREAM.MSG.GET.{self._name}", question)
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return NONE
            raise self._unavailable(error) from None
        message = answer["message"]
        return Record(int(message["seq"]), base64.b64decode(message.get("data", "")))

    async def replace(self, subject: str, data: bytes, sequence: int) -> int:
        """Replace the message of a subject that has a sequence; 0 if there must be none. Return the new sequence.

        Raises:
            ReplacedError: the message has another sequence.
            BrokerUnavailable, BrokerUncertain: nothing was done; the answer was lost.
        """
        await self._prepare()
        try:
            answer = await self._requests.store(self.start + subject, data, {EXPECTED: str(sequence)})
        except ApiError as error:
            if error.code in WRONG_SEQUENCE:
                raise ReplacedError from None
            raise self._unavailable(error) from None
        except NoResponderError:
            self._is_ready = False
            raise
        return int(answer["seq"])

    def delete(self, subject: str, sequence: int) -> None:
        """Delete the message of a subject, unless it was replaced."""
        self._deletions[subject] = sequence
        connection = self._requests.connection
        action, question = "PURGE", {"filter": self.start + subject, "seq": sequence + 1}
        if connection is not None and connection.server_version < HAS_BATCHES:
            # When a subject is purged, the consumers of that subject skip other messages too.
            action, question = "MSG.DELETE", {"seq": sequence, "no_erase": True}
        taken = partial(self._deleted, subject, sequence)
        self._requests.send(f"{API}.STREAM.{action}.{self._name}", json.dumps(question).encode(), taken)

    def _deleted(self, subject: str, sequence: int, outcome: Outcome) -> bool:
        """Take the answer to a deletion. Nothing follows."""
        if not isinstance(outcome, BrokerUncertain) and self._deletions.get(subject) == sequence:
            del self._deletions[subject]
        return False

    async def list(self, subject: str, start: int, limit: int) -> Page:
        """Return messages of several subjects, from a sequence on. Raises ``BrokerUnavailable``."""
        await self._prepare()
        try:
            return await self._reader.read(self._name, self.start + subject, start, limit, PAGE_BYTES)
        except ApiError as error:
            raise self._unavailable(error) from None

    async def list_all(self, subject: str) -> AsyncIterator[StoredMessage]:
        """Yield the messages of several subjects. One that is replaced meanwhile may come twice, the newer one last.

        Raises ``BrokerUnavailable``.
        """
        start = 1
        while True:
            page = await self.list(subject, start, PAGE)
            for message in page.messages:
                start = message.sequence + 1
                yield message
            if not page.messages or page.available <= len(page.messages):
                return

    def _unavailable(self, error: ApiError) -> BrokerUnavailable:
        if error.code in GONE:
            self._is_ready = False
        return BrokerUnavailable(str(error))

    async def _prepare(self) -> None:
        """Make the stream, unless that was done over this connection."""
        if not self._is_ready:
            settings: dict[str, Any] = {
                "subjects": [f"{self.start}>"],
                "max_msgs_per_subject": 1,
                "allow_direct": True,
            }
            try:
                await make_stream(self._requests, self._name, settings, self._replicas, f"{self.start}ready")
            except ApiError as error:
                raise BrokerUnavailable(str(error)) from None
            self._is_ready = True
