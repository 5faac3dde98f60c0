"""Calls of scripts in an engine, which gets each script before its first call over a connection.

An engine forgets its scripts if somebody tells it to (SCRIPT FLUSH). Then it refuses the calls that are under way, and
has done nothing for them. The scripts are loaded again, and these calls are repeated in their order. Further calls wait
until then.

One order is not kept. If another node loads the scripts first, the engine carries out some calls that are under
way, and the refused ones come behind them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from wshub.brokers.redis_commands import pack_command
from wshub.brokers.redis_connection import RedisConnection
from wshub.brokers.redis_key_commands import LOST_SCRIPT, call_command
from wshub.brokers.redis_publishing import Publishing, settle
from wshub.brokers.redis_scripts import Script
from wshub.brokers.redis_storing import StoreCalls
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

__all__ = ["ScriptCalls"]

MAX_REPEATS = 3
"""How often a call is repeated, if the engine forgets the scripts again and again."""

FULL = "too many bytes wait to be sent to the engine already"


class Call(NamedTuple):
    """A call that waits until the scripts are loaded."""

    command: bytes
    """The call; with an envelope, all of it but the last word."""
    envelope: bytes | None
    answer: asyncio.Future[Any] | None
    """Gets the answer, if that is waited for."""
    repeats: int
    """How often the call was sent before."""


class ScriptCalls(StoreCalls):
    """The ``KeyCommands`` of one engine, over the connection that publishes.

    Args:
        publishing: sends, and waits for answers.
        scripts: all that are called.
    """

    def __init__(self, publishing: Publishing, scripts: Sequence[Script]) -> None:
        super().__init__(publishing)
        self._publishing = publishing
        self._scripts = tuple(scripts)
        # While scripts are loaded again: the calls that were refused, and those that have come since.
        self._refused: list[Call] = []
        self._held: list[Call] = []
        self._held_bytes = 0

    def store_later(self, head: bytes, envelope: bytes) -> bool:
        """Load the scripts and send a call, or have it wait for them. Return False if it was dropped."""
        return not self._begin(head, envelope, None)

    def refused(self, head: bytes, envelope: bytes, error: BrokerError) -> None:
        """Take the error with which the engine has refused a call of ``store()``."""
        self._answered(head, envelope, None, 0, error)

    async def ask_to_store(self, channel: str, head: bytes, envelope: bytes, *, has_key: bool) -> Any:
        return await self._ask(head, envelope)

    async def call(self, group: int, script: Script, keys: Sequence[bytes], *arguments: bytes) -> Any:
        return await self._ask(call_command(script, keys, arguments), None)

    async def request(self, group: int, command: bytes) -> Any:
        return await self._publishing.request(command)

    async def _ask(self, command: bytes, envelope: bytes | None) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        problem = self._begin(command, envelope, answer)
        if problem:
            raise BrokerUnavailable(problem)
        try:
            return await self._publishing.wait(answer)
        finally:
            # An error of this future holds the traceback, and so this frame and the future: only the collector would
            # free them.
            del answer

    def _begin(self, command: bytes, envelope: bytes | None, answer: asyncio.Future[Any] | None) -> str:
        """Send a call, or have it wait. Return why it was dropped; empty if it was not."""
        if self.is_reloading:
            return self._hold(Call(command, envelope, answer, 0))
        self.load()
        problem = self._send(command, envelope, answer, 0)
        if not problem and envelope is not None:
            self._publishing.published += 1
        return problem

    def _send(self, command: bytes, envelope: bytes | None, answer: asyncio.Future[Any] | None, repeats: int) -> str:
        """Send a call. Return why it was dropped, which is counted; empty if it was not."""
        publishing = self._publishing
        answered = partial(self._answered, command, envelope, answer, repeats)
        if envelope is not None:
            return "" if publishing.send_command(command, envelope, answered) else publishing.why_dropped
        if publishing.connection is None:
            return "there is no connection to the engine"
        publishing.connection.request(command, answered)
        return ""

    def _answered(
        self, command: bytes, envelope: bytes | None, answer: asyncio.Future[Any] | None, repeats: int, reply: Any
    ) -> None:
        if isinstance(reply, BrokerError) and repeats < MAX_REPEATS and str(reply).startswith(LOST_SCRIPT):
            self._refused.append(Call(command, envelope, answer, repeats + 1))
            self._reload()
            return
        if envelope is not None:
            self._publishing.count_answer(reply)
        if answer is not None:
            settle(answer, reply)

    # Loading

    def load(self) -> None:
        """Have the present connection begin with the scripts, if it has not got them yet."""
        connection = self._publishing.connection
        if connection is not None and connection.stream is not self.loaded_over:
            self._load(connection)

    def forget(self) -> None:
        """Load the scripts again: the engine has lost them."""
        self.loaded_over = None

    def _load(self, connection: RedisConnection) -> None:
        """Have a connection begin with the scripts. The engine runs commands of a connection in order."""
        self.loaded_over = connection.stream
        for script in self._scripts:
            connection.request(pack_command(b"SCRIPT", b"LOAD", script.text), partial(self._loaded, connection))

    def _loaded(self, connection: RedisConnection, reply: Any) -> None:
        if isinstance(reply, BrokerError) and self.loaded_over is connection.stream:
            # Calls fail, and the next one loads again.
            self.forget()

    def _reload(self) -> None:
        """Load the scripts again, unless that is under way.

        The engine answers in order. So once it has answered this, it has refused all calls that it has got before.
        """
        if self.is_reloading:
            return
        self.is_reloading = True
        connection = self._publishing.connection
        if connection is None:
            self._reloaded(BrokerUncertain("the connection to the engine is being closed"))
            return
        self._load(connection)
        connection.request(b"*1\r\n$4\r\nPING\r\n", self._reloaded)

    def _hold(self, call: Call) -> str:
        """Have a call wait until the scripts are loaded. Return why it was dropped; empty if it was not."""
        size = len(call.command) + len(call.envelope or b"")
        if self._held_bytes + size > self._publishing.max_pending:
            if call.envelope is not None:
                self._publishing.dropped["full"] += 1
            return FULL
        if call.envelope is not None:
            self._publishing.published += 1
        self._held.append(call)
        self._held_bytes += size
        return ""

    def _reloaded(self, reply: Any) -> None:
        """Send the calls that wait."""
        calls = [*self._refused, *self._held]
        self._refused, self._held, self._held_bytes = [], [], 0
        self.is_reloading = False
        if isinstance(reply, BrokerUncertain):
            lost = BrokerUnavailable(f"nothing was done: {reply}")
            for call in calls:
                self._answered(call.command, call.envelope, call.answer, MAX_REPEATS, lost)
            return
        for call in calls:
            problem = self._send(*call)
            if problem:
                if call.envelope is not None:
                    self._publishing.published -= 1
                if call.answer is not None:
                    settle(call.answer, BrokerUnavailable(problem))
