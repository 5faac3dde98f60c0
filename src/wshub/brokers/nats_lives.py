"""The lives of nodes in JetStream: who beats, who is dead, and who has claimed the entries of a dead one."""

from __future__ import annotations

import contextlib
import secrets
from typing import NamedTuple

from wshub.brokers.history_store import new_epoch
from wshub.brokers.nats_presence_stream import PresenceStream, Record, ReplacedError
from wshub.brokers.nats_reading import StoredMessage
from wshub.brokers.presence_interface import DEAD_SECONDS

__all__ = ["Lives"]

# The message of a life is empty while its node lives. It says so if the node ends, or another life has claimed its
# entries.
LEAVING = b"leaving"
CLAIMED = b"claimed by "

# Beats of this node for which another life must have had none to be dead. After an outage of the engine, all lives
# seem old until each has had its next beat.
UNCHANGED_BEATS = 3

EPOCH = "epoch"


class Seen(NamedTuple):
    """The last message of another life, as this node has seen it."""

    sequence: int
    unchanged: int
    """Beats of this node since, without one of the other life."""


class Lives:
    """The life of this node, and those of the others.

    Args:
        stream: keeps a message for each life.
        node: the id of the node.
    """

    def __init__(self, stream: PresenceStream, node: str) -> None:
        self.own = f"{node}-{secrets.token_hex(4)}"
        """The name of this node's life."""
        self.epoch = ""
        """Is lost if everything else is."""
        self.losses = 0
        """How often this node has found that the engine has nothing, or another epoch than before."""
        self.is_first = False
        """Whether this life is the first one of all that were found last, by its name."""
        self._stream = stream
        self._node = node
        self._sequence = 0
        self._seen: dict[str, Seen] = {}
        # The sequences with which lives were found dead.
        self._dead: dict[str, int] = {}

    async def beat(self) -> bool:
        """Say that this node lives. Return False if that is another life than before. Raises ``BrokerError``."""
        is_known = await self._beat_again() if self._sequence else False
        if not is_known:
            if self._sequence:
                self.own = f"{self._node}-{secrets.token_hex(4)}"
                self._sequence = 0
            self._sequence = await self._write(b"")
        if not is_known or not self.epoch:
            former, self.epoch = self.epoch, await self._read_epoch()
            self.losses += former not in ("", self.epoch)
        return is_known

    async def leave(self, *, is_empty: bool) -> None:
        """Say that this node ends. Without entries, nothing is left of it. Raises ``BrokerError``."""
        if not self._sequence:
            return
        if is_empty:
            self._stream.delete(self._subject(self.own), self._sequence)
        else:
            self._sequence = await self._write(LEAVING)

    async def begin_anew(self) -> str:
        """Begin another life, and claim the entries of the former one. Return its name. Raises ``BrokerError``."""
        former, sequence = self.own, self._sequence
        self.own, self._sequence = f"{self._node}-{secrets.token_hex(4)}", 0
        self._sequence = await self._write(b"")
        while True:
            try:
                await self._stream.replace(self._subject(former), CLAIMED + self.own.encode(), sequence)
            except ReplacedError:
                sequence = (await self._stream.read(self._subject(former))).sequence
            else:
                return former

    async def names(self) -> set[str]:
        """Return all lives that have a message. Raises ``BrokerError``."""
        return set(await self._all())

    async def end(self, name: str) -> None:
        """Have a life without a message count as one that has ended. Raises ``BrokerError``."""
        with contextlib.suppress(ReplacedError):
            await self._stream.replace(self._subject(name), LEAVING, 0)

    async def exists(self, name: str) -> bool:
        """Whether a life has a message. One with entries has. Raises ``BrokerError``."""
        return bool((await self._stream.read(self._subject(name))).sequence)

    async def _beat_again(self) -> bool:
        try:
            self._sequence = await self._stream.replace(self._subject(self.own), b"", self._sequence)
        except ReplacedError:
            # It may have been this node, which has not got the answer.
            record = await self._stream.read(self._subject(self.own))
            if record.data or not record.sequence:
                return False
            self._sequence = record.sequence
            return await self._beat_again()
        return True

    async def _write(self, data: bytes) -> int:
        """Write the message of the own life, whatever it was before."""
        sequence = self._sequence
        while True:
            try:
                return await self._stream.replace(self._subject(self.own), data, sequence)
            except ReplacedError:
                sequence = (await self._stream.read(self._subject(self.own))).sequence

    async def _read_epoch(self) -> str:
        while True:
            record = await self._stream.read(EPOCH)
            if record.sequence:
                return record.data.decode()
            epoch = new_epoch()
            try:
                await self._stream.replace(EPOCH, epoch.encode(), 0)
            except ReplacedError:
                continue
            if not self.epoch:
                self.losses += 1
            return epoch

    # The others

    async def find_dead(self) -> tuple[str, ...]:
        """Return the lives that have ended, and whose entries no living one has claimed. Call it once after each beat.

        Raises ``BrokerError``.
        """
        lives = await self._all()
        own = lives.get(self.own)
        self.is_first = self.own == min(lives, default="")
        if own is None:
            # A replica is behind.
            return ()
        seen, self._seen = self._seen, {}
        dead = {name for name, message in lives.items() if self._is_dead(name, message, own, seen.get(name))}
        for name, message in lives.items():
            claimer = claimer_of(message.data)
            if claimer and (claimer == self.own or claimer in dead or claimer not in lives):
                dead.add(name)
        self._dead = {name: lives[name].sequence for name in dead}
        return tuple(sorted(dead))

    async def _all(self) -> dict[str, StoredMessage]:
        """Return the messages of all lives, by their names."""
        return {message.subject.rpartition(".")[2]: message async for message in self._stream.list_all("life.*")}

    def _is_dead(self, name: str, message: StoredMessage, own: StoredMessage, seen: Seen | None) -> bool:
        if name == self.own or claimer_of(message.data):
            return False
        unchanged = seen.unchanged + 1 if seen is not None and seen.sequence == message.sequence else 0
        self._seen[name] = Seen(message.sequence, unchanged)
        if message.data == LEAVING:
            return True
        return unchanged >= UNCHANGED_BEATS and own.stored_at - message.stored_at >= DEAD_SECONDS

    async def claim(self, name: str) -> Record | None:
        """Claim the entries of a dead life. Return its message; None if it lives, or another node was faster.

        Raises ``BrokerError``.
        """
        record = await self._stream.read(self._subject(name))
        if claimer_of(record.data) == self.own:
            return record
        if not record.sequence or self._dead.get(name) != record.sequence:
            return None
        data = CLAIMED + self.own.encode()
        try:
            return Record(await self._stream.replace(self._subject(name), data, record.sequence), data)
        except ReplacedError:
            return None

    def forget(self, name: str, record: Record) -> None:
        """Delete the message of a dead life, which has no entries any more."""
        self._stream.delete(self._subject(name), record.sequence)
        self._dead.pop(name, None)

    @staticmethod
    def _subject(name: str) -> str:
        return f"life.{name}"


def claimer_of(data: bytes) -> str:
    """Return the life that has claimed the entries of another one; empty if none has."""
    return data.removeprefix(CLAIMED).decode() if data.startswith(CLAIMED) else ""
