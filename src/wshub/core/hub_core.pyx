# cython: language_level=3
"""The native part of a hub: fan-out, membership, and the sweep over all connections."""

from cpython.dict cimport PyDict_Next
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport SIZE_MAX, uint64_t
from libc.string cimport memset

from wshub.core.backlog cimport Backlog
from wshub.core.hub_state cimport (
    CLOSE_CONNECTION,
    CONTROL_FRAMES,
    HANDLER_TIME,
    HUB_KEYS,
    LATEST,
    MESSAGES,
    OCTETS,
    Delivery,
    HandlerTable,
    HubBase,
    Rate,
    Room,
    check_key,
    connection_id,
    policy_of,
    room_name,
)
from wshub.core.connection cimport Connection
from wshub.core.connection_core cimport IS_OPEN, queue_message
from wshub.core.shared_window cimport SharedWindow
from wshub.links.link cimport Ledger, Link, counts_of
from wshub.protocol.compression.deflate cimport LONGEST_DEFLATED, DeflatePool
from wshub.protocol.frame_buffer cimport RAW, FrameBuffer, Tally, frame_release
from wshub.protocol.message cimport (
    Message,
    frame_from_octets,
    labelled_frame_from_data,
)
from wshub.protocol.opcodes cimport PING_OPCODE

import asyncio
import logging
import time
from contextvars import ContextVar
from functools import partial
from inspect import iscoroutinefunction

from wshub.errors import HandshakeError, MisuseError
from wshub.core.admission import Admission
from wshub.core.config import HubConfig
from wshub.core.event_handler import EventHandler
from wshub.core.handler_checks import check_instance
from wshub.links.asyncio_reactor import AsyncioReactor
from wshub.links.reactors import create_reactor
from wshub.protocol.compression.negotiation import negotiate

logger = logging.getLogger("wshub.server")

# More than any rate, and in the range of all floating-point numbers.
cdef double UNBOUNDED = 1e30


cdef double seconds_or_never(object milliseconds):
    """A time in seconds, for 0 milliseconds one that never comes."""
    return milliseconds / 1000 if milliseconds else UNBOUNDED


cdef Rate rate_of(double per_second, double burst, double least) noexcept:
    """A rate, of which a connection saves up what it may do in `burst` seconds, and `least` at least; 0 is no bound."""
    cdef Rate rate
    rate.per_second = per_second if per_second else UNBOUNDED
    rate.at_most = max(per_second * burst, least) if per_second else UNBOUNDED
    return rate


def table_of(handler):
    """The HandlerTable of an EventHandler, or of a coroutine function that is the life of a connection."""
    if isinstance(handler, EventHandler):
        check_instance(handler)
        return HandlerTable(handler)
    if iscoroutinefunction(handler) or iscoroutinefunction(getattr(handler, "__call__", None)):
        return HandlerTable(EventHandler(on_open=handler), endpoint=True)
    if isinstance(handler, type) and issubclass(handler, EventHandler):
        raise MisuseError(f"a handler is an instance of an EventHandler: give {handler.__name__}(), not the class")
    raise MisuseError(
        "a handler is an EventHandler, or a coroutine function that takes the connection and has no yield, not "
        f"{handler!r}"
    )


cdef bint can_share(Connection connection, SharedWindow window) noexcept:
    """Whether what the peer negotiated lets it come in step with a window."""
    return (
        connection.keeps_window and connection.window_bits >= window.window_bits and connection.status == IS_OPEN
    )


def table_that_receives():
    """The HandlerTable of a connection whose application does nothing but call ``receive()``, sooner or later."""
    return HandlerTable(EventHandler(), receives=True)


cdef void count_members(dict members, SharedWindow window) noexcept:
    """Finds how many members could be in step with a window, and how many are."""
    cdef PyObject *key
    cdef PyObject *value
    cdef Py_ssize_t position = 0
    window.able = 0
    window.in_step = 0
    while PyDict_Next(members, &position, &key, &value):
        if can_share(<Connection>value, window):
            window.able += 1
            window.in_step += (<Connection>value).generation == window.generation


cdef int queue_shared(
    Connection connection, SharedWindow window, FrameBuffer *shared, FrameBuffer *frame, const Delivery *delivery
) noexcept:
    """Queues what the connection gets of a message to a room with a window; returns what queue() does."""
    if connection.status == IS_OPEN and connection.stands_alone(delivery):
        connection.fall_out_of_step(window)
    elif connection.generation == window.generation:
        return connection.queue(shared, delivery.policy)
    elif can_share(connection, window):
        if window.messages == 1:
            return connection.queue_compressed(shared, window.generation, delivery.policy)
        window.missed += 1
    return queue_message(connection, frame, delivery)


cdef class HubCore(HubBase):
    """Connections, rooms and what is sent to them. See :class:`wshub.Hub`."""

    def __cinit__(self, config=None, *arguments, clock=time.monotonic, **keywords):
        if config is None:
            config = HubConfig()
        if not isinstance(config, HubConfig):
            raise MisuseError(f"a hub is made with a HubConfig, not {config!r}")
        if not callable(clock):
            raise MisuseError(f"clock must be a function that returns seconds, not {clock!r}")
        self.config = config
        self.clock = clock
        self.handling = ContextVar("wshub.handling", default=None)
        self.last_key = HUB_KEYS
        self.room_configs = {}
        self.compression_threshold = SIZE_MAX
        if config.compression is not None:
            # An empty message has nothing to compress.
            self.compression_threshold = max(config.compression.threshold, 1)
        self.max_message_size = config.max_message_size
        self.max_send_buffer = config.max_send_buffer
        self.max_fragments = config.max_fragments
        self.policy = policy_of(config.slow_consumer)
        self.set_rates(config.rates)
        self.ping_interval = config.ping_interval_ms / 1000
        self.pong_timeout = config.pong_timeout_ms / 1000
        self.close_timeout = config.close_timeout_ms / 1000
        self.send_timeout = seconds_or_never(config.send_timeout_ms)
        self.ends_stalled = config.send_timeout_ms > 0
        self.idle_timeout = seconds_or_never(config.idle_timeout_ms)
        self.max_lifetime = seconds_or_never(config.max_lifetime_ms)
        self.counts_addresses = config.max_connections_per_address > 0
        self.begin_anew()

    cdef object begin_anew(self):
        """Begins a life of the hub: without a loop, connections and counts. Settings and ids go on."""
        self.loop = None
        self.reactor = None
        self.ledger = Ledger()
        self.backlog = Backlog(self.clock)
        self.connections = {}
        self.room_table = {}
        self.closes = {}
        self.refused = {}
        self.handler_tasks = {}
        self.keys = {}
        self.key_length = 0
        self.pool = DeflatePool(self.config.compression) if self.config.compression is not None else None
        self._admission = Admission(self.config, self.clock)
        self.swept_at = self.clock()
        self.rates_exceeded = 0
        self.had_no_room = False
        self.fullness_told = False
        self.farewell = None
        self.emptied = None
        self.closed = False

    cdef object set_rates(self, object config):
        """Takes the rates of a RateLimits: what may be done in a second, and saved up for it."""
        # What a sweep adds must not be lost before the next one.
        cdef double burst = max(config.burst_ms / 1000, config.sweep_period)
        self.rates[OCTETS] = rate_of(config.octets, burst, 0)
        self.rates[MESSAGES] = rate_of(config.messages, burst, 1)
        self.rates[CONTROL_FRAMES] = rate_of(config.control_frames, burst, 1)
        self.rates[HANDLER_TIME] = rate_of(config.handler_ms / 1000, burst, 0)
        self.times_handlers = config.handler_ms > 0
        self.limits_input = config.octets > 0 or config.messages > 0
        self.closes_at_rate = config.excess == "close"

    cdef object forget(self, object key, object address_key):
        self.connections.pop(key, None)
        if address_key is not None:
            self._admission.leave(address_key)
        if self.emptied is not None and not self.connections and not self.emptied.done():
            self.emptied.set_result(None)

    @property
    def _is_in_use(self):
        """Whether the hub has an event loop, and neither of them has closed."""
        return self.loop is not None and not self.closed and not self.loop.is_closed()

    def _now(self):
        """The time by the hub's clock, in seconds."""
        return self.clock()

    def _bind(self):
        """Takes the running loop for the hub's; returns its reactor.

        A hub that has closed, or whose loop has closed, begins anew.
        """
        loop = asyncio.get_running_loop()
        if self.loop is not None and (self.closed or self.loop.is_closed()):
            self._begin_anew()
        if self.loop is None:
            # First what may fail: a hub without a reactor belongs to no loop.
            self.reactor = create_reactor(loop, self.ledger, native=self.config.use_reactor, clock=self.clock)
            self.loop = loop
            self.thread_id = PyThread_get_thread_ident()
        elif self.loop is not loop:
            raise MisuseError(
                "the hub is in use on another event loop: call close() there first, or make a hub for each loop"
            )
        return self.reactor

    def _begin_anew(self):
        """Ends what the last loop has left behind, and forgets all of it but the settings."""
        cdef Connection connection
        for connection in list(self.connections.values()):
            connection.forsake()
        if self.reactor is not None and self.loop.is_closed():
            self.reactor.close()
        self.begin_anew()

    def _reactor_for(self, ssl):
        """The hub's reactor; for an SSLContext a new one, which whoever listens with it closes."""
        reactor = self._bind()
        if ssl is None:
            return reactor
        return AsyncioReactor(self.loop, self.ledger, ssl, self.config.handshake_timeout_ms / 1000)

    def _register(
        self, HandlerTable handlers, request, subprotocol=None, path_params=None, *, bint extensions=True, metadata=None
    ):
        """A connection whose handshake is not answered yet: it can join rooms and keep metadata.

        What is agreed on compression is in ``connection.compression``, for the answer to tell; without `extensions`
        that is nothing, since somebody else gives the answer.
        """
        cdef Connection connection
        self.last_id += 1
        connection = Connection(self, self.last_id, handlers, request, subprotocol)
        connection.path_params = path_params
        if metadata:
            connection.metadata.update(metadata)
        if extensions and self.pool is not None and request is not None:
            connection.negotiated(
                negotiate(self.pool.config, request.headers.get_all_raw(b"sec-websocket-extensions"))
            )
        if self.counts_addresses and request is not None:
            connection.address_key = self._admission.enter(request.remote_address)
        if self.connections is self.walked:
            self.connections = dict(self.connections)
        self.connections[connection.key] = connection
        return connection

    def _renounce_compression(self, Connection connection):
        """Drops what a registered connection has negotiated: the server that answers its handshake compresses."""
        connection.renounce_compression()

    def _fail(self, Connection connection, int code, str reason):
        """Fails an open connection (RFC 6455 section 7.1.7): the peer need not answer the close frame."""
        if connection.status == IS_OPEN:
            connection.fail(code, reason)

    def _abandon(self, Connection connection):
        """The handshake of a registered connection has come to nothing: no handler is called."""
        connection.abandon()

    def _can_adopt(self):
        """Whether the hub's reactor takes connected sockets."""
        if self.reactor is None:
            self._bind()
        return self.reactor.adopts

    def _adopt(self, Connection connection, int descriptor, bytes response, bytes rest):
        """Answers the handshake on a connected socket, which the hub's reactor owns from here on."""
        cdef Link link = None
        try:
            link = self.reactor.adopt(descriptor, connection)
            self._open(connection, link, response, rest)
        except BaseException:
            connection.abandon()
            if link is not None:
                link.abort(False)
            raise

    def _open(self, Connection connection, Link link not None, bytes response, bytes rest):
        """Answers the handshake on a link, whose connection is open from here on; ``rest`` came behind the request.

        Without a response, somebody else has answered.
        """
        cdef FrameBuffer *frame
        if self.closed or self.connections.get(connection.key) is not connection:
            # The hub has closed since the request was admitted, or the handshake has been given up.
            connection.abandon()
            raise HandshakeError(503, "The server is shutting down.")
        link.ledger = self.ledger
        if response:
            try:
                frame = frame_from_octets(<const char *>response, len(response), RAW)
            except MemoryError:
                connection.abandon()
                raise
            if link.write(frame) < 0:
                link.abort(False)
            frame_release(frame)
        connection.start(link)
        if rest:
            connection.data_received(<const unsigned char *><const char *>rest, len(rest))
        if self.farewell is not None:
            connection.go_away(self.farewell)

    cdef Connection named_by(self, object exclude):
        """The connection of this hub that an application names by itself or by its id, or None."""
        if exclude is None:
            return None
        if isinstance(exclude, Connection):
            return exclude if (<Connection>exclude).hub is self else None
        return self.connections.get(connection_id("exclude", "a Connection or the id of one, an int", exclude))

    cdef int fan_out(
        self, dict members, FrameBuffer *frame, Connection excluded, const Delivery *delivery, SharedWindow window,
        FrameBuffer *shared
    ) noexcept:
        """Queues the frame for every member.

        The event loop and the garbage collector may run code in the loop. It may remove members from the dict, which
        leaves the others in their places. To add one, a copy is made first: `walked` names the dict to be left alone.

        `shared` is the form for those members who are in step with `window`, or both are nothing. Every one of them but
        `excluded` is given it, or falls out of step, or is closed: what is compressed next refers to it.
        """
        cdef PyObject *key
        cdef PyObject *value
        cdef Py_ssize_t position = 0
        cdef int queued, count = 0
        cdef Connection connection
        cdef list full = None
        while PyDict_Next(members, &position, &key, &value):
            if value == <PyObject *>excluded:
                continue
            if shared != NULL:
                queued = queue_shared(<Connection>value, window, shared, frame, delivery)
            else:
                queued = queue_message(<Connection>value, frame, delivery)
            if queued > 0:
                count += 1
            elif queued < 0:
                try:
                    if full is None:
                        full = []
                    full.append(<Connection>value)
                except MemoryError:
                    (<Connection>value).out_of_memory()
        if full is not None:
            for connection in full:
                connection.overflow()
        self.ledger.bytes_fanned_out += <uint64_t>count * frame.length
        return count

    cdef FrameBuffer *shared_form(self, Room room, FrameBuffer *frame) noexcept:
        """What those members get who are in step with the room's window, or come in step: the caller owns it.

        Returns NULL where there are none, or no memory: the message then is one like any other.
        """
        cdef SharedWindow window = room.window
        cdef FrameBuffer *shared
        if window.counted_at != self.window_changes:
            count_members(room.members, window)
            window.counted_at = self.window_changes
        if not window.able or not 0 < frame.length <= LONGEST_DEFLATED:
            return NULL
        if window.is_due():
            self.restart(window)
        shared = window.compress(frame)
        if shared == NULL:
            self.restart(window)
        return shared

    cdef int send_to_room(self, Room room, FrameBuffer *frame, Connection excluded, const Delivery *delivery) noexcept:
        cdef FrameBuffer *shared = NULL
        cdef dict walked = room.walked
        cdef int count
        # Within a message to the room, which some members do not have yet, nothing may be compressed that refers to it.
        if room.window is not None and delivery.threshold != SIZE_MAX and walked is None:
            if excluded is not None:
                # Before the window restarts, when whoever is in step is not known any more.
                excluded.fall_out_of_step(room.window)
            shared = self.shared_form(room, frame)
        room.walked = room.members
        count = self.fan_out(room.walked, frame, excluded, delivery, room.window, shared)
        room.walked = walked
        frame_release(shared)
        return count

    cdef int send_to_all(self, FrameBuffer *frame, Connection excluded, const Delivery *delivery) noexcept:
        cdef dict walked = self.walked
        cdef int count
        self.walked = self.connections
        count = self.fan_out(self.walked, frame, excluded, delivery, None, NULL)
        self.walked = walked
        return count

    def broadcast(self, message, *, room=None, exclude=None, compress=None, slow_consumer=None, key=None):
        """Queues a message for every open connection, or every one in a room.

        The message is framed once, whatever the number of receivers, and compressed once for all who keep as much of
        a window. From another thread than the hub's this is handed over to the loop.

        Args:
            message: a str, bytes or another buffer, or a Message.
            room: the name of a room; None is everybody.
            exclude: a Connection, or the id of one, that does not get it.
            compress: as in ``Connection.send``.
            slow_consumer: as in ``Connection.send``; None is as the room is configured, or else the hub.
            key: as in ``Connection.send``; if none is given, all messages to a room have the same.

        Returns:
            For how many connections it was queued; from another thread, how many were there.

        Raises:
            TypeError, InvalidMessageError, MisuseError: as ``Connection.send``.
            TypeError: ``room`` is no str.
            MisuseError: ``exclude`` is neither a Connection nor an int, or it is a bool.
        """
        cdef FrameBuffer *frame
        cdef Delivery delivery
        cdef Room found = None
        cdef int count = 0
        cdef Connection excluded = self.named_by(exclude)
        cdef uint64_t number
        if room is not None:
            room = room_name(room)
        check_key(key)
        self.describe(&delivery, compress, slow_consumer, self.policy)
        if self.loop is None or self.closed:
            Message(message)
            return 0
        if PyThread_get_thread_ident() != self.thread_id and not self.loop.is_closed():
            later = partial(
                self.broadcast, Message(message), room=room, exclude=exclude, compress=compress,
                slow_consumer=slow_consumer, key=key
            )
            try:
                self.loop.call_soon_threadsafe(later)
            except RuntimeError:
                if not self.loop.is_closed():
                    raise
                # The loop has closed in this moment, and its connections have gone.
                return 0
            return len(self.connections) if room is None else self.room_size(room)
        if room is not None:
            found = self.room_table.get(room)
        if found is None:
            number = self.number_of(HUB_KEYS, key)
        else:
            if slow_consumer is None:
                self.describe(&delivery, compress, None, found.policy)
            if key is None and delivery.policy == LATEST:
                number = found.key
            else:
                number = self.number_of(found.key, key)
        frame = labelled_frame_from_data(
            message, number, found.tally if found is not None else NULL, delivery.policy != CLOSE_CONNECTION
        )
        if room is None:
            count = self.send_to_all(frame, excluded, &delivery)
        elif found is not None:
            count = self.send_to_room(found, frame, excluded, &delivery)
        frame_release(frame)
        return count

    def broadcast_except(self, message, exclude, *, compress=None, slow_consumer=None, key=None):
        """``broadcast`` to everybody but one."""
        return self.broadcast(message, exclude=exclude, compress=compress, slow_consumer=slow_consumer, key=key)

    def broadcast_to_room(self, room not None, message, *, compress=None, slow_consumer=None, key=None):
        """``broadcast`` to everybody in a room."""
        return self.broadcast(message, room=room, compress=compress, slow_consumer=slow_consumer, key=key)

    def broadcast_to_room_except(self, room not None, message, exclude, *, compress=None, slow_consumer=None, key=None):
        """``broadcast`` to everybody in a room but one."""
        return self.broadcast(
            message, room=room, exclude=exclude, compress=compress, slow_consumer=slow_consumer, key=key
        )

    def _configure_room(self, name, config):
        """Gives a room its settings, also one that nobody is in yet."""
        cdef Room room
        cdef Connection connection
        name = room_name(name)
        room = self.room_table.get(name)
        self.room_configs[name] = config
        if room is None:
            return
        if room.window is not None:
            for connection in room.members.values():
                connection.fall_out_of_step(room.window)
        self.configure(room, config)

    def join_room(self, connection, room):
        """The connection enters a room: ``connection.join``."""
        return connection.join(room)

    def leave_room(self, connection, room):
        """The connection leaves a room: ``connection.leave``."""
        return connection.leave(room)

    def room_size(self, room):
        """How many connections are in a room; 0 for one that nobody is in."""
        cdef Room found = self.room_table.get(room_name(room))
        return len(found.members) if found is not None else 0

    def room_members(self, room):
        """The connections in a room, as a list."""
        cdef Room found = self.room_table.get(room_name(room))
        return list(found.members.values()) if found is not None else []

    @property
    def rooms(self):
        """The names of all rooms that somebody is in."""
        return frozenset(self.room_table)

    def get_connection(self, id):
        """The connection with that id, or None. Raises MisuseError if ``id`` is no int, or a bool."""
        return self.connections.get(connection_id("id", "an int", id))

    @property
    def connection_count(self):
        """How many connections there are, those that are closing included."""
        return len(self.connections)

    def unregister(self, connection, code=1000, reason=""):
        """Closes the connection, which leaves its rooms at once: ``connection.close``."""
        return connection.close(code, reason)

    def _sweep(self):
        """Does what time demands of every connection: pings, dead peers, overdue closes."""
        cdef double now = self.clock()
        cdef FrameBuffer *ping = frame_from_octets(b"", 0, PING_OPCODE)
        cdef Connection connection
        for connection in list(self.connections.values()):
            connection.sweep(now, ping)
        frame_release(ping)
        self.swept_at = now
        if self.reactor is not None:
            self.reactor.resume_accepting()
        if self.had_no_room and not self.fullness_told:
            self.fullness_told = True
            logger.warning(
                "a connection leaves %d octets unread (max_send_buffer): what becomes of it is for slow_consumer to "
                "say, and stats() counts it from here on", self.max_send_buffer
            )

    def _close_all(self, bytes payload):
        cdef Connection connection
        self.farewell = payload
        for connection in list(self.connections.values()):
            connection.go_away(payload)

    def _end(self):
        """Ends what is left of all connections, and lets none open any more, not even one that has been accepted."""
        self.closed = True
        self._abort_all()
        if self.reactor is not None and not self.loop.is_closed():
            # From within the loop, where handlers are called.
            self.loop.call_soon(self.reactor.release)

    def _close_share(self, int steps, bytes payload):
        """Closes the oldest of the open connections: as many as leave equal shares for the steps that are left."""
        cdef Connection connection
        cdef list still_open = [
            connection for connection in self.connections.values() if (<Connection>connection).status == IS_OPEN
        ]
        for connection in still_open[:-(-len(still_open) // steps)]:
            connection.go_away(payload)

    def _abort_all(self):
        cdef Connection connection
        for connection in list(self.connections.values()):
            if connection.link is not None:
                connection.link.abort(False)
            else:
                # Its request has had its time, and is not answered any more.
                connection.abandon()

    def _when_empty(self):
        """A future that is done when the last connection is gone."""
        self.emptied = self.loop.create_future()
        if not self.connections:
            self.emptied.set_result(None)
        return self.emptied

    @property
    def _handler_tasks(self):
        """The task of each handler that is suspended, and the id of its connection."""
        return dict(self.handler_tasks)

    @property
    def _handled_connection(self):
        """The id of the connection whose handler runs this code, itself or in a task that it has started; or None."""
        return self.handling.get()

    def _room_counts(self, name):
        """What became of the messages to a room, by name."""
        cdef Room room = self.room_table.get(room_name(name))
        cdef Tally nothing
        if room is not None:
            return {"connections": len(room.members), **counts_of(room.tally, room.tally.pending)}
        memset(&nothing, 0, sizeof(nothing))
        return {"connections": 0, **counts_of(&nothing, 0)}

    def _counts(self):
        """The native counters, by name."""
        cdef uint64_t pending = 0
        cdef Connection connection
        for connection in self.connections.values():
            if connection.link is not None:
                pending += connection.link.queue.messages
        return {
            "connections": len(self.connections),
            "rooms": len(self.room_table),
            "messages_received": self.ledger.messages_received,
            "bytes_received": self.ledger.bytes_received,
            "bytes_sent": self.ledger.bytes_sent,
            **counts_of(&self.ledger.messages, pending),
            "rates_exceeded": self.rates_exceeded,
            "compression": {
                "compressions": self.pool.compressions if self.pool is not None else 0,
                "bytes_in": self.pool.octets_in if self.pool is not None else 0,
                "bytes_out": self.pool.octets_out if self.pool is not None else 0,
            },
            "closes": dict(self.closes),
            "refused": dict(self.refused),
        }
