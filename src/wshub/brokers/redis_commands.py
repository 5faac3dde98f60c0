"""The names of channels in an engine, and the commands of a broker as bytes."""

from __future__ import annotations

from wshub.brokers.redis_url import RedisAddress

__all__ = ["ChannelNames", "hello_command", "pack_command", "publish_command"]

# Names that are kept in their encoded form, so that a message to a room that is used often finds it. Names of rooms may
# be long, so only short ones are kept.
_KEPT_NAMES = 4096
_KEPT_LENGTH = 256


class ChannelNames:
    """Names channels in the engine: PREFIX:HUB:CHANNEL, or PREFIX:dbN:HUB:CHANNEL for a database other than 0.

    Databases do not separate the channels of an engine, so the name does. A colon in the name of a hub is escaped:
    otherwise a room of one hub could have the channel of another hub.
    """

    publish_word = b"PUBLISH"
    subscribe_word = b"SUBSCRIBE"
    unsubscribe_word = b"UNSUBSCRIBE"
    count_words: tuple[bytes, ...] = (b"PUBSUB", b"NUMSUB")
    """The first words of the command that counts subscribers."""

    def __init__(self, prefix: str, database: int, hub: str) -> None:
        hub = hub.replace("%", "%25").replace(":", "%3A")
        parts = [prefix, f"db{database}", hub] if database else [prefix, hub]
        self._start = ":".join([*parts, ""]).encode(errors="surrogatepass")
        self.heads: dict[str, bytes] = {}
        """The last results of ``publish_head()`` for short names."""

    def encode(self, channel: str) -> bytes:
        """Return the name of a channel in the engine."""
        return self._start + channel.encode(errors="surrogatepass")

    def key(self, kind: str, name: str, group: int) -> bytes:
        """Return the name of a key. One command has keys of one group. Keys and channels do not share their names."""
        return self._start + kind.encode() + b":" + name.encode(errors="surrogatepass")

    def decode(self, name: bytes) -> str | None:
        """Return the channel of a name that ``encode()`` has returned; None if it has not."""
        if not name.startswith(self._start):
            return None
        try:
            return name[len(self._start) :].decode(errors="surrogatepass")
        except UnicodeDecodeError:
            return None

    def group(self, channel: str) -> int:
        """Return a number that the channels, or the keys, of one command have in common."""
        return 0

    def publish_head(self, channel: str) -> bytes:
        """Return the first bytes of each PUBLISH on a channel."""
        head = self.heads.get(channel)
        if head is None:
            name = self.encode(channel)
            word = self.publish_word
            head = b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(word), word, len(name), name)
            if len(name) <= _KEPT_LENGTH:
                if len(self.heads) >= _KEPT_NAMES:
                    self.heads.clear()
                self.heads[channel] = head
        return head


def pack_command(*words: bytes) -> bytes:
    """Return a command as an engine reads it."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        parts += (b"$%d\r\n" % len(word), word, b"\r\n")
    return b"".join(parts)


def publish_command(head: bytes, message: bytes) -> bytes:
    """Return a PUBLISH: ``head`` is that of the channel."""
    return b"%b$%d\r\n%b\r\n" % (head, len(message), message)


def hello_command(address: RedisAddress, client_name: str) -> bytes:
    """Return the command that chooses RESP3, logs in and names the connection."""
    words = [b"HELLO", b"3"]
    if address.username or address.password:
        words += [b"AUTH", (address.username or "default").encode(), address.password.encode()]
    return pack_command(*words, b"SETNAME", client_name.encode())
