"""Bounds how many TLS handshakes the clients of an address may begin."""

from __future__ import annotations

from typing import Any

from wshub.core.admission import AddressRates
from wshub.core.refusals import TOO_MANY_NEW_FROM_ADDRESS, count_refusal
from wshub.errors import HandshakeError

__all__ = ["TlsRates"]


class TlsRates:
    """The rate of new TLS connections of each address: ``max_connection_rate_per_address``, from accept(2) on.

    A TLS handshake costs more than a request, so a client that is beyond the rate gets none.

    Args:
        hub: whose settings, clock and counters are used. Its settings have the limit.
    """

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._rates = AddressRates(hub.config.max_connection_rate_per_address)

    def admits(self, source: Any, key: str | None) -> bool:
        """Return whether a new connection may go on. If not, count and log a refusal.

        Args:
            source: the connection, which knows its peer.
            key: the address that it counts for; None if it counts for none.
        """
        if key is None or self._rates.take(key, self._hub.now()):
            return True
        self._hub._limit_log.reached("max_connection_rate_per_address")
        # Without TLS yet, the client cannot be answered.
        count_refusal(self._hub, HandshakeError(*TOO_MANY_NEW_FROM_ADDRESS), source=source)
        return False

    def forget(self) -> None:
        """Forget the addresses whose rates allow everything again."""
        self._rates.forget(self._hub.now())
