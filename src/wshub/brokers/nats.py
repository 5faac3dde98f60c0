"""Joins hubs through NATS servers."""

from __future__ import annotations

import re
import ssl as ssl_module
from collections.abc import Callable

from wshub.brokers.interface import BrokerEvents, NodeInfo
from wshub.brokers.nats_session import NatsSession, NatsSettings
from wshub.brokers.nats_url import check_replicas, parse_nats_url
from wshub.brokers.pattern_channels import PatternChannels
from wshub.brokers.session_broker import SessionBroker
from wshub.errors import ConfigurationError
from wshub.protocol.validation import check_integer, check_str

__all__ = ["NatsBroker"]


class NatsBroker(SessionBroker[NatsSession], PatternChannels):
    """Joins the hubs of many processes and machines through NATS servers (2.9 or newer), one or a cluster of them.

    It needs nats-py: ``pip install wshub[nats]``. A user needs the permission to publish and to subscribe to the
    subjects that begin with the prefix, ``wshub.>``. The servers only carry messages.

    Rooms with history or presence need JetStream, which stores them, and the permission to publish to ``$JS.API.>``.
    Without JetStream, ``publish()`` to such a room raises ``BrokerUnavailable``. Without the permission it raises
    ``BrokerError``. Plain rooms work in both cases.

    NATS does not tell the number of receivers, so ``publish()`` returns none. In a cluster, the other servers learn of
    a subscription a moment after ``subscribed()`` has returned.

    It delivers by patterns. NATS has wildcards for whole tokens of a subject, which the characters ``.``, ``:`` and
    ``/`` of a name end. So for ``chat:a*`` it sends the messages of all rooms that begin with ``chat:``, and the hub
    ignores the others.

    Args:
        url: ``nats://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]``, or ``tls://...``. A user without a password is a
            token. ``?credentials=PATH`` at the end names a file with a JWT and a seed, and ``?replicas=NUMBER`` is the
            argument of that name. Put ``&`` between the two.
        prefix: the first token of all subjects: letters, digits, ``_`` and ``-``. Hubs with different prefixes do not
            hear one another.
        ssl: the context for ``tls://``. By default it trusts the certificate authorities of the system.
        max_pending: bytes that may wait to be sent to the engine. While as many do, further messages are dropped and
            counted as ``full``.
        replicas: how many servers of a cluster keep the messages of rooms with history, and the members of rooms with
            presence: 1, 3 or 5. With 3, one of them may fail. Give all nodes the same. A node with a larger number
            raises that of what is stored. By default, it is what the URL says, or 1.

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
        replicas: int | None = None,
    ) -> None:
        super().__init__()
        address = parse_nats_url(check_str("url", url))
        if ssl is not None and not address.tls:
            raise ConfigurationError("ssl is for a URL that begins with tls://")
        if not re.fullmatch("[A-Za-z0-9_-]+", check_str("prefix", prefix)):
            raise ConfigurationError(f"prefix must be letters, digits, '_' and '-', not {prefix!r}")
        if address.tls and ssl is None:
            ssl = ssl_module.create_default_context()
        max_pending = check_integer("max_pending", max_pending, 1, 1 << 40)
        if replicas is not None:
            if address.replicas is not None:
                raise ConfigurationError("replicas is given twice: in the URL and as an argument")
            replicas = check_replicas(check_integer("replicas", replicas, 1, 5))
        self._settings = NatsSettings(address, prefix, ssl, max_pending, replicas or address.replicas or 1)
        # The functions that take the envelopes of each pattern, by channel.
        self._receivers: dict[str, Callable[[bytes], None]] = {}

    def __repr__(self) -> str:
        return f"NatsBroker({str(self._settings.address)!r}, prefix={self._settings.prefix!r})"

    async def close(self) -> None:
        """Send what waits, for a second at most, and leave the other nodes. A second call does nothing."""
        try:
            await super().close()
        finally:
            self._receivers.clear()

    def _add_receiver(self, channel: str, receive: Callable[[bytes], None]) -> None:
        self._receivers[channel] = receive

    def _remove_receiver(self, channel: str) -> None:
        self._receivers.pop(channel, None)
        session = self._running()
        if session is not None:
            session.patterns.forget(channel)

    def _create_session(self, node: NodeInfo, events: BrokerEvents, wanted: set[str]) -> NatsSession:
        for channel in self._receivers.keys() - wanted:
            # They are of a loop that has closed without close().
            del self._receivers[channel]
        return NatsSession(self._settings, node, events, wanted, self._receivers)
