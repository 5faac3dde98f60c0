"""One connection to a Redis or Valkey engine."""

from __future__ import annotations

import asyncio
import socket
import ssl as ssl_module
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from wshub.brokers.redis_commands import hello_command
from wshub.brokers.redis_reader import RedisReader
from wshub.brokers.redis_url import RedisAddress
from wshub.errors import BrokerError, BrokerUncertain, ConfigurationError
from wshub.links.byte_stream import ByteStream
from wshub.links.reactor_api import Reactor

__all__ = ["EngineKind", "RedisConnection"]

EngineKind: TypeAlias = Literal["primary", "sentinel", "cluster", "cluster primary"]
"""The kind of an engine. ``primary`` is also any node of a cluster; ``cluster`` is also a replica of one."""

# Seconds in which a transport must have closed its socket after abort().
CLOSING_SECONDS = 1.0

# How the refusals of HELLO begin that will be the same later.
_WRONG_CREDENTIALS = ("WRONGPASS", "NOAUTH", "NOPERM", "ERR AUTH", "ERR Client sent AUTH", "ERR invalid password")
_WITHOUT_RESP3 = ("ERR unknown command", "NOPROTO")


class RedisConnection:
    """A connection that speaks RESP3. It ends once, and another one takes its place.

    Args:
        reader: gets what arrives.
        lost: called once with the reason when an open connection has ended; never from within ``abort()``.
    """

    def __init__(self, reader: RedisReader, lost: Callable[[RedisConnection, str], None]) -> None:
        self.reader = reader
        self.unanswered_envelopes = 0
        """Envelopes whose replies were due when the connection ended. The engine may have taken them."""
        self.is_cluster = False
        """Whether the engine is a node of a cluster."""
        self._lost = lost
        self.stream = ByteStream(self._received, self._stream_lost)
        self._stream_ended = asyncio.Event()
        self._is_open = False
        self._ended = ""

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait to be sent."""
        return self.stream.pending_bytes

    @property
    def bytes_sent(self) -> int:
        return self.stream.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self.stream.bytes_received

    async def open(
        self,
        reactor: Reactor,
        address: RedisAddress,
        ssl: ssl_module.SSLContext | None,
        client_name: str,
        attempt: int = 0,
        kind: EngineKind = "primary",
    ) -> None:
        """Connect, log in and name the connection. The connection is of no use if this raises or is cancelled.

        Args:
            reactor: that carries the connection.
            address: where the engine listens.
            ssl: the context for TLS, or None.
            client_name: what the engine calls the connection.
            attempt: how often this was tried before. If the host has several addresses, it begins with another one.
            kind: what the engine must be.

        Raises:
            ConfigurationError: the engine does not accept the credentials, is too old, or is of another kind for good.
            OSError: anything else, which may be different later. The message says what.
        """
        try:
            connected = await connect_socket(address, attempt)
            hostname = address.host if ssl is not None else None
            await self.stream.open(reactor, connected, ssl=ssl, server_hostname=hostname)
            greeting = await self._ask(hello_command(address, client_name))
            self.is_cluster = check_greeting(greeting, kind)
            if self._ended:
                raise ConnectionError(self._ended)
        except BaseException as error:
            self._end(str(error))
            raise
        self._is_open = True

    async def _ask(self, command: bytes) -> Any:
        answer = asyncio.get_running_loop().create_future()

        def answered(reply: Any) -> None:
            if not answer.done():
                answer.set_result(reply)

        self.request(command, answered)
        return await answer

    def request(self, command: bytes, answered: Callable[[Any], None]) -> None:
        """Send a command. Its reply goes to ``answered``: an error, or BrokerUncertain if none comes, is a value too.

        Raises:
            MemoryError: the command was not sent, and has no reply.
        """
        self.reader.expect(answered)
        self.stream.write(command)

    def write(self, command: bytes) -> None:
        """Send a command that is answered by pushes."""
        self.stream.write(command)

    async def drain(self, seconds: float) -> None:
        """Return when the engine has answered all commands, or after some seconds."""
        if self.reader.replies_due:
            try:
                async with asyncio.timeout(seconds):
                    await self._ask(b"*1\r\n$4\r\nPING\r\n")
            except TimeoutError:
                pass

    def abort(self) -> None:
        """End the connection at once. Nothing is received any more, and ``lost`` is not called."""
        self._is_open = False
        self._end("closed")

    @property
    def is_closed(self) -> bool:
        """Whether the socket is closed."""
        return self._stream_ended.is_set()

    async def wait_closed(self) -> None:
        """Return when the socket is closed. Call it after ``abort()``."""
        try:
            async with asyncio.timeout(CLOSING_SECONDS):
                await self._stream_ended.wait()
        except TimeoutError:
            pass

    def _received(self, data: bytes) -> None:
        try:
            self.reader.feed(data)
        except BrokerError as error:
            self._end(f"protocol error: {error}")
        except MemoryError:
            # A reply may claim to have more items than there is memory for.
            self._end("out of memory")

    def _stream_lost(self, error: OSError | None) -> None:
        self._stream_ended.set()
        self._end(str(error) if error is not None else "the engine has ended the connection")

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = reason or "unknown"
        self.unanswered_envelopes = self.reader.end(
            BrokerUncertain(f"the connection to the engine has ended: {reason}")
        )
        self.stream.abort()
        if self._is_open:
            self._is_open = False
            self._lost(self, self._ended)


def check_greeting(reply: Any, kind: EngineKind) -> bool:
    """Take the reply to HELLO. Return whether the engine is a node of a cluster.

    Raises:
        ConfigurationError: the engine does not accept the credentials, is too old, or is of another kind for good.
        OSError: it refuses for another reason, or is of no use now.
    """
    if isinstance(reply, BrokerUncertain):
        raise ConnectionError(str(reply))
    if isinstance(reply, BrokerError):
        text = str(reply)
        if text.startswith(_WRONG_CREDENTIALS):
            raise ConfigurationError(f"the engine does not accept the credentials in the URL: {text}")
        if text.startswith(_WITHOUT_RESP3):
            raise ConfigurationError(f"the engine does not know RESP3, use Redis 7.0 or Valkey: {text}")
        raise ConnectionError(f"the engine refuses: {text}")
    if not isinstance(reply, dict):
        raise ConnectionError("the answer to HELLO is not one of an engine")
    mode, role = reply.get(b"mode"), reply.get(b"role")
    if (mode == b"sentinel") != (kind == "sentinel"):
        raise ConfigurationError(
            "the URL names a Sentinel as an engine: use redis+sentinel://HOST/MASTER_NAME"
            if mode == b"sentinel"
            else "the URL names an engine as a Sentinel: use redis://HOST, or the port of a Sentinel"
        )
    is_cluster = mode == b"cluster"
    if kind in ("cluster", "cluster primary") and not is_cluster:
        raise ConfigurationError("the engine is no node of a cluster: use redis://HOST")
    if role not in (b"master", b"primary") and (kind == "cluster primary" or (kind == "primary" and not is_cluster)):
        # Nodes that are connected to the primary of a replica would not get the messages of this one.
        raise ConnectionError(f"the engine is no primary: its role is {role!r}")
    return is_cluster


async def connect_socket(address: RedisAddress, attempt: int) -> socket.socket:
    """Connect to the first address of the engine that accepts. Return a non-blocking socket.

    Raises:
        OSError: none has accepted.
    """
    if address.path:
        return await _connect(socket.AF_UNIX, 0, address.path)
    try:
        # A numeric address needs no thread.
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    first = attempt % max(len(found), 1)
    failure: OSError | None = None
    for family, _, protocol, _, target in [*found[first:], *found[:first]]:
        try:
            return await _connect(family, protocol, target)
        except OSError as error:
            failure = failure or error
    raise failure or OSError(f"the host {address.host!r} has no address")


async def _connect(family: socket.AddressFamily, protocol: int, target: Any) -> socket.socket:
    connecting = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        connecting.setblocking(False)
        if isinstance(target, tuple):
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connecting, target)
    except BaseException:
        connecting.close()
        raise
    return connecting
