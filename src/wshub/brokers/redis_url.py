"""The URL of a Redis or Valkey engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from wshub.errors import ConfigurationError

__all__ = ["RedisAddress", "parse_redis_url"]

DEFAULT_PORT = 6379

_PLAIN = ("redis", "valkey")
_TLS = ("rediss", "valkeys")
_FORMS = "redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], rediss://... or unix:///PATH[?db=DATABASE]"


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
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}"


def parse_redis_url(url: str) -> RedisAddress:
    """Return the address that a URL names.

    Raises:
        ConfigurationError: the URL is none of an engine. The message leaves the URL out, because of its password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"the URL of the engine is not valid ({error}): use {_FORMS}") from None
    if parts.fragment:
        raise ConfigurationError("the URL of the engine has a '#': write %23 in a user name or a password")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    database = options.pop("db", "")
    if options:
        raise ConfigurationError(f"the URL of the engine has an unknown option {min(options)!r}: only 'db' is known")
    if parts.scheme == "unix":
        return _unix_address(parts, database)
    if parts.scheme not in (*_PLAIN, *_TLS):
        raise ConfigurationError(f"the URL of the engine begins with {parts.scheme!r}: use {_FORMS}")
    if not parts.hostname:
        raise ConfigurationError(f"the URL of the engine has no host: use {_FORMS}")
    username, password = _credentials(parts)
    return RedisAddress(
        host=unquote(parts.hostname),
        port=DEFAULT_PORT if port is None else port,
        username=username,
        password=password,
        database=_database(parts.path.strip("/") or database),
        tls=parts.scheme in _TLS,
    )


def _unix_address(parts: SplitResult, database: str) -> RedisAddress:
    if parts.hostname or not parts.path.strip("/"):
        raise ConfigurationError("the URL of a Unix socket has an absolute path: unix:///run/redis.sock")
    username, password = _credentials(parts)
    return RedisAddress(path=unquote(parts.path), username=username, password=password, database=_database(database))


def _credentials(parts: SplitResult) -> tuple[str, str]:
    return unquote(parts.username or ""), unquote(parts.password or "")


def _database(text: str) -> int:
    # str.isdigit() is true for digits of other scripts too.
    if text and not (text.isascii() and text.isdigit()):
        raise ConfigurationError("the database in the URL of the engine must be a number")
    return int(text or "0")
