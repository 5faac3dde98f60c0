# cython: language_level=3
"""How an application receives: the messages that wait for it, and the tasks that wait for a message.

handle_message() in receiving.pyx fills the inbox. A connection with a full inbox is not read until half of it is taken.
"""

from libc.math cimport INFINITY, NAN

from wshub.core.closing cimport closed_error
from wshub.core.connection_state cimport (
    INBOX_FULL,
    INBOX_KIBIBYTES,
    INBOX_LIMIT,
    IS_CLOSED,
    IS_CLOSING,
    inbox_charge,
)
from wshub.protocol.message cimport bytes_of, text_of

import asyncio

from wshub.errors import ConnectionClosed, ConnectionLost, MisuseError


cdef object seconds_from(object timeout):
    """Convert a timeout to seconds, or to None for no timeout. Raises MisuseError for anything else."""
    cdef double seconds = NAN
    if not isinstance(timeout, bool):
        try:
            seconds = timeout
        except (TypeError, OverflowError):
            pass
    if not seconds >= 0:
        raise MisuseError(
            f"receive(): timeout must be None or a number of seconds that is not negative, not {timeout!r}"
        )
    return seconds if seconds < INFINITY else None


cdef class InboxConnection(ReceivingConnection):
    """The methods of a :class:`wshub.Connection` that receive."""

    async def receive(self, timeout=None):
        """Wait for the next message and return it. No message is lost if you cancel the wait.

        Args:
            timeout: the maximum number of seconds to wait. None waits forever. 0 does not wait.

        Raises:
            TimeoutError: no message arrived in time.
            ConnectionClosed: the connection has ended. It is ConnectionLost if the end was not an ordinary one, or came
                before the opening.
            MisuseError: messages go to ``on_message``, another task is in ``receive`` already, or ``timeout`` is
                not a number of seconds.
        """
        if timeout is None:
            return await self._receive()
        async with asyncio.timeout(seconds_from(timeout)):
            return await self._receive()

    async def receive_text(self, timeout=None):
        """Wait for the next message, and return its text as a str.

        Raises:
            UnexpectedMessageError: the message is binary. If a handler does not catch the error, the hub closes the
                connection with 1003.
            TimeoutError, ConnectionClosed, MisuseError: as ``receive``.
        """
        return text_of(await self.receive(timeout))

    async def receive_bytes(self, timeout=None):
        """Wait for the next message, and return its payload as bytes.

        Raises:
            UnexpectedMessageError: the message is text. If a handler does not catch the error, the hub closes the
                connection with 1003.
            TimeoutError, ConnectionClosed, MisuseError: as ``receive``.
        """
        return bytes_of(await self.receive(timeout))

    async def receive_json(self, timeout=None):
        """Wait for the next message, and return the value of its JSON text.

        Raises:
            UnexpectedMessageError: the message is binary, or its text is no JSON. If a handler does not catch the
                error, the hub closes the connection with 1003 or 1007.
            TimeoutError, ConnectionClosed, MisuseError: as ``receive``.
        """
        return (await self.receive(timeout)).json()

    def iter_json(self):
        """Return an iterator for ``async for`` that gives the value of each message, which is JSON text::

            async for value in connection.iter_json():
                connection.send_json({"received": value})

        It ends and raises as ``async for message in connection`` does, and as ``receive_json`` for a message that is
        no JSON.
        """
        return JsonIterator(self)

    async def _receive(self):
        if self.handlers.on_message is not None:
            raise MisuseError("receive(): the messages of this connection go to its on_message handler")
        if not self.receiving:
            self.receiving = True
            if self.status != IS_CLOSED and not self.hub.loop.is_closed():
                # Unread pings may call handlers. The loop calls them, not this task.
                self.hub.loop.call_soon(self._unblock, 0)
        while not self.inbox:
            if self.status >= IS_CLOSING and (self.input_ended or self.status == IS_CLOSED):
                raise closed_error(self)
            if self.waiter is not None:
                raise MisuseError(f"receive(): {self.waiter[1]} is receiving from this connection already")
            future = self.hub.loop.create_future()
            self.waiter = (future, asyncio.current_task())
            try:
                await future
            except RuntimeError:
                if not self.hub.loop.is_closed():
                    raise
                # The loop of the connection has closed, and this task runs on another one.
                raise closed_error(self) from None
            finally:
                self.waiter = None
        message = self.inbox.popleft()
        self.inbox_kibibytes -= inbox_charge(message)
        if not self.blocks & INBOX_FULL or self.status == IS_CLOSED:
            return message
        if len(self.inbox) <= INBOX_LIMIT // 2 and self.inbox_kibibytes <= INBOX_KIBIBYTES // 2:
            self.hub.loop.call_soon(self._unblock, INBOX_FULL)
        return message

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            return await self._receive()
        except ConnectionLost:
            raise
        except ConnectionClosed:
            raise StopAsyncIteration from None


cdef class JsonIterator:
    """The values of the messages of a connection, for ``async for``."""

    cdef InboxConnection connection

    def __init__(self, InboxConnection connection not None):
        self.connection = connection

    def __aiter__(self):
        return self

    async def __anext__(self):
        return (await self.connection.__anext__()).json()
