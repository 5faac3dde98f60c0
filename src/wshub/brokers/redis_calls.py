"""Calls of scripts in an engine, which gets each script before its first call over a connection."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from wshub.brokers.redis_commands import pack_command
from wshub.brokers.redis_connection import RedisConnection
from wshub.brokers.redis_publishing import Publishing
from wshub.brokers.redis_scripts import Script
from wshub.errors import BrokerError, BrokerUnavailable

__all__ = ["ScriptCalls"]


class ScriptCalls:
    """Calls some scripts over the connection that publishes.

    Args:
        publishing: sends, and waits for answers.
        scripts: all that are called.
    """

    def __init__(self, publishing: Publishing, scripts: Sequence[Script]) -> None:
        self._publishing = publishing
        self._scripts = tuple(scripts)
        # The connection over which the scripts were loaded.
        self._loaded_over: RedisConnection | None = None

    async def call(self, script: Script, keys: Sequence[bytes], *arguments: bytes) -> Any:
        """Call a script, and return the answer. Raises ``BrokerError``."""
        self.load()
        command = pack_command(b"EVALSHA", script.digest, b"%d" % len(keys), *keys, *arguments)
        return await self.finish(self._publishing.request(command))

    async def finish(self, answer: Awaitable[Any]) -> Any:
        """Return the answer to a call. Raises ``BrokerUnavailable`` if the engine has lost the script."""
        try:
            return await answer
        except BrokerError as error:
            if str(error).startswith("NOSCRIPT"):
                self._loaded_over = None
                raise BrokerUnavailable(f"the engine has lost its scripts, try again: {error}") from None
            raise

    def load(self) -> None:
        """Have the present connection begin with the scripts. The engine runs commands of a connection in order."""
        connection = self._publishing.connection
        if connection is None or connection is self._loaded_over:
            return
        self._loaded_over = connection
        for script in self._scripts:
            self._load_script(connection, script)

    def _load_script(self, connection: RedisConnection, script: Script) -> None:
        def loaded(reply: Any) -> None:
            if isinstance(reply, BrokerError) and self._loaded_over is connection:
                # Calls fail, and the next one loads again.
                self._loaded_over = None

        connection.request(pack_command(b"SCRIPT", b"LOAD", script.text), loaded)
