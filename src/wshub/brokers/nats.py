"""Joins hubs through NATS servers."""

from __future__ import annotations

import re
import ssl as ssl_module

from wshub.brokers.interface import BrokerEvents, BrokerHealth, BrokerStats, NodeInfo, Published
from wshub.brokers.nats_session import NatsSession, NatsSettings
from wshub.brokers.nats_url import parse_nats_url
from wshub.errors import BrokerUnavailable, ConfigurationError, MisuseError
from wshub.protocol.validation import check_integer, check_str

__all__ = ["NatsBroker"]


class NatsBroker:
    """Joins the hubs of many processes and machines through NATS servers (2.9 or newer), one or a cluster of them.

    It needs nats-py: ``pip install wshub[nats]``. A user needs the permission to publish and to subscribe to the
    subjects that begin with the prefix, ``wshub.>``. The servers store nothing.

    Args:
        url: ``nats://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]``, or ``tls://...``. A user without a password is a
            token. ``?credentials=PATH`` at the end names a file with a JWT and a seed.
        prefix: the first token of all subjects: letters, digits, ``_`` and ``-``. Hubs with different prefixes do not
            hear one another.
        ssl: the context for ``tls://``. By default it trusts the certificate authorities of the system.
        max_pending: bytes that may wait to be sent to the engine. While as many do, further messages are dropped and
            counted as ``full``.

    Raises:
        ConfigurationError: an argument is not valid.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "wshub",
        ssl: ssl_module.SSLContext | None = None,
        max_pending: int = 8 * 1024 * 1024,
    ) -> None:
        address = parse_nats_url(check_str("url", url))
        if ssl is not None and not address.tls:
            raise ConfigurationError("ssl is for a URL that begins with tls://")
        if not re.fullmatch("[A-Za-z0-9_-]+", check_str("prefix", prefix)):
            raise ConfigurationError(f"prefix must be letters, digits, '_' and '-', not {prefix!r}")
        if address.tls and ssl is None:
            ssl = ssl_module.create_default_context()
        self._settings = NatsSettings(address, prefix, ssl, check_integer("max_pending", max_pending, 1, 1 << 40))
        self._session: NatsSession | None = None
        # Channels that were subscribed to before start().
        self._wanted: set[str] = set()

    def __repr__(self) -> str:
        return f"NatsBroker({str(self._settings.address)!r}, prefix={self._settings.prefix!r})"

    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        """Join the other nodes, and return when envelopes on ``ALL_NODES`` and on the node's channel arrive.

        While the engine cannot be reached it logs that once, and tries again, ever more seldom. After ``close()``, or
        if the loop has closed without it, it can be started again.

        Raises:
            ConfigurationError: the engine does not accept the credentials, or does not let the user subscribe.
            BrokerUnavailable: the broker was closed meanwhile.
            MisuseError: it is started already.
        """
        if self._running() is not None:
            raise MisuseError("the broker is started already: a broker belongs to one hub")
        wanted, self._wanted = self._wanted, set()
        self._session = NatsSession(self._settings, node, events, wanted)
        await self._session.start()

    async def close(self) -> None:
        """Send what waits, for a second at most, and leave the other nodes. A second call does nothing."""
        self._wanted.clear()
        session = self._running()
        if session is not None:
            await session.close()

    def subscribe(self, channel: str) -> None:
        """Have envelopes of the channel arrive. A second call for a channel does nothing."""
        session = self._running()
        if session is not None:
            session.subscriptions.want(channel)
        else:
            self._wanted.add(channel)

    def unsubscribe(self, channel: str) -> None:
        """Let no more envelopes of the channel arrive. Some that are under way still may."""
        session = self._running()
        if session is not None:
            session.subscriptions.unwant(channel)
        else:
            self._wanted.discard(channel)

    async def subscribed(self, channel: str) -> None:
        """Return when every envelope that any node sends on the channel from now on arrives.

        In a cluster, the other servers learn of a subscription a moment later, and it returns before.

        Raises:
            BrokerUnavailable: the broker has no connection, or has lost it; the node has left the channel; or the
                engine refuses the subscription. The broker goes on to try.
            MisuseError: the channel is not subscribed to.
        """
        session = self._running()
        if session is None:
            raise BrokerUnavailable("the broker is not started")
        await session.subscriptions.wait(channel)

    def send(self, channel: str, envelope: bytes) -> bool:
        """Send an envelope to every node that has subscribed to the channel, and forget it.

        Returns False if the envelope was dropped: there is no connection, or too much waits already.
        """
        session = self._session
        return session is not None and session.publishing.send(channel, envelope)

    async def publish(self, channel: str, envelope: bytes) -> Published:
        """Send an envelope, and return when the engine has taken it. NATS does not tell the number of receivers.

        Raises:
            BrokerUnavailable: nothing was sent: there is no connection, too much waits already, or the envelope is
                larger than ``max_payload`` of the engine.
            BrokerUncertain: the connection has ended before the answer.
            BrokerError: the engine refuses the message.
        """
        session = self._running()
        if session is None:
            raise BrokerUnavailable("the broker is not started")
        return await session.publishing.publish(channel, envelope)

    def sweep(self, now: float) -> None:
        """Send the probes that are due, and end what has taken too long. The hub calls it at least once a second."""
        session = self._running()
        if session is not None:
            session.sweep(now)

    def health(self) -> BrokerHealth:
        """Return how the broker is at present."""
        if self._session is None:
            return BrokerHealth(state="starting", reason="the broker is not started")
        return self._session.health()

    def stats(self) -> BrokerStats:
        """Return what was counted since ``start()``."""
        if self._session is not None:
            return self._session.stats()
        return BrokerStats(subscriptions=len(self._wanted))

    def _running(self) -> NatsSession | None:
        session = self._session
        if session is None or session.is_closed or session.loop.is_closed():
            return None
        return session
