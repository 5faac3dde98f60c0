"""Commands about keys, to one engine or to those of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from wshub.brokers.redis_commands import pack_command
from wshub.brokers.redis_scripts import Script
from wshub.brokers.stored_sender import StoredSender

__all__ = ["LOST_SCRIPT", "KeyCommands", "call_command"]

LOST_SCRIPT = "NOSCRIPT"
"""How the error begins with which an engine says that it does not have a script."""


class KeyCommands(Protocol):
    """Sends commands about keys to the engine that has them.

    The group is that of all keys of a command, as ``ChannelNames.group`` returns it.
    """

    def store(self, channel: str, head: bytes, envelope: bytes) -> bool:
        """Call the script that stores an envelope, and count the answer. Return False if the envelope was dropped.

        Args:
            channel: of the envelope.
            head: the call, but for its last argument.
            envelope: the last argument.
        """

    def stored_sender(self, head: bytes) -> StoredSender | None:
        """Return what calls the script natively; None if that cannot be done.

        Args:
            head: as for ``store()``.
        """

    async def ask_to_store(self, channel: str, head: bytes, envelope: bytes, *, has_key: bool) -> Any:
        """Do what ``store()`` does, and return the answer. Raises ``BrokerError``.

        Args:
            channel, head, envelope: as for ``store()``.
            has_key: whether the envelope has an idempotency key.
        """

    async def call(self, group: int, script: Script, keys: Sequence[bytes], *arguments: bytes) -> Any:
        """Call a script, and return the answer. Raises ``BrokerError``."""

    async def request(self, group: int, command: bytes) -> Any:
        """Send a command, and return the answer. Raises ``BrokerError``."""


def call_command(script: Script, keys: Sequence[bytes], arguments: Sequence[bytes]) -> bytes:
    """Return the command that calls a script."""
    return pack_command(b"EVALSHA", script.digest, b"%d" % len(keys), *keys, *arguments)
