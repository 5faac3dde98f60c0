"""The URL of NATS servers."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from wshub.errors import ConfigurationError

__all__ = ["NatsAddress", "NatsServer", "check_replicas", "parse_nats_url"]

DEFAULT_PORT = 4222

# With an even number, no more servers may fail than with one less.
_REPLICAS = (1, 3, 5)

_FORMS = "nats://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...] or tls://..."


@dataclass(frozen=True, slots=True)
class NatsServer:
    """Where one server listens."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class NatsAddress:
    """The servers of an engine, and how a client logs in. ``str()`` leaves the credentials out."""

    servers: tuple[NatsServer, ...]
    username: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    credentials: str = ""
    """The path of a file with a JWT and a seed."""
    tls: bool = False
    replicas: int | None = None
    """How many servers keep what is stored; None if the URL does not say."""

    def __str__(self) -> str:
        return f"{'tls' if self.tls else 'nats'}://{','.join(map(str, self.servers))}"


def parse_nats_url(url: str) -> NatsAddress:
    """Return the address that a URL names.

    The servers after the first may repeat the scheme. The user and the password of the first are those of all.

    Raises:
        ConfigurationError: the URL is none of NATS servers. The message leaves the URL out, because of its password.
    """
    if "#" in url:
        raise ConfigurationError("the URL of the engine has a '#': write %23 in a user name or a password")
    text, _, query = url.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    credentials = options.pop("credentials", "")
    replicas = _replicas(options.pop("replicas", None))
    if options:
        raise ConfigurationError(
            f"the URL of the engine has an unknown option {min(options)!r}: known are credentials, replicas"
        )
    scheme = text.partition("://")[0]
    if scheme not in ("nats", "tls"):
        raise ConfigurationError(f"the URL of the engine begins with {scheme!r}: use {_FORMS}")
    logins: list[tuple[str, str | None]] = []
    servers = tuple(_server(entry, scheme, logins) for entry in text.split(","))
    if len(set(logins)) > 1:
        raise ConfigurationError("the URL of the engine has several users: give the same one for all servers, or once")
    username, password = logins[0] if logins else ("", "")
    if credentials and username:
        raise ConfigurationError("the URL of the engine has both a user and a file of credentials: use one of them")
    is_token = password is None
    return NatsAddress(
        servers=servers,
        username="" if is_token else username,
        password=password or "",
        token=username if is_token else "",
        credentials=credentials,
        tls=scheme == "tls",
        replicas=replicas,
    )


def check_replicas(replicas: int) -> int:
    """Return a number of servers that may keep what is stored. Raises ``ConfigurationError`` for any other."""
    if replicas not in _REPLICAS:
        raise ConfigurationError(f"replicas must be 1, 3 or 5, not {replicas}")
    return replicas


def _replicas(text: str | None) -> int | None:
    if text is None:
        return None
    # str.isdigit() is true for digits of other scripts too.
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigurationError("replicas in the URL of the engine must be a number: 1, 3 or 5")
    return check_replicas(int(text))


def _server(entry: str, scheme: str, logins: list[tuple[str, str | None]]) -> NatsServer:
    """Return the server of one entry, and add its user to ``logins`` if it has one."""
    own_scheme, separator, rest = entry.strip().rpartition("://")
    if separator and own_scheme != scheme:
        raise ConfigurationError(
            f"the URL of the engine mixes {scheme}:// and {own_scheme}://: use one for all servers"
        )
    try:
        parts = urlsplit(f"nats://{rest}")
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"the URL of the engine is not valid ({error}): use {_FORMS}") from None
    if not parts.hostname:
        raise ConfigurationError(f"the URL of the engine has a server without a host: use {_FORMS}")
    if parts.path.strip("/"):
        raise ConfigurationError(f"the URL of the engine has a path {parts.path!r}: NATS has none")
    if parts.username is not None:
        password = parts.password
        logins.append((unquote(parts.username), None if password is None else unquote(password)))
    return NatsServer(unquote(parts.hostname), DEFAULT_PORT if port is None else port)
