"""Commands about keys of a cluster: each goes to the engine that owns the slot of the keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wshub.brokers.redis_cluster_publishing import ClusterPublishing
from wshub.brokers.redis_key_commands import call_command
from wshub.brokers.redis_scripts import Script
from wshub.brokers.stored_sender import StoredSender

__all__ = ["ClusterCalls"]


class ClusterCalls:
    """The ``KeyCommands`` of a cluster.

    Args:
        publishing: sends, and waits for answers.
    """

    def __init__(self, publishing: ClusterPublishing) -> None:
        self._publishing = publishing

    def store(self, channel: str, head: bytes, envelope: bytes) -> bool:
        return self._publishing.store(channel, head, envelope)

    def stored_sender(self, head: bytes) -> StoredSender | None:
        """Return None: the owner of a slot changes."""
        return None

    async def ask_to_store(self, channel: str, head: bytes, envelope: bytes, *, has_key: bool) -> Any:
        return await self._publishing.ask_to_store(channel, head, envelope, has_key=has_key)

    async def call(self, group: int, script: Script, keys: Sequence[bytes], *arguments: bytes) -> Any:
        return await self._publishing.request(group, call_command(script, keys, arguments), calls=True)

    async def request(self, group: int, command: bytes) -> Any:
        return await self._publishing.request(group, command, calls=False)
