"""The histories that an engine keeps for the rooms of a hub."""

from __future__ import annotations

import secrets

from wshub.brokers.history_interface import HistoryQuery, StoredEnvelope, StoredHistory
from wshub.brokers.interface import Gap, HistoryConfig, Position, Published
from wshub.brokers.redis_commands import ChannelNames, pack_command
from wshub.brokers.redis_key_commands import KeyCommands
from wshub.brokers.redis_scripts import READ, Script, publish_script
from wshub.brokers.stored_sender import StoredSender
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

__all__ = ["RedisHistories"]

# Heads that are kept, so that a message to a room that is used often finds its own.
KEPT_HEADS = 4096

GAPS: dict[bytes, Gap] = {b"": "", b"epoch": "epoch", b"trimmed": "trimmed"}


class RedisHistories:
    """Stores envelopes and reads them.

    Args:
        names: the names of channels and keys in the engine.
        calls: the engine, or the engines of a cluster.
    """

    def __init__(self, names: ChannelNames, calls: KeyCommands) -> None:
        self._names = names
        self._calls = calls
        self._publish = publish_script(names.publish_word, answers=True)
        self._publish_unanswered = publish_script(names.publish_word, answers=False)
        self._heads: dict[str, tuple[HistoryConfig, bytes]] = {}
        # Together with the engine's time it makes epochs that nobody has used before.
        self._seed = secrets.token_hex(8).encode()

    def send(self, channel: str, envelope: bytes, config: HistoryConfig) -> bool:
        """Store an envelope and send it, and forget it. Return False if it was dropped."""
        return self._calls.store(channel, self._head(channel, config), envelope)

    def stored_sender(self, channel: str, config: HistoryConfig) -> StoredSender:
        """Return what sends the envelopes of a channel as ``send()`` does."""
        native = self._calls.stored_sender(self._make_head(self._publish_unanswered, channel, config))
        return native if native is not None else StoredSender(self.send, channel, config)

    async def publish(self, channel: str, envelope: bytes, config: HistoryConfig, idempotency_key: str) -> Published:
        """Store an envelope and send it, and return its position. Raises ``BrokerError``."""
        head = (
            self._make_head(self._publish, channel, config, idempotency_key)
            if idempotency_key
            else self._head(channel, config)
        )
        answer = await self._calls.ask_to_store(channel, head, envelope, has_key=bool(idempotency_key))
        if not isinstance(answer, list) or len(answer) != 4:
            raise BrokerUncertain(f"the engine has answered with something else than a position: {answer!r}")
        offset, epoch, is_duplicate, receivers = answer
        return Published(
            receivers=receivers, position=Position(offset, epoch.decode()), is_duplicate=bool(is_duplicate)
        )

    async def read(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory:
        """Return what is stored of a channel. Raises ``BrokerUnavailable``."""
        since = query.since
        place = (b"", b"") if since is None else (b"%d" % since.offset, since.epoch.encode(errors="surrogatepass"))
        try:
            answer = await self._calls.call(
                self._names.group(channel),
                READ,
                self._keys(channel),
                b"%d" % config.position_ttl_ms,
                self._seed,
                *place,
                *(b"%d" % number for number in (query.limit, query.max_bytes, query.reverse, query.is_own)),
                query.mark,
            )
        except BrokerUnavailable:
            raise
        except BrokerError as error:
            raise BrokerUnavailable(f"the history could not be read: {error}") from None
        if not isinstance(answer, list) or len(answer) != 5 or answer[2] not in GAPS:
            raise BrokerUnavailable(f"the engine has answered with something else than a history: {answer!r}")
        offset, epoch, gap, found, newest = answer
        envelopes = tuple(
            StoredEnvelope(int(number), envelope) for number, envelope in zip(found[::2], found[1::2], strict=True)
        )
        return StoredHistory(envelopes=envelopes, position=Position(offset, epoch.decode()), gap=GAPS[gap], mark=newest)

    def _keys(self, channel: str) -> tuple[bytes, bytes]:
        group = self._names.group(channel)
        return self._names.key("history", channel, group), self._names.key("position", channel, group)

    def _head(self, channel: str, config: HistoryConfig) -> bytes:
        """Return the first bytes of each call that publishes on a channel."""
        kept = self._heads.get(channel)
        if kept is not None and kept[0] is config:
            return kept[1]
        head = self._make_head(self._publish, channel, config)
        if len(self._heads) >= KEPT_HEADS:
            self._heads.clear()
        self._heads[channel] = config, head
        return head

    def _make_head(self, script: Script, channel: str, config: HistoryConfig, idempotency_key: str = "") -> bytes:
        keys = self._keys(channel)
        if idempotency_key:
            name = f"{len(idempotency_key)}:{idempotency_key}:{channel}"
            keys = (*keys, self._names.key("idempotency", name, self._names.group(channel)))  # type: ignore[assignment]
        words = [
            *(b"EVALSHA", script.digest, b"%d" % len(keys), *keys),
            *(b"%d" % config.size, b"%d" % config.max_bytes, b"%d" % config.ttl_ms, b"%d" % config.position_ttl_ms),
            *(self._seed, self._names.encode(channel)),
        ]
        # The envelope is one more word.
        return b"*%d\r\n" % (len(words) + 1) + pack_command(*words).partition(b"\r\n")[2]
