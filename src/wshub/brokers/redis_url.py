"""The URL of one Redis or Valkey engine, of Sentinels, or of a cluster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from wshub.errors import ConfigurationError

__all__ = ["REDIS_SCHEMES", "ClusterAddress", "EngineAddress", "RedisAddress", "SentinelAddress", "parse_redis_url"]

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379

DEFAULT_PARTITIONS = 128
MAX_PARTITIONS = 4096

_PLAIN = ("redis", "valkey")
_TLS = ("rediss", "valkeys")
_SENTINEL = "+sentinel"
_CLUSTER = "+cluster"

REDIS_SCHEMES = ("unix", *(scheme + suffix for scheme in _PLAIN + _TLS for suffix in ("", _SENTINEL, _CLUSTER)))
"""How the URL of an engine begins, up to the colon."""

_FORMS = "redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], rediss://... or unix:///PATH[?db=DATABASE]"
_SENTINEL_FORM = "redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST...]/MASTER_NAME[/DATABASE]"
_CLUSTER_FORM = "redis+cluster://[USER:PASSWORD@]HOST[:PORT][,HOST...][?partitions=NUMBER]"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where an engine listens, and how a client logs in. ``str()`` leaves the credentials out."""

    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    """The path of a Unix socket; empty for TCP."""
    username: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    tls: bool = False

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        return f"{'rediss' if self.tls else 'redis'}://{self.place}"

    @property
    def place(self) -> str:
        """The host and the port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def at(self, host: str, port: int) -> RedisAddress:
        """Return the address of another engine with the same credentials."""
        return replace(self, host=host, port=port, path="")


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """Where Sentinels listen, and how a client logs in at the primary that they name."""

    sentinels: tuple[RedisAddress, ...]
    name: str
    """The name of the primary among the Sentinels."""
    primary: RedisAddress
    """The credentials for the primary. Its host and its port are those that the Sentinels tell."""

    @property
    def database(self) -> int:
        return self.primary.database

    @property
    def tls(self) -> bool:
        return self.primary.tls

    def __str__(self) -> str:
        return f"{_scheme(self.tls)}{_SENTINEL}://{_places(self.sentinels)}/{self.name}"


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """Where some nodes of a cluster listen, and how a client logs in at each node."""

    seeds: tuple[RedisAddress, ...]
    partitions: int = DEFAULT_PARTITIONS
    """The number of parts into which channels are put. It is the same for all nodes of a hub."""

    @property
    def database(self) -> int:
        return 0

    @property
    def tls(self) -> bool:
        return self.seeds[0].tls

    def __str__(self) -> str:
        return f"{_scheme(self.tls)}{_CLUSTER}://{_places(self.seeds)}"


EngineAddress: TypeAlias = RedisAddress | SentinelAddress | ClusterAddress


def parse_redis_url(url: str) -> EngineAddress:
    """Return the address that a URL names.

    Raises:
        ConfigurationError: the URL is none of an engine. The message leaves the URL out, because of its password.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"the URL of the engine is not valid ({error}): use {_FORMS}") from None
    if parts.fragment:
        raise ConfigurationError("the URL of the engine has a '#': write %23 in a user name or a password")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    scheme, plus, suffix = parts.scheme.partition("+")
    if parts.scheme == "unix":
        return _unix_address(parts, options)
    if parts.scheme not in REDIS_SCHEMES:
        raise ConfigurationError(
            f"the URL of the engine begins with {parts.scheme!r}: use {_FORMS}, {_SENTINEL_FORM} or {_CLUSTER_FORM}"
        )
    tls = scheme in _TLS
    if plus + suffix == _SENTINEL:
        return _sentinel_address(parts, options, tls)
    if plus + suffix == _CLUSTER:
        return _cluster_address(parts, options, tls)
    database = options.pop("db", "")
    _check_options(options, "db")
    addresses = _addresses(parts, DEFAULT_PORT, _FORMS, tls)
    if len(addresses) > 1:
        raise ConfigurationError(
            f"the URL of one engine has one host: use {_FORMS}, {_SENTINEL_FORM} or {_CLUSTER_FORM}"
        )
    return replace(addresses[0], database=_database(parts.path.strip("/") or database))


def _unix_address(parts: SplitResult, options: dict[str, str]) -> RedisAddress:
    database = options.pop("db", "")
    _check_options(options, "db")
    if parts.hostname or not parts.path.strip("/"):
        raise ConfigurationError("the URL of a Unix socket has an absolute path: unix:///run/redis.sock")
    username, password = _credentials(parts)
    return RedisAddress(path=unquote(parts.path), username=username, password=password, database=_database(database))


def _sentinel_address(parts: SplitResult, options: dict[str, str], tls: bool) -> SentinelAddress:
    """Return the address of Sentinels. Their own credentials are options of the URL: most Sentinels have none."""
    username, password = options.pop("sentinel_username", ""), options.pop("sentinel_password", "")
    _check_options(options, "sentinel_username", "sentinel_password")
    name, _, database = parts.path.strip("/").partition("/")
    if not name:
        raise ConfigurationError(f"the URL of Sentinels has no name of a master: use {_SENTINEL_FORM}")
    found = _addresses(parts, DEFAULT_SENTINEL_PORT, _SENTINEL_FORM, tls)
    return SentinelAddress(
        tuple(replace(address, username=username, password=password) for address in found),
        unquote(name),
        replace(found[0], host="", port=0, database=_database(database)),
    )


def _cluster_address(parts: SplitResult, options: dict[str, str], tls: bool) -> ClusterAddress:
    partitions = _number(options.pop("partitions", str(DEFAULT_PARTITIONS)), "number of partitions")
    _check_options(options, "partitions")
    if not 1 <= partitions <= MAX_PARTITIONS:
        raise ConfigurationError(f"a cluster has 1 to {MAX_PARTITIONS} partitions, not {partitions}")
    if parts.path.strip("/"):
        raise ConfigurationError(f"a cluster has no databases: use {_CLUSTER_FORM}")
    return ClusterAddress(_addresses(parts, DEFAULT_PORT, _CLUSTER_FORM, tls), partitions)


def _addresses(parts: SplitResult, default_port: int, form: str, tls: bool) -> tuple[RedisAddress, ...]:
    """Return the addresses of the hosts in a URL, which are separated by commas."""
    username, password = _credentials(parts)
    found = []
    for place in parts.netloc.rpartition("@")[2].split(","):
        try:
            host = urlsplit(f"//{place}")
            name, port = host.hostname, host.port
        except ValueError as error:
            raise ConfigurationError(f"the URL of the engine is not valid ({error}): use {form}") from None
        if not name:
            raise ConfigurationError(f"the URL of the engine has no host: use {form}")
        port = default_port if port is None else port
        found.append(RedisAddress(host=unquote(name), port=port, username=username, password=password, tls=tls))
    return tuple(found)


def _check_options(options: Iterable[str], *known: str) -> None:
    unknown = min(options, default=None)
    if unknown is not None:
        raise ConfigurationError(
            f"the URL of the engine has an unknown option {unknown!r}: known are {', '.join(known)}"
        )


def _credentials(parts: SplitResult) -> tuple[str, str]:
    return unquote(parts.username or ""), unquote(parts.password or "")


def _database(text: str) -> int:
    return _number(text or "0", "database")


def _number(text: str, what: str) -> int:
    # str.isdigit() is true for digits of other scripts too.
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigurationError(f"the {what} in the URL of the engine must be a number")
    return int(text)


def _scheme(tls: bool) -> str:
    return "rediss" if tls else "redis"


def _places(addresses: Iterable[RedisAddress]) -> str:
    return ",".join(address.place for address in addresses)
