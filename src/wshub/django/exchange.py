"""Exchanges messages between the processes of a channel layer.

Processes send to one another:

- a message to a group, to all processes with a channel in it;
- a message to one channel, to the process that reads it. The process answers whether the channel had space;
- commands, as JSON: who reads a channel; add a channel to a group; forget everything.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeAlias

from wshub.brokers.envelope import DecodedEnvelope, decode_envelope, encode_envelope
from wshub.brokers.interface import (
    ALL_NODES,
    ROOM_CHANNELS,
    Broker,
    NodeInfo,
    node_channel,
    room_channel,
    user_channel,
)
from wshub.django.broker_thread import BrokerThread
from wshub.django.groups import Groups
from wshub.django.mailboxes import Mailboxes
from wshub.django.open_requests import Answers, OpenRequests
from wshub.errors import BrokerError, BrokerUncertain

__all__ = ["Exchange", "Outcome"]

logger = logging.getLogger("wshub.broker")

ANSWER_SECONDS = 5.0
"""Seconds in which another process must answer."""

READER_SECONDS = 1.0
"""Seconds in which a process must say that it reads a channel."""

UNSUBSCRIBE_DELAY = 1.0
"""Seconds for which a group without channels stays subscribed. Groups often lose a channel, and soon get one."""

Outcome: TypeAlias = Literal["taken", "full", "gone"]


class Exchange(BrokerThread):
    """Exchanges messages with other processes. Give its coroutines to ``run()``, on any event loop.

    Args:
        new_broker: makes the broker.
        node: this process.
        mailboxes, groups: the channels of this process.
    """

    def __init__(self, new_broker: Callable[[], Broker], node: NodeInfo, mailboxes: Mailboxes, groups: Groups) -> None:
        super().__init__(new_broker, node, {room_channel(group) for group in groups.names()})
        # Messages of other processes arrive only once the broker has started.
        groups.forget_all_subscribed()
        self.unreachable = self.unreadable = 0
        self._mailboxes = mailboxes
        self._groups = groups
        self._requests = OpenRequests()
        # Groups without channels of this process, with the time at which they are unsubscribed from.
        self._empty: dict[str, float] = {}
        # Channels whose messages are being offered to other processes.
        self._offered: set[str] = set()
        self._is_failure_logged = False

    async def connect(self) -> None:
        """Return when messages from other processes arrive, or when the broker cannot be reached.

        Raises:
            ConfigurationError: the broker cannot work, such as with a wrong password.
        """
        try:
            await self.broker()
        except BrokerError as error:
            logger.debug("the channel layer goes on without its broker: %s", error)

    async def send_to_group(self, group: str, payload: bytes) -> None:
        """Send a message to the channels of a group in other processes.

        Raises:
            BrokerUnavailable: nothing was sent.
            BrokerUncertain: it may have been sent.
            ConfigurationError: the broker cannot work.
        """
        broker = await self.broker()
        await broker.publish(room_channel(group), self._envelope("room", group, payload, 0))

    async def subscribe_to_group(self, group: str) -> None:
        """Return when the messages of other processes to a group arrive, or when the broker has no connection.

        The broker goes on to try.

        Raises:
            ConfigurationError: the broker cannot work.
        """
        try:
            await self._subscribe(room_channel(group))
        except (BrokerError, TimeoutError) as error:
            logger.debug("messages to the group %s do not arrive yet: %s", group, error)
        else:
            self._groups.set_subscribed(group)

    async def read(self, channel: str) -> None:
        """Return when other processes find out that this one reads a channel, or when the broker has no connection.

        Raises:
            ConfigurationError: the broker cannot work.
        """
        try:
            await self._subscribe(user_channel(channel))
        except (BrokerError, TimeoutError) as error:
            logger.debug("messages to the channel %s do not arrive yet: %s", channel, error)

    async def _subscribe(self, channel: str) -> None:
        self._wanted.add(channel)
        # A broker that has no connection subscribes once it has one.
        self.open_session().broker.subscribe(channel)
        broker = await self.broker()
        async with asyncio.timeout(ANSWER_SECONDS):
            await broker.subscribed(channel)

    async def send_to_channel(self, node: str, channel: str, payload: bytes) -> Outcome:
        """Send a message to a channel of another process.

        Returns:
            taken; or full if the channel is; or gone if the process is.

        Raises:
            BrokerUnavailable: nothing was sent.
            BrokerUncertain: it may have been sent.
            ConfigurationError: the broker cannot work.
        """
        broker = await self.broker()
        with self._requests.open() as request:
            envelope = self._envelope("user", channel, payload, request.number)
            answer = await self._ask_one(broker, node, envelope, request.answers)
        if answer is None:
            self.unreachable += 1
            return "gone"
        return "taken" if answer == "taken" else "full"

    async def change_group(self, node: str, change: Literal["add", "discard"], group: str, channel: str) -> None:
        """Have another process add its channel to a group, or remove it. Raises as ``send_to_channel``."""
        broker = await self.broker()
        with self._requests.open() as request:
            command = {"do": change, "group": group, "channel": channel, "request": request.number}
            if await self._ask_one(broker, node, self._command(command), request.answers) is None:
                self.unreachable += 1

    async def _ask_one(
        self, broker: Broker, node: str, envelope: bytes, answers: Callable[[int, float], Answers]
    ) -> object:
        """Send an envelope to one process, and return its answer; None if it is gone."""
        published = await broker.publish(node_channel(node), envelope)
        if published.receivers == 0:
            return None
        async for _, answer in answers(1, ANSWER_SECONDS):
            return answer
        if published.receivers is None:
            # The broker cannot tell whether the process is there, and nothing has answered.
            return None
        raise BrokerUncertain(f"the process {node} has not answered within {ANSWER_SECONDS:.0f} seconds")

    async def send_to_reader(self, channel: str, payload: bytes) -> Outcome:
        """Send a message to one of the processes that read a channel.

        Returns:
            taken; or full if the channel is, in each of them; or gone if there is none.

        Raises:
            BrokerUnavailable, BrokerUncertain, ConfigurationError: as ``send_to_channel``.
        """
        broker = await self.broker()
        capacities: dict[str, int] = {}
        with self._requests.open() as request:
            command = {"do": "tell_capacity", "channel": channel, "request": request.number}
            published = await broker.publish(user_channel(channel), self._command(command))
            async for node, found in request.answers(published.receivers, READER_SECONDS):
                match found:
                    # A receiver waits there: no other process needs to be asked.
                    case [int(capacity), True] if capacity > 0:
                        capacities = {node: capacity}
                        break
                    # -1 stands for a process that has stopped reading.
                    case [int(capacity), False] if capacity >= 0:
                        capacities[node] = capacity
        # All are busy: the one with the most space comes first.
        for node in sorted(capacities, key=capacities.__getitem__, reverse=True):
            if capacities[node] > 0 and await self.send_to_channel(node, channel, payload) == "taken":
                return "taken"
        return "full" if capacities else "gone"

    async def flush(self) -> None:
        """Have all other processes forget their messages and groups.

        Raises:
            BrokerUnavailable: they were not told.
            BrokerUncertain: some have not answered.
            ConfigurationError: the broker cannot work.
        """
        broker = await self.broker()
        with self._requests.open() as request:
            command = self._command({"do": "flush", "request": request.number})
            expected = (await broker.publish(ALL_NODES, command)).receivers
            count = 0
            async for _ in request.answers(expected, ANSWER_SECONDS):
                count += 1
        if expected is not None and count < expected:
            raise BrokerUncertain(f"{expected - count} processes have not answered that they have forgotten everything")

    def _envelope(self, kind: Literal["room", "user", "control"], name: str, payload: bytes, number: int) -> bytes:
        return encode_envelope(
            kind, name, payload, node=int(self._node.id, 16), number=number, sent_at=time.time_ns() // 1000
        )

    def _command(self, command: dict[str, Any]) -> bytes:
        return self._envelope("control", "", json.dumps(command, separators=(",", ":")).encode(), 0)

    # What arrives

    def received(self, envelope: bytes) -> None:
        """Take an envelope. Nothing is raised."""
        try:
            message = decode_envelope(envelope)
            if message.node == int(self._node.id, 16):
                self._hear_itself(message)
            elif message.kind == "room":
                self._groups.put(message.name, message.payload)
            elif message.kind == "user":
                taken = self._mailboxes.put(message.name, message.payload)
                self._answer(f"{message.node:016x}", message.number, "taken" if taken else "full")
            elif message.kind == "control":
                self._carry_out(f"{message.node:016x}", json.loads(message.payload))
        except (ValueError, KeyError, TypeError, RecursionError):
            self.unreadable += 1
        except Exception:
            if not self._is_failure_logged:
                self._is_failure_logged = True
                logger.exception("an envelope could not be handled; further failures are not logged")

    def _hear_itself(self, message: DecodedEnvelope) -> None:
        """Take an envelope of this process. Some brokers count it among the receivers, so it counts as an answer."""
        if message.kind == "control":
            command = json.loads(message.payload)
            if command["do"] in ("flush", "tell_capacity"):
                self._requests.answered(self._node.id, command["request"], None)

    def _carry_out(self, node: str, command: dict[str, Any]) -> None:
        match command["do"]:
            case "answer":
                self._requests.answered(node, command["request"], command["answer"])
            case "tell_capacity":
                self._answer(node, command["request"], self._mailboxes.capacity_left(str(command["channel"])))
            case "add":
                group, channel, request = str(command["group"]), str(command["channel"]), int(command["request"])
                self.start_task(self._add(node, group, channel, request))
            case "discard":
                self._groups.discard(str(command["group"]), str(command["channel"]))
                self._answer(node, command["request"], "done")
            case "flush":
                self._groups.clear()
                self._answer(node, command["request"], "done")

    async def _add(self, node: str, group: str, channel: str, request: int) -> None:
        if not self._groups.add(group, channel):
            await self.subscribe_to_group(group)
        self._answer(node, request, "done")

    def _answer(self, node: str, request: int, answer: object) -> None:
        session = self._session
        if session is not None:
            session.broker.send(
                node_channel(node), self._command({"do": "answer", "request": request, "answer": answer})
            )

    def interrupted(self, channels: Collection[str] | None) -> None:
        """Note that messages may not arrive: the next channel of a group waits until they do."""
        if channels is None:
            self._groups.forget_all_subscribed()
            return
        for channel in channels:
            if channel.startswith(ROOM_CHANNELS):
                self._groups.forget_subscribed(channel.removeprefix(ROOM_CHANNELS))

    # Time

    def swept(self, now: float) -> None:
        """Drop what has expired, leave groups without channels, and offer what nothing here reads."""
        self._groups.expire(now)
        for channel in tuple(self._wanted):
            if self._is_wanted(channel):
                self._empty.pop(channel, None)
            elif self._empty.setdefault(channel, now + UNSUBSCRIBE_DELAY) <= now:
                self._unsubscribe(channel)
        for channel in self._mailboxes.unread_channels():
            if channel not in self._offered:
                self._offered.add(channel)
                self.start_task(self._offer(channel))

    def _is_wanted(self, channel: str) -> bool:
        kind, _, name = channel.partition(":")
        return self._mailboxes.is_read(name) if kind == "user" else not self._groups.is_empty(name)

    def _unsubscribe(self, channel: str) -> None:
        del self._empty[channel]
        self._wanted.discard(channel)
        if self._session is not None:
            self._session.broker.unsubscribe(channel)

    async def _offer(self, channel: str) -> None:
        """Give the messages of a channel to processes that read it by now."""
        try:
            while (message := self._mailboxes.take(channel)) is not None:
                try:
                    outcome = await self.send_to_reader(channel, message.payload)
                except BrokerUncertain:
                    # It may have arrived, and must not arrive twice.
                    self.unreachable += 1
                    continue
                except Exception:
                    self._mailboxes.put_back(channel, message)
                    raise
                else:
                    if outcome != "taken":
                        self._mailboxes.put_back(channel, message)
                        return
                finally:
                    self._mailboxes.free_place(channel)
        except Exception as error:
            logger.debug("the messages of the channel %s stay in this process: %s", channel, error)
        finally:
            self._offered.discard(channel)
