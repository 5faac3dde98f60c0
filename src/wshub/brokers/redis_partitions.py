"""The parts into which the channels of a cluster are put, and what their channels are called."""

from __future__ import annotations

from binascii import crc_hqx
from itertools import count
from zlib import crc32

from wshub.brokers.redis_commands import ChannelNames

__all__ = ["SLOTS", "Partitions", "ShardedNames", "slot_of"]

SLOTS = 16384
"""The number of slots of a cluster."""

# Partitions of channels that are kept, so that a room that is used often needs no hash.
_KEPT_CHANNELS = 4096


def slot_of(tag: bytes) -> int:
    """Return the slot of all names with this hash tag."""
    return crc_hqx(tag, 0) % SLOTS


class Partitions:
    """Puts names into a fixed number of partitions. Each has a hash tag, so all its names have one slot.

    A connection subscribes to names of one slot at a time, so every name of its own would cost a command each. The tags
    are chosen so that their slots lie at equal distances: engines with as many slots have as many partitions.

    Args:
        number: of partitions. With another number, names have other tags.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.tags = spread_tags(number)
        """The hash tag of each partition."""
        self.slots = [slot_of(tag) for tag in self.tags]
        """The slot of each partition."""
        self._of_slot = {slot: partition for partition, slot in enumerate(self.slots)}
        self._of_tag = {tag: partition for partition, tag in enumerate(self.tags)}

    def of(self, name: str) -> int:
        """Return the partition of a name. It is the same in every process."""
        return crc32(name.encode(errors="surrogatepass")) % self.number

    def of_slot(self, slot: int) -> int | None:
        """Return the partition that has the slot, or None."""
        return self._of_slot.get(slot)

    def of_tag(self, tag: bytes) -> int | None:
        """Return the partition that has the hash tag, or None."""
        return self._of_tag.get(tag)

    def name_in(self, partition: int, start: str) -> str:
        """Return a name with this start that lies in the partition."""
        return next(name for name in (f"{start}{number}" for number in count()) if self.of(name) == partition)


def spread_tags(number: int) -> list[bytes]:
    """Return hash tags. The first one has a slot in the first part of all slots, and so on.

    The numbers 0, 1, 2 ... are tried. Each part gets the first one whose slot is in it.
    """
    tags: dict[int, bytes] = {}
    for candidate in count():
        tag = b"%d" % candidate
        tags.setdefault(slot_of(tag) * number // SLOTS, tag)
        if len(tags) == number:
            return [tags[part] for part in range(number)]
    raise AssertionError


class ShardedNames(ChannelNames):
    """Names channels in a cluster: PREFIX:{TAG}:HUB:CHANNEL. The tag is that of the channel's partition."""

    publish_word = b"SPUBLISH"
    subscribe_word = b"SSUBSCRIBE"
    unsubscribe_word = b"SUNSUBSCRIBE"
    count_words = (b"PUBSUB", b"SHARDNUMSUB")

    def __init__(self, prefix: str, hub: str, partitions: Partitions) -> None:
        super().__init__(prefix, 0, hub)
        self.partitions = partitions
        self._before = prefix.encode(errors="surrogatepass") + b":{"
        self._after = b"}" + self._start[len(prefix.encode(errors="surrogatepass")) :]
        self._kept: dict[str, int] = {}

    def group(self, channel: str) -> int:
        """Return the partition of a channel."""
        partition = self._kept.get(channel)
        if partition is None:
            partition = self.partitions.of(channel)
            if len(channel) <= 256:
                if len(self._kept) >= _KEPT_CHANNELS:
                    self._kept.clear()
                self._kept[channel] = partition
        return partition

    def encode(self, channel: str) -> bytes:
        """Return the name of a channel in the engine."""
        tag = self.partitions.tags[self.group(channel)]
        return b"".join((self._before, tag, self._after, channel.encode(errors="surrogatepass")))

    def decode(self, name: bytes) -> str | None:
        """Return the channel of a name that ``encode()`` has returned; None if it has not."""
        if not name.startswith(self._before):
            return None
        tag, after, channel = name[len(self._before) :].partition(self._after)
        if not after:
            return None
        try:
            decoded = channel.decode(errors="surrogatepass")
        except UnicodeDecodeError:
            return None
        return decoded if self.partitions.of_tag(tag) == self.group(decoded) else None

    def key(self, kind: str, name: str, group: int) -> bytes:
        """Return the name of a key in a partition."""
        return self.tagged_key(self.partitions.tags[group], f"{kind}:{name}")

    def tagged_key(self, tag: bytes, name: str) -> bytes:
        """Return the name of a key with a hash tag."""
        return b"".join((self._before, tag, self._after, name.encode(errors="surrogatepass")))
