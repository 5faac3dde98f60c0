"""The broker that a URL or the environment names."""

from __future__ import annotations

import os

from wshub.brokers.interface import Broker
from wshub.brokers.redis_url import REDIS_SCHEMES
from wshub.brokers.workers_directory import DIRECTORY_VARIABLE
from wshub.errors import ConfigurationError

__all__ = ["NO_BROKER", "broker_from_url", "broker_url_of_environment"]

NO_BROKER = "none"
"""Stands for no broker, whatever the environment says."""

NATS_SCHEMES = ("nats", "tls")


def broker_from_url(url: str) -> Broker | None:
    """Return the broker that a URL names.

    The URL begins with ``redis://``, ``redis+sentinel://``, ``redis+cluster://``, ``nats://`` or ``workers:``, or it is
    ``none``.

    Raises:
        ConfigurationError: the URL names none, or a package that the broker needs is not installed.
    """
    scheme, colon, rest = url.partition(":")
    if url == NO_BROKER:
        return None
    if colon and scheme in REDIS_SCHEMES:
        try:
            from wshub.brokers.redis import RedisBroker
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"a broker at Redis needs: pip install wshub[redis] ({error})") from error
        return RedisBroker(url)
    if colon and scheme in NATS_SCHEMES:
        try:
            from wshub.brokers.nats import NatsBroker
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"a broker at NATS needs: pip install wshub[nats] ({error})") from error
        return NatsBroker(url)
    if colon and scheme == "workers":
        from wshub.brokers.workers import WorkersBroker

        return WorkersBroker(rest)
    # The URL may have a password, so the message has its beginning only.
    raise ConfigurationError(
        f"a broker is named by redis://HOST, nats://HOST, workers:DIRECTORY or none, not by {scheme!r}"
    )


def broker_url_of_environment() -> str | None:
    """Return ``WSHUB_BROKER``, or the URL for the workers of ``wshub serve``; None if there is neither."""
    url = os.environ.get("WSHUB_BROKER")
    if url:
        return url
    directory = os.environ.get(DIRECTORY_VARIABLE)
    return f"workers:{directory}" if directory else None
