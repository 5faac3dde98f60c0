# cython: language_level=3
"""A link over the ``receive`` and ``send`` of an ASGI server, for connections whose socket the server keeps.

ASGI passes whole messages, and a link carries bytes. So the receiver gets each message in a frame, and all rules and
limits of frames apply to it. ASGI has no messages for pings. Handlers are called from the loop, never
from within a task, so the loop passes on what the tasks here receive.
"""

from libc.stdint cimport int64_t, uint8_t

from wshub.links.link cimport Link, queue_is_empty
from wshub.protocol.frame_buffer cimport (
    FrameBuffer,
    frame_payload,
    frame_release,
    frame_wire_length,
)
from wshub.protocol.opcodes cimport (
    BINARY_OPCODE,
    CLOSE_OPCODE,
    FIN_BIT,
    MASK_BIT,
    TEXT_OPCODE,
)

import asyncio
import logging
from contextvars import copy_context

from wshub.links.eager_task import start_eager_task
from wshub.protocol.close_code import (
    CloseCode,
    decode_close_payload,
    encode_close_payload,
    is_valid_on_wire,
)
from wshub.protocol.writer import encode_header

logger = logging.getLogger("wshub.server")

cdef enum:
    # Added to a close code, this gives one for private use (RFC 6455 section 7.4.2): 4011 for 1011.
    PRIVATE_CODES = 3000

# A client's frame is masked. This masking key leaves the payload unchanged.
cdef bytes NO_MASK = b"\0\0\0\0"


cdef class AsgiLink(Link):
    """Carries a connection that an ASGI application has accepted, once ``start()`` is called.

    A message that ``send`` was given counts as delivered. A call of ``receive`` is always pending, unless reading is
    paused: only then do some servers report that the client has left.

    Most servers end the connection as soon as the application returns. So the messages and the close of a task are sent
    before the task goes on, in an eagerly started task. The sending task waits for that task if the server is busy.
    """

    cdef object receive_message  # the server's receive()
    cdef object send_message     # the server's send()
    cdef object client           # the peer's address as the scope has it, or None
    cdef object loop
    cdef object receiving        # the task that receives, once started
    cdef object sending          # the task that sends, once started
    cdef object context          # the context of the sending task
    cdef object suspended        # the task of send_at_once(), for which the sending task waits, or None
    cdef object work             # Future that the sending task waits for, or None while it is busy
    cdef object resumed          # Future that the receiving task waits for while reading is paused, or None
    cdef int64_t in_hand         # bytes of the message that the server is taking
    cdef bint private_codes      # the server refuses the codes that RFC 6455 defines, except 1000
    cdef bint sends_at_once      # the task of send_at_once() makes its first step
    cdef bint paused
    cdef bint disconnected       # the server has reported the end: it takes nothing more

    def __init__(self, receive, send, client, *, bint private_codes=False):
        self.private_codes = private_codes
        self.receive_message = receive
        self.send_message = send
        self.client = tuple(client[:2]) if client is not None else None
        self.loop = asyncio.get_running_loop()
        self.without_pings = True

    def start(self):
        """Start to receive and send, in tasks of its own."""
        if not self.closed:
            self.receiving = self.loop.create_task(self._receive_all(), name="wshub ASGI receive")
            self.context = copy_context()
            self.sending = self.loop.create_task(self._send_all(), name="wshub ASGI send", context=self.context)

    def end(self):
        """End the link: the server ends the connection."""
        self.abort(False)

    def leave_close(self, int code, reason):
        """Leave the close message, with that code and reason, to the framework. Send and receive nothing more."""
        self.stop_receiving()
        self._close_sent(code, reason)

    # The methods of a link

    cdef int write(self, FrameBuffer *frame) noexcept:
        if self.closed or self.finishing or self.disconnected:
            return 0
        if self.push(frame) < 0:
            return -1
        if self.blocked:
            self.mark_blocked()
        self.wake_sender()
        if frame.opcode == CLOSE_OPCODE:
            self.send_from_task()
        return 0

    cdef void send_from_task(self) noexcept:
        # Another task can send only while the sending task waits for work.
        if self.work is None or self.suspended is not None or self.sends_at_once or self.closed:
            return
        try:
            if asyncio.current_task() is not None:
                self.send_at_once()
        except BaseException as error:
            logger.debug("the ASGI server has failed to send", exc_info=error)
            self.lose_later()

    cdef void pause(self) noexcept:
        self.paused = True

    cdef void resume(self) noexcept:
        self.paused = False
        if self.resumed is not None and not self.resumed.done():
            self.resumed.set_result(None)

    cdef void abort(self, bint after_flush) noexcept:
        if self.closed:
            return
        if after_flush:
            self.finishing = True
            self.resume()
            self.wake_sender()
        else:
            self.lose_later()

    cdef bint should_notify_drained(self) noexcept:
        # The server may still be taking the message in hand.
        cdef bint has_left = self.in_hand == 0 or self.notify_at <= self.bytes_written - self.in_hand
        return has_left and Link.should_notify_drained(self)

    cdef int64_t bytes_unacked(self) noexcept:
        return self.in_hand

    cdef object peer_name(self):
        return self.client

    cdef void wake_sender(self) noexcept:
        if self.work is not None and not self.work.done():
            self.work.set_result(None)

    cdef void lose_later(self) noexcept:
        """End the link in a later loop iteration."""
        try:
            self.loop.call_soon(self._lose)
        except RuntimeError:
            # The loop is closed: nothing of this link will ever run again.
            pass

    # The tasks

    async def _receive_all(self):
        try:
            while not self.closed and not self.disconnected:
                message = await self.receive_message()
                passed_on = self.loop.create_future()
                self.loop.call_soon(self._arrived, message, passed_on)
                await passed_on
                while self.paused and not self.closed:
                    self.resumed = self.loop.create_future()
                    await self.resumed
        except Exception:
            logger.debug("the ASGI server has failed to receive", exc_info=True)
            self.lose_later()

    async def _send_all(self):
        try:
            while not self.closed:
                if self.suspended is not None:
                    suspended, self.suspended = self.suspended, None
                    await suspended
                await self._send_queued()
                self.blocked = False
                if self.should_notify_drained():
                    self.loop.call_soon(self._drained)
                if self.finishing:
                    self.lose_later()
                    return
                self.work = self.loop.create_future()
                await self.work
                self.work = None
        except Exception:
            # By the ASGI specification, send() raises OSError once the client has left. Some servers raise other
            # exceptions.
            logger.debug("the ASGI server has failed to send", exc_info=True)
            self.lose_later()

    async def _send_queued(self):
        cdef FrameBuffer *frame
        while not (self.closed or self.disconnected or queue_is_empty(&self.queue)):
            self.blocked = True
            frame = self.pop_delivered()
            self.in_hand = frame_wire_length(frame)
            self.bytes_written += self.in_hand
            try:
                message = message_of(frame)
            finally:
                self.counters.bytes_sent += frame.length
                frame_release(frame)
            if message is not None and message["type"] == "websocket.close":
                await self._send_close(message)
            elif message is not None:
                await self.send_message(message)
            self.in_hand = 0
            if self.should_notify_drained():
                self.loop.call_soon(self._drained)

    cdef object send_at_once(self):
        """Send the queue before the current task goes on, in an eagerly started task of its own."""
        self.sends_at_once = True
        try:
            task = start_eager_task(self.loop, self._send_queued(), self.context, "wshub ASGI send")
        finally:
            self.sends_at_once = False
        if not task.done():
            # The sending task waits for this task.
            self.suspended = task
            return
        self.blocked = False
        task.result()

    async def _send_close(self, message):
        """Send the close message. If that fails once the application has returned, the connection ended as intended."""
        code = message["code"]
        self.stop_receiving()
        self.loop.call_soon(self._close_sent, code, message["reason"])
        if self.private_codes and 1001 <= code < PRIVATE_CODES:
            message = {**message, "code": code + PRIVATE_CODES}
        await self.send_message(message)

    cdef object stop_receiving(self):
        """End the pending call of receive(): granian does not close the connection during such a call."""
        if self.receiving is not None:
            self.receiving.cancel()

    # Calls of the loop for the tasks

    def _arrived(self, message, passed_on):
        cdef str kind = str.__str__(message["type"])
        try:
            if kind == "websocket.receive":
                text = message.get("text")
                if text is not None:
                    # The receiver refuses a lone surrogate in this form as invalid UTF-8.
                    self.feed(TEXT_OPCODE, str.encode(text, "utf-8", "surrogatepass"))
                else:
                    self.feed(BINARY_OPCODE, bytes(message["bytes"]))
            elif kind == "websocket.disconnect":
                self.disconnected = True
                self.drop_queue()
                self.closed_by_peer(message.get("code", CloseCode.NO_STATUS), message.get("reason") or "")
        except Exception:
            logger.exception("the ASGI server has sent an invalid message: %r", kind)
            self._lose()
        finally:
            if not passed_on.done():
                passed_on.set_result(None)

    def _close_sent(self, int code, reason):
        # The server does not pass on the peer's answer, which repeats code and reason.
        self.disconnected = True
        self.closed_by_peer(code, reason)

    def _drained(self):
        self.notify_drained()

    def _lose(self):
        for task in (self.receiving, self.sending):
            if task is not None:
                task.cancel()
        self.receiving = self.sending = None
        if self.suspended is not None:
            self.suspended.cancel()
            self.suspended = None
        self.notify_lost(0)

    cdef object closed_by_peer(self, int code, object reason):
        """Give the receiver the close frame of the peer. Code 1005 is a close without a code."""
        if code == CloseCode.NO_STATUS:
            self.feed(CLOSE_OPCODE, b"")
        elif is_valid_on_wire(code):
            self.feed(CLOSE_OPCODE, encode_close_payload(code, reason))
        elif not self.closed:
            self.receiver.eof_received()

    cdef object feed(self, uint8_t opcode, bytes payload):
        """Give the receiver a frame."""
        cdef bytes header
        if self.closed or self.finishing or self.receiver is None:
            return
        header = encode_header(FIN_BIT | opcode, MASK_BIT, len(payload)) + NO_MASK
        self.counters.bytes_received += len(payload)
        self.receiver.data_received(<const uint8_t *><const char *>header, len(header))
        if payload and not self.closed and self.receiver is not None:
            self.receiver.data_received(<const uint8_t *><const char *>payload, len(payload))


cdef object message_of(FrameBuffer *frame):
    """Return the ASGI message for a frame, or None if there is none, as for a ping."""
    cdef bytes payload
    if frame.opcode not in (TEXT_OPCODE, BINARY_OPCODE, CLOSE_OPCODE):
        return None
    payload = frame_payload(frame)[:frame.length]
    if frame.opcode == TEXT_OPCODE:
        return {"type": "websocket.send", "text": payload.decode()}
    if frame.opcode == BINARY_OPCODE:
        return {"type": "websocket.send", "bytes": payload}
    code, reason = decode_close_payload(payload)
    return {"type": "websocket.close", "code": 1000 if code == CloseCode.NO_STATUS else code, "reason": reason}
