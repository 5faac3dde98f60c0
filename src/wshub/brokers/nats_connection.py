"""One connection to a NATS server."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import ssl as ssl_module
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error

from wshub.brokers.nats_transport import CountingTransport
from wshub.brokers.nats_url import NatsAddress, NatsServer
from wshub.errors import ConfigurationError

__all__ = ["OPENING_SECONDS", "MessageSink", "NatsConnection", "NatsLogin"]

logger = logging.getLogger("wshub.broker")

Result = TypeVar("Result")

# Seconds in which a connection must be made, with TLS and the login.
OPENING_SECONDS = 5.0

# Seconds in which the tasks of nats-py must have ended.
CLOSING_SECONDS = 1.0

# Seconds between the pings of nats-py. The broker's own probes notice a dead connection much earlier.
PING_SECONDS = 1 << 20

# How a server refuses credentials, now or later.
_WRONG_CREDENTIALS = ("authorization violation", "authentication", "user disabled", "account disabled")


@dataclass(frozen=True, slots=True)
class NatsLogin:
    """How the connections of a node log in."""

    address: NatsAddress
    ssl: ssl_module.SSLContext | None
    client_name: str


class MessageSink(asyncio.Future[Msg]):
    """Takes the messages of subscriptions, each at once and in the order of arrival.

    nats-py hands each message of a subscription with a future to that future. With a callback it would have a task and
    a queue for each subscription, and drop messages if the queue is full.
    """

    def __init__(self, receive: Callable[[Msg], None]) -> None:
        super().__init__()
        self._receive = receive

    def set_result(self, message: Msg, /) -> None:
        """Take a message. The future is never done."""
        self._receive(message)


class NatsConnection:
    """A connection that ends once, and another one takes its place: nats-py does not connect again by itself.

    Args:
        lost: called once with the reason when an open connection has ended; never from within ``abort()``.
        refused: called with what the server has refused, such as a subscription.
    """

    def __init__(self, lost: Callable[[NatsConnection, str], None], refused: Callable[[str], None]) -> None:
        self._lost = lost
        self._refused = refused
        self._client = Client()
        self._transport = CountingTransport(False, self._transport_ended)
        self._unused_queue: asyncio.Queue[Msg] = asyncio.Queue()
        self._is_open = False
        self._is_opening = True
        self._ended = ""
        self._closing: asyncio.Task[None] | None = None

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait to be sent."""
        return self._client.pending_data_size + self._transport.pending_bytes

    @property
    def bytes_sent(self) -> int:
        return self._transport.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._transport.bytes_received

    @property
    def largest_message(self) -> int:
        """Bytes of the largest message that the server takes."""
        return self._client.max_payload

    @property
    def server_version(self) -> tuple[int, int]:
        """The version of the server: major and minor."""
        version = self._client.connected_server_version
        return version.major, version.minor

    @property
    def server_id(self) -> str:
        """The server's name for itself. It has another one after a restart."""
        return str(self._client._server_info.get("server_id", ""))

    @property
    def other_servers(self) -> list[NatsServer]:
        """The servers of the cluster that this server knows."""
        found = self._client.discovered_servers
        return [NatsServer(server.hostname, server.port or 0) for server in found if server.hostname]

    async def open(self, server: NatsServer, login: NatsLogin, fallback_host: str) -> None:
        """Connect and log in. The connection is of no use if this raises or is cancelled.

        Args:
            server: where to connect to.
            login: the credentials.
            fallback_host: the name for the certificate of a server of which only the number is known.

        Raises:
            ConfigurationError: the server does not accept the credentials.
            OSError: anything else, which may be different later. The message says what.
        """
        address = login.address
        self._transport = CountingTransport(address.tls, self._transport_ended)
        # The transport belongs to the client from here on: it finds one, and makes none.
        self._client._transport = self._transport
        options: dict[str, Any] = {}
        if address.username:
            options |= {"user": address.username, "password": address.password}
        if address.token:
            options["token"] = address.token
        if address.credentials:
            options["user_credentials"] = address.credentials
        if login.ssl is not None:
            options |= {"tls": login.ssl}
        try:
            await self._client.connect(
                f"{'tls' if address.tls else 'nats'}://{server}",
                name=login.client_name,
                error_cb=self._take_error,
                allow_reconnect=False,
                connect_timeout=int(OPENING_SECONDS),
                ping_interval=PING_SECONDS,
                # Nothing waits for a connection, and publish() does not wait for the socket.
                pending_size=0,
                flusher_queue_size=0,
                tls_hostname=fallback_host if is_number(server.host) else server.host,
                **options,
            )
            if not self._client.is_connected:
                # For nats-py, a server that says nothing more has accepted the login.
                raise ConnectionError("the engine has ended the connection")
        except BaseException as error:
            self._end(str(error) or type(error).__name__)
            if isinstance(error, ModuleNotFoundError):
                raise ConfigurationError(
                    f"a file of credentials needs: pip install nats-py[nkeys] ({error})"
                ) from error
            if isinstance(error, FileNotFoundError) and address.credentials:
                raise ConfigurationError(f"the file of credentials cannot be read: {error}") from error
            if isinstance(error, Error):
                text = str(error).removeprefix("nats: ").strip("' ")
                if text.lower().startswith(_WRONG_CREDENTIALS):
                    raise ConfigurationError(f"the engine does not accept the credentials in the URL: {text}") from None
                raise ConnectionError(text or type(error).__name__) from None
            raise
        finally:
            self._is_opening = False
        self._is_open = True

    async def _take_error(self, error: Exception) -> None:
        if self._is_opening:
            # Otherwise nats-py would try again by itself.
            raise error
        text = str(error)
        if "permissions violation" in text:
            self._refused(text.removeprefix("nats: "))

    # What it sends

    def publish(self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None) -> bool:
        """Send a message at the end of this iteration of the loop. Return False if the connection has ended."""
        try:
            run_at_once(self._client.publish(subject, payload, reply, headers))
        except Error:
            return False
        return True

    def subscribe(self, subject: str, sink: MessageSink) -> Subscription | None:
        """Subscribe to a subject. Return None if the connection has ended."""
        try:
            subscription = run_at_once(self._client.subscribe(subject, future=sink))
        except Error:
            return None
        # nats-py makes a queue for each, which takes most of its memory. With a future nothing goes into it.
        subscription._pending_queue = self._unused_queue
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription. Nothing of it arrives any more."""
        with contextlib.suppress(Error):
            run_at_once(subscription.unsubscribe())

    # The end

    def abort(self) -> None:
        """End the connection at once. Nothing is received any more, and ``lost`` is not called."""
        self._is_open = False
        self._end("closed")

    @property
    def is_closed(self) -> bool:
        """Whether the socket is closed, and the tasks have ended."""
        return self._closing is None or self._closing.done()

    async def wait_closed(self) -> None:
        """Return when the socket is closed. Call it after ``abort()``."""
        if self._closing is not None:
            await asyncio.wait([self._closing], timeout=CLOSING_SECONDS)

    def _transport_ended(self, reason: str) -> None:
        if not self._is_opening:
            error = self._client.last_error
            self._end(reason or (str(error) if error is not None else "the engine has ended the connection"))

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = reason or "unknown"
        self._transport.abort()
        self._closing = asyncio.get_running_loop().create_task(self._close())
        if self._is_open:
            self._is_open = False
            self._lost(self, self._ended)

    async def _close(self) -> None:
        try:
            await self._client.close()
        except Exception as error:
            logger.debug("a connection to the engine has ended with an error: %r", error)


def is_number(host: str) -> bool:
    """Return whether a host is a numeric address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def run_at_once(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} has waited")
