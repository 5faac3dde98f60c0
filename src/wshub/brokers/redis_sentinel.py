"""Learns from Sentinels which engine is the primary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wshub.brokers.redis_asking import Asking
from wshub.brokers.redis_commands import pack_command
from wshub.brokers.redis_url import RedisAddress, SentinelAddress
from wshub.errors import BrokerError, ConfigurationError

__all__ = ["AddressRemap", "Sentinels", "remapped"]

AddressRemap = Callable[[str, int], tuple[str, int]]
"""Returns the host and the port under which this machine reaches an engine, for those that a Sentinel or node tells."""

# Seconds that further Sentinels get to answer once one has, and that the first one gets.
FURTHER_SECONDS = 0.25
FIRST_SECONDS = 2.0


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """What one Sentinel says. Of two claims, the one of the later failover is right."""

    epoch: int
    host: str
    port: int


class Sentinels:
    """The Sentinels of one primary.

    All are asked at the same time. A Sentinel that is cut off from the others still names the old primary, so the
    claim of the latest failover counts.
    """

    def __init__(self, address: SentinelAddress, asking: Asking, remap: AddressRemap | None) -> None:
        self._address = address
        self._asking = asking
        self._remap = remap
        name = address.name.encode()
        # During a failover only the first command has the new address, and only the second one has the number.
        self._questions = (
            pack_command(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name),
            pack_command(b"SENTINEL", b"MASTER", name),
        )

    async def find_primary(self) -> RedisAddress:
        """Return the address of the primary.

        Raises:
            ConfigurationError: no Sentinel accepts the credentials, or none knows the name.
            OSError: no Sentinel answers.
        """
        tasks = [asyncio.ensure_future(self._ask(sentinel)) for sentinel in self._address.sentinels]
        claims: list[Claim] = []
        errors: list[Exception] = []
        try:
            waiting, seconds = set(tasks), FIRST_SECONDS
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting, timeout=seconds, return_when=asyncio.ALL_COMPLETED if claims else asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in done:
                    error = task.exception()
                    if error is None:
                        claims.append(task.result())
                    elif isinstance(error, Exception):
                        errors.append(error)
                if claims:
                    seconds = FURTHER_SECONDS
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if claims:
            newest = max(claims)
            host, port = remapped(self._remap, newest.host, newest.port)
            return self._address.primary.at(host, port)
        if len(errors) == len(tasks) and all(isinstance(error, ConfigurationError) for error in errors):
            raise errors[0]
        raise ConnectionError(f"no Sentinel has named the primary: {errors[0] if errors else 'none has answered'}")

    async def _ask(self, sentinel: RedisAddress) -> Claim:
        place, details = await self._asking.ask(sentinel, "sentinel", self._questions)
        if isinstance(place, BrokerError):
            raise ConnectionError(f"the Sentinel at {sentinel} refuses: {place}")
        if place is None:
            raise ConfigurationError(f"the Sentinel at {sentinel} knows no master named {self._address.name!r}")
        host, port = place
        return Claim(epoch_of(details), host.decode(), int(port))


def epoch_of(details: Any) -> int:
    """Return the number of the last failover from the answer to SENTINEL MASTER."""
    if isinstance(details, list):
        details = dict(zip(details[::2], details[1::2], strict=False))
    return int(details.get(b"config-epoch", 0)) if isinstance(details, dict) else 0


def remapped(remap: AddressRemap | None, host: str, port: int) -> tuple[str, int]:
    """Return the address under which this machine reaches an engine."""
    return (host, port) if remap is None else remap(host, port)
