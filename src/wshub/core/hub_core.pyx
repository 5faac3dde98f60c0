# cython: language_level=3
"""The native part of a hub: its life, its connections, and the sweep over all of them."""

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport SIZE_MAX, uint8_t

from wshub.brokers.envelope cimport HUB_MESSAGE, ROOM_MESSAGE, USER_MESSAGE
from wshub.core.backlog cimport Backlog
from wshub.core.broadcasting cimport send_to_many
from wshub.core.history_sending cimport keeps_history, send_to_history
from wshub.core.delivery_options cimport policy_from_name
from wshub.core.closing cimport cancel_opening, close_if_open, close_without_loop, fail
from wshub.core.conflation_keys cimport ConflationKeys
from wshub.core.connection cimport Connection
from wshub.core.connection_state cimport IS_OPEN, drop_compression, take_negotiated
from wshub.core.handlers cimport start
from wshub.core.handler_table cimport HandlerTable
from wshub.core.hub_state cimport (
    CONTROL_FRAMES,
    HANDLER_TIME,
    MESSAGES,
    BYTES,
    HubBase,
    Rate,
)
from wshub.core.keepalive cimport sweep
from wshub.core.remote_messages cimport RemoteMessages
from wshub.core.named_connections cimport check_connection_id, connection_of, publisher_name
from wshub.core.rooms cimport Room, configure_rooms, note_members, find_room, room_name, set_user, user_name
from wshub.core.stats cimport hub_stats, room_stats
from wshub.core.times cimport Times
from wshub.links.link cimport LinkCounters, Link
from wshub.protocol.compression.compressed_once cimport DeflatePool
from wshub.protocol.frame_buffer cimport RAW, FrameBuffer, frame_release
from wshub.protocol.message cimport frame_from_bytes
from wshub.protocol.opcodes cimport PING_OPCODE

import asyncio
import logging
import time
from contextvars import ContextVar

from wshub.errors import HandshakeError, MisuseError
from wshub.core.admission import Admission
from wshub.core.config import HubConfig
from wshub.core.limit_log import LimitLog
from wshub.core.refusals import SHUTTING_DOWN
from wshub.core.room_configs import RoomConfigs
from wshub.links.reactors import create_reactor
from wshub.protocol.compression.negotiation import negotiate

logger = logging.getLogger("wshub.server")

# Above any rate and any time. It stays finite in every calculation.
cdef double UNBOUNDED = 1e30


cdef double seconds_or_never(object milliseconds):
    """Convert to seconds. 0 milliseconds become a time that never comes."""
    return milliseconds / 1000 if milliseconds else UNBOUNDED


cdef Rate rate_of(double per_second, double burst, double least) noexcept:
    """Return a rate. 0 per second means no limit.

    A connection can save up what `burst` seconds allow, or `least` if that is more.
    """
    cdef Rate rate
    rate.per_second = per_second if per_second else UNBOUNDED
    rate.at_most = max(per_second * burst, least) if per_second else UNBOUNDED
    return rate


cdef class HubCore(HubBase):
    """Connections, rooms and broadcasts. See :class:`wshub.Hub`.

    Methods that the reference does not list are for wshub's own packages.
    """

    def __cinit__(self, config=None, *arguments, clock=time.monotonic, **keywords):
        if config is None:
            config = HubConfig()
        if not isinstance(config, HubConfig):
            raise MisuseError(f"a hub is made with a HubConfig, not {config!r}")
        if not callable(clock):
            raise MisuseError(f"clock must be a function that returns seconds, not {clock!r}")
        self.config = config
        self.clock = clock
        self.clock_is_monotonic = clock is time.monotonic
        self.handling = ContextVar("wshub.handling", default=None)
        self.conflation_keys = ConflationKeys()
        self.room_configs = RoomConfigs()
        self.delivery_defaults.threshold = SIZE_MAX
        if config.compression is not None:
            # An empty message has nothing to compress.
            self.delivery_defaults.threshold = max(config.compression.threshold, 1)
        self.max_message_size = config.max_message_size
        self.max_send_buffer = config.max_send_buffer
        self.max_fragments = config.max_fragments
        self.delivery_defaults.policy = policy_from_name(config.slow_consumer)
        self.set_rates(config.rates)
        self.access_log = config.access_log
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
        """Reset all but settings and ids: the hub has no loop, no connections and no counts."""
        self.loop = None
        self.reactor = None
        self.counters = LinkCounters()
        self.backlog = Backlog(self.clock)
        self.connection_table = {}
        self.room_table = {}
        self.user_table = {}
        self.cluster = None
        self.histories = None
        self.history_messages = None
        self.presences = None
        self.history_cursors = {}
        self.history_senders = {}
        self.closes = {}
        self.refused = {}
        self.handler_tasks = {}
        self.conflation_keys.clear()
        self.pool = DeflatePool(self.config.compression) if self.config.compression is not None else None
        self.limit_log = LimitLog(self.config)
        self._admission = Admission(self.config, self.clock, self.limit_log)
        self.swept_at = self.clock()
        self.rates_exceeded = 0
        self.connections_opened = 0
        self.had_no_space = False
        self.times = Times() if self.measures_times else None
        self.shutdown_close_payload = None
        self.emptied = None
        self.closed = False

    cdef object set_rates(self, object config):
        """Set the rates from a RateLimits."""
        # A full bucket holds at least what one sweep adds. Otherwise some of it would be lost.
        cdef double burst = max(config.burst_ms / 1000, config.sweep_period)
        self.rates[BYTES] = rate_of(config.bytes, burst, 0)
        self.rates[MESSAGES] = rate_of(config.messages, burst, 1)
        self.rates[CONTROL_FRAMES] = rate_of(config.control_frames, burst, 1)
        self.rates[HANDLER_TIME] = rate_of(config.handler_ms / 1000, burst, 0)
        self.times_handlers = config.handler_ms > 0
        self.observes_handlers = self.times_handlers
        self.limits_input = config.bytes > 0 or config.messages > 0
        self.closes_at_rate = config.excess == "close"

    cdef object forget(self, object connection_id, object address_bucket):
        self.connection_table.pop(connection_id, None)
        if address_bucket is not None:
            self._admission.leave(address_bucket)
        if self.emptied is not None and not self.connection_table and not self.emptied.done():
            self.emptied.set_result(None)

    def _join_cluster(self, cluster):
        """Send messages to a Cluster from now on, or to no other hub for None."""
        self.cluster = <RemoteMessages?>cluster if cluster is not None else None

    def _keep_histories(self, histories):
        """Store the messages of rooms with history in Histories from now on."""
        self.histories = histories
        self.history_messages = histories.messages
        histories.cursors = self.history_cursors
        histories.senders = self.history_senders
        for room in self.room_table.values():
            if (<Room>room).has_history:
                histories.members_changed((<Room>room).name)

    def _keep_presences(self, presences):
        """Tell Presences of the members of rooms with presence from now on."""
        self.presences = presences
        for room in self.room_table.values():
            if (<Room>room).has_presence:
                note_members(self, <Room>room)

    def _room_config(self, room):
        """Return the RoomConfig of a room; None if it has the hub's settings."""
        return self.room_configs.find(room)

    cdef bint bind_to_send(self) except -1:
        return self._bind_to_send()

    def _bind_to_send(self):
        """Bind a hub that has no loop, if messages reach other nodes. Return whether the hub has a loop now."""
        return False

    def _hand_over(self, call):
        """Have the loop make a call that comes from another thread. Return False if it comes from the loop's thread."""
        if self.loop is None or self.loop.is_closed() or PyThread_get_thread_ident() == self.thread_id:
            return False
        self.loop.call_soon_threadsafe(call)
        return True

    def _subscribed_rooms(self):
        """Return all whose messages are to arrive from other nodes: each Room, user and RoomHistory."""
        rooms = [room for room in self.room_table.values() if not (<Room>room).has_history]
        return [*rooms, *self.user_table.values(), *self.history_cursors.values()]

    @property
    def _has_closed(self):
        """Whether the hub has closed on the loop that it still has."""
        return self.closed and self.loop is not None and not self.loop.is_closed()

    @property
    def is_in_use(self):
        """Whether the hub has an event loop, and neither of the two has closed."""
        return self.loop is not None and not self.closed and not self.loop.is_closed()

    def now(self):
        """Return the time by the hub's clock, in seconds."""
        return self.clock()

    def bind(self):
        """Bind the hub to the running loop, and return the hub's reactor.

        If the hub or its loop has closed, the hub begins anew.
        """
        loop = asyncio.get_running_loop()
        if self.loop is not None and (self.closed or self.loop.is_closed()):
            self._begin_anew()
        if self.loop is None:
            # Create the reactor first: if that fails, the hub still belongs to no loop.
            self.reactor = create_reactor(loop, self.counters, native=self.config.use_reactor, clock=self.clock)
            self.loop = loop
            self.thread_id = PyThread_get_thread_ident()
        elif self.loop is not loop:
            raise MisuseError(
                "the hub is in use on another event loop: call close() there first, or make a hub for each loop"
            )
        return self.reactor

    def _begin_anew(self):
        """Close the connections that the last loop has left, and reset all but settings and ids."""
        cdef Connection connection
        for connection in list(self.connection_table.values()):
            close_without_loop(connection)
        if self.reactor is not None and self.loop.is_closed():
            self.reactor.close()
        self.begin_anew()

    def register_connection(
        self, HandlerTable handlers, request, subprotocol=None, path_params=None, *, bint extensions=True, metadata=None
    ):
        """Return a new connection whose handshake is not answered yet: it can join rooms and keep metadata.

        The compression that was negotiated is in ``connection.compression``, for the answer. Without `extensions` it is
        None, since another server gives the answer.
        """
        cdef Connection connection
        self.last_id += 1
        connection = Connection(self, self.last_id, handlers, request, subprotocol)
        connection.path_params = path_params
        if metadata:
            connection.metadata.update(metadata)
            user = connection.metadata.get("user")
            if isinstance(user, str):
                set_user(connection, user_name(user))
            elif isinstance(user, int) and not self.warned_of_user:
                self.warned_of_user = True
                logger.warning('on_upgrade returned the user %r, which is no str: use {"user": str(id)}', user)
        if extensions and self.pool is not None and request is not None:
            take_negotiated(
                connection, negotiate(self.pool.config, request.headers.get_all_raw(b"sec-websocket-extensions"))
            )
        if self.counts_addresses and request is not None:
            connection.address_bucket = self._admission.enter(request.remote_address)
        if self.connection_table is self.walked:
            self.connection_table = dict(self.connection_table)
        self.connection_table[connection.connection_id] = connection
        return connection

    def drop_compression(self, Connection connection):
        """Drop the negotiated compression of a registered connection: another server answers its handshake."""
        drop_compression(connection)

    def fail_connection(self, Connection connection, int code, str reason):
        """Fail an open connection (RFC 6455 section 7.1.7): the peer need not answer the close frame."""
        if connection.status == IS_OPEN:
            fail(connection, code, reason)

    def cancel_opening(self, Connection connection):
        """End a registered connection that is not open: no handler is called."""
        cancel_opening(connection)

    def can_adopt(self):
        """Return whether the hub's reactor takes connected sockets."""
        if self.reactor is None:
            self.bind()
        return self.reactor.adopts

    def open_on_descriptor(self, Connection connection, int descriptor, bytes response, bytes rest):
        """Answer the handshake on a connected socket, which the hub's reactor owns from now on, and open it."""
        cdef Link link = None
        try:
            link = self.reactor.adopt(descriptor, connection)
            self.open_on_link(connection, link, response, rest)
        except BaseException:
            cancel_opening(connection)
            if link is not None:
                link.abort(False)
            raise

    def open_on_link(self, Connection connection, Link link not None, bytes response, bytes rest):
        """Answer the handshake on a link, and open the connection. ``rest`` is the bytes that came after the request.

        An empty response means that another server has answered. Raises HandshakeError if the hub has closed.
        """
        cdef FrameBuffer *frame
        if self.closed or self.connection_table.get(connection.connection_id) is not connection:
            # The hub has closed since the request was admitted, or the opening was cancelled.
            cancel_opening(connection)
            raise HandshakeError(*SHUTTING_DOWN)
        link.counters = self.counters
        if response:
            try:
                frame = frame_from_bytes(<const char *>response, len(response), RAW)
            except MemoryError:
                cancel_opening(connection)
                raise
            if link.write(frame) < 0:
                link.abort(False)
            frame_release(frame)
        start(connection, link)
        if rest:
            connection.data_received(<const unsigned char *><const char *>rest, len(rest))
        if self.shutdown_close_payload is not None:
            close_if_open(connection, self.shutdown_close_payload)

    def broadcast(
        self, message, *, room=None, exclude=None, compress=None, slow_consumer=None, key=None, publisher=None
    ):
        """Queue a message for every open connection, or for every member of a room.

        The message is framed once, and compressed once for all clients with the same window. A call from another thread
        than the hub's is handed over to the loop. If the hub has a broker, the other nodes get the message too. Use
        ``publish`` to know whether the broker has taken it.

        Args:
            message: a str, bytes or another buffer, or a Message.
            room: the name of a room; None means all connections.
            exclude: a Connection, or its id, that does not get the message.
            compress: as in ``Connection.send``.
            slow_consumer: as in ``Connection.send``; None uses the policy of the room, or else of the hub.
            key: as in ``Connection.send``. All messages to a room that have no key share one.
            publisher: the Connection that the message comes from, or the name of its user. A room with history keeps
                the name; other rooms ignore it.

        A message to a room with history is stored first. The members get it when it comes back with its offset: with a
        broker, a little later.

        Returns:
            The number of connections of this hub that it was queued for. If called from another thread: the number of
            connections of the hub, or of members of the room, at that moment.

        Raises:
            TypeError, InvalidMessageError, MisuseError: as ``Connection.send``.
            TypeError: ``room`` is not a str.
            MisuseError: ``exclude`` is a bool, or neither a Connection nor an int.
        """
        cdef Connection excluded = connection_of(self, exclude)
        cdef str name
        if room is None:
            return send_to_many(self, HUB_MESSAGE, None, message, excluded, compress, slow_consumer, key, None)
        name = room_name(room)
        if self._keeps_histories and keeps_history(self, name):
            return send_to_history(
                self, name, message, excluded, compress, slow_consumer, key, publisher_name(publisher)
            )
        return send_to_many(self, ROOM_MESSAGE, name, message, excluded, compress, slow_consumer, key, None)

    def send_to_user(self, user not None, message, *, exclude=None, compress=None, slow_consumer=None, key=None):
        """Queue a message for every open connection of a user, on every node.

        It does what ``broadcast`` does for a room. Nothing happens for an empty name: anonymous clients are no user.

        Returns:
            The number of connections of this hub that it was queued for.

        Raises:
            TypeError, InvalidMessageError, MisuseError: as ``broadcast``.
        """
        cdef Connection excluded = connection_of(self, exclude)
        cdef str name = user_name(user)
        return send_to_many(self, USER_MESSAGE, name, message, excluded, compress, slow_consumer, key, None)

    def _send_to_own(self, message, *, room=None, user=None, exclude=None, compress=None, slow_consumer=None, key=None):
        """Send a message to this node's connections: of a room, of a user, or all.

        Return the channel and the envelope for the other nodes; None for both if there is nothing to send there.
        """
        cdef list envelopes = []
        cdef Connection excluded = connection_of(self, exclude)
        cdef uint8_t kind = HUB_MESSAGE
        cdef str name = None
        if room is not None:
            kind = ROOM_MESSAGE
            name = room_name(room)
        elif user is not None:
            kind = USER_MESSAGE
            name = user_name(user)
        send_to_many(self, kind, name, message, excluded, compress, slow_consumer, key, envelopes)
        return tuple(envelopes) if envelopes else (None, None)

    def broadcast_except(self, message, exclude, *, compress=None, slow_consumer=None, key=None):
        """``broadcast`` to all connections but one."""
        return self.broadcast(message, exclude=exclude, compress=compress, slow_consumer=slow_consumer, key=key)

    def broadcast_to_room(self, room not None, message, *, compress=None, slow_consumer=None, key=None):
        """``broadcast`` to all members of a room."""
        return self.broadcast(message, room=room, compress=compress, slow_consumer=slow_consumer, key=key)

    def broadcast_to_room_except(self, room not None, message, exclude, *, compress=None, slow_consumer=None, key=None):
        """``broadcast`` to all members of a room but one."""
        return self.broadcast(
            message, room=room, exclude=exclude, compress=compress, slow_consumer=slow_consumer, key=key
        )

    def _configure_room(self, name, config):
        """Set the RoomConfig of the rooms that match a name or a pattern, now and each time that one is opened."""
        configure_rooms(self, room_name(name), config)

    def join_room(self, connection, room):
        """Call ``connection.join(room)``."""
        return connection.join(room)

    def leave_room(self, connection, room):
        """Call ``connection.leave(room)``."""
        return connection.leave(room)

    def user_connections(self, user not None):
        """Return the connections of a user at this hub as a list; an empty list for an empty name."""
        cdef Room found = self.user_table.get(user_name(user))
        return list(found.members.values()) if found is not None else []

    def room_size(self, room):
        """Return the number of members of a room; 0 if there is no such room."""
        cdef Room found = find_room(self, room)
        return len(found.members) if found is not None else 0

    def room_members(self, room):
        """Return the members of a room as a list of Connections."""
        cdef Room found = find_room(self, room)
        return list(found.members.values()) if found is not None else []

    @property
    def rooms(self):
        """The names of all rooms that have a member."""
        return frozenset(self.room_table)

    def get_connection(self, id):
        """Return the connection with that id, or None. Raise MisuseError if ``id`` is a bool or not an int."""
        return self.connection_table.get(check_connection_id("id", "an int", id))

    @property
    def connections(self):
        """The open connections of this hub, as a new list: it stays as it is when connections come and go.

        A connection in it may have closed by the time that you send to it.
        """
        # The list first: another thread may be the one that asks.
        cdef list everyone = list(self.connection_table.values())
        return [connection for connection in everyone if (<Connection>connection).status == IS_OPEN]

    @property
    def connection_count(self):
        """The number of connections, including those that are closing."""
        return len(self.connection_table)

    def unregister(self, connection, code=1000, reason=""):
        """Call ``connection.close(code, reason)``. The connection leaves its rooms at once."""
        return connection.close(code, reason)

    def _sweep(self):
        """Send the pings that are due, and end the connections whose time is over."""
        cdef double now = self.clock()
        cdef FrameBuffer *ping = frame_from_bytes(b"", 0, PING_OPCODE)
        cdef Connection connection
        for connection in list(self.connection_table.values()):
            sweep(connection, now, ping)
        frame_release(ping)
        self.swept_at = now
        if self.reactor is not None:
            self.reactor.resume_accepting()
        if self.had_no_space:
            self.had_no_space = False
            self.limit_log.reached("max_send_buffer")

    def _connections_of(self, HandlerTable handlers):
        """Return the connections with these handlers, those of one server, or all for None; also if not open."""
        cdef list everyone = list(self.connection_table.values())
        if handlers is None:
            return everyone
        return [connection for connection in everyone if (<Connection>connection).handlers is handlers]

    def _close_all(self, bytes payload, HandlerTable handlers=None):
        cdef Connection connection
        if handlers is None:
            self.shutdown_close_payload = payload
        for connection in self._connections_of(handlers):
            close_if_open(connection, payload)

    def _end(self):
        """Abort all connections. After that no connection can open, not even one that is registered."""
        self.closed = True
        self._abort_all()
        if self.reactor is not None and not self.loop.is_closed():
            # The loop makes the call: release() may call handlers, and only the loop calls them.
            self.loop.call_soon(self.reactor.release)

    def _close_share(self, int steps, bytes payload, HandlerTable handlers=None):
        """Close the oldest of the open connections: an equal share for each of the steps that are left."""
        cdef Connection connection
        cdef list still_open = [
            connection for connection in self._connections_of(handlers) if (<Connection>connection).status == IS_OPEN
        ]
        for connection in still_open[:-(-len(still_open) // steps)]:
            close_if_open(connection, payload)

    def _abort_all(self, HandlerTable handlers=None):
        cdef Connection connection
        for connection in self._connections_of(handlers):
            if connection.link is not None:
                connection.link.abort(False)
            else:
                # Its handshake has not been answered, and will not be.
                cancel_opening(connection)

    def _when_empty(self):
        """Return a future that is done when the last connection is gone."""
        self.emptied = self.loop.create_future()
        if not self.connection_table:
            self.emptied.set_result(None)
        return self.emptied

    def _tasks_of(self, HandlerTable handlers):
        """Return the task of each suspended handler with the id of its connection, as ``_connections_of`` chooses."""
        return [
            (task, (<Connection>connection).connection_id)
            for task, connection in list(self.handler_tasks.items())
            if handlers is None or (<Connection>connection).handlers is handlers
        ]

    @property
    def _handled_connection(self):
        """The id of the connection whose handler, or a task started by it, runs this code; or None."""
        return self.handling.get()

    def _room_counts(self, name):
        """Return the RoomStats of a room."""
        return room_stats(find_room(self, name))

    def _counts(self, cluster):
        """Return the HubStats, with these ClusterStats or None."""
        return hub_stats(self, self.refused, cluster)

    def measure_times(self):
        """Measure from now on how long handshakes, ``on_message`` and pings take: ``stats()`` has the histograms.

        A ``HubCollector`` calls this. Until then no time is measured, and nothing is spent on it.
        """
        self.measures_times = True
        if self.times is None:
            self.times = Times()
        self.observes_handlers = True
        self._observes_handshakes = True

    def _trace(self, tracer, messages):
        """Have a Tracer make spans of handshakes from now on, and of messages too if ``messages`` is true."""
        self.tracer = tracer
        self.traces_messages = messages
        self._observes_handshakes = True
        self.observes_handlers = self.observes_handlers or messages

    @property
    def _tracer(self):
        """The Tracer, or None."""
        return self.tracer

    @property
    def _limit_log(self):
        """The LimitLog: it warns of each limit once."""
        return self.limit_log

    def _count_handshake_time(self, double seconds):
        """Measure how long a handshake took, if times are measured."""
        if self.times is not None:
            self.times.handshakes.add(seconds)
