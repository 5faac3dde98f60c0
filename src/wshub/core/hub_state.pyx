# cython: language_level=3
"""What a connection and its hub know of each other, and both of rooms and handlers."""

cimport cython
from cpython.number cimport PyIndex_Check, PyNumber_Index
from cpython.unicode cimport PyUnicode_CheckExact, PyUnicode_FromObject
from libc.stdint cimport SIZE_MAX, uint8_t, uint64_t

from wshub.core.shared_window cimport SharedWindow
from wshub.protocol.frame_buffer cimport tally_new, tally_release

from collections.abc import Mapping

from wshub.errors import MisuseError
from wshub.protocol.close_code import is_valid_on_wire

cdef dict POLICIES = {
    "close": CLOSE_CONNECTION,
    "drop_newest": DROP_NEWEST,
    "drop_oldest": DROP_OLDEST,
    "latest": LATEST,
    None: INHERITED,
}

# Names of keys that are remembered, and their characters. When they are forgotten, a message that is queued under one
# stays where it is, rather than being replaced: nothing else comes of it.
cdef enum:
    MOST_KEYS = 65536
    MOST_KEY_CHARACTERS = 1 << 22


cdef uint8_t policy_of(object name) except? 255:
    """The Policy of that name, or that to inherit for None."""
    if not PyUnicode_CheckExact(name) and isinstance(name, str):
        name = PyUnicode_FromObject(name)
    try:
        return POLICIES[name]
    except (KeyError, TypeError):
        raise MisuseError(
            f'slow_consumer must be "close", "drop_newest", "drop_oldest" or "latest", not {name!r}'
        ) from None


cdef str name_from(object name):
    """room_name() for an object that is no exact str."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a room must be a str, not {type(name).__name__}")
    return PyUnicode_FromObject(name)


cdef object connection_id(str name, str what, object value):
    """The id of a connection as an int, of anything that Python takes for an integer. Raises MisuseError."""
    if isinstance(value, bool) or not PyIndex_Check(value):
        raise MisuseError(f"{name} must be {what}, not {value!r}")
    return PyNumber_Index(value)


cdef int check_key(object key) except -1:
    """Raises MisuseError for what cannot be the key of a message."""
    if key is not None and not isinstance(key, str):
        raise MisuseError(f"the key of a message is a str, not {type(key).__name__}")
    return 0


cdef dict check_close_codes(object codes):
    """A copy of an EventHandler's close_codes, or None if there are none. Raises MisuseError for what cannot be."""
    if not isinstance(codes, Mapping):
        raise MisuseError(f"close_codes must be a mapping of close codes, not {codes!r}")
    for code in (*codes, *codes.values()):
        if isinstance(code, bool) or not isinstance(code, int) or not is_valid_on_wire(code):
            raise MisuseError(f"close_codes: {code!r} cannot be sent: use 1000-1003, 1007-1014 or one of 3000-4999")
    return {int(code): int(other) for code, other in codes.items()} or None


@cython.final
cdef class Queued:
    """The result of ``send`` and of the other methods that queue: always the same object.

    ``await`` on it does nothing and gives None. The call has queued already. It is false, as None is.
    """

    def __await__(self):
        return iter(())

    def __bool__(self):
        return False

    def __repr__(self):
        return "<Queued>"


cdef Queued QUEUED = Queued()


cdef class HandlerTable:
    def __init__(self, handler, endpoint=False, receives=False):
        self.receives = endpoint or receives
        self.handler = handler
        self.on_open = handler.on_open
        self.on_message = handler.on_message
        self.on_close = handler.on_close
        self.on_error = handler.on_error
        self.on_ping = handler.on_ping
        self.on_pong = handler.on_pong
        self.on_drain = handler.on_drain
        self.endpoint = endpoint
        # A mock of a handler has whatever it is asked for.
        has_codes = "close_codes" in vars(handler) or hasattr(type(handler), "close_codes")
        self.close_codes = check_close_codes(handler.close_codes) if has_codes else None


cdef class Room:
    """The connections that a message to a room reaches."""

    def __cinit__(self, name):
        self.name = name
        self.members = {}
        self.policy = INHERITED
        self.tally = tally_new()
        if self.tally == NULL:
            raise MemoryError

    def __dealloc__(self):
        tally_release(self.tally)


cdef class HubBase:
    cdef object forget(self, object key, object address_key):
        """The connection with that id is closed. Nothing of the hub refers to it from here on."""

    cdef int describe(self, Delivery *delivery, object compress, object slow_consumer, uint8_t policy) except -1:
        """Fills in how a message is sent, as the application says; where that is nothing, by that policy."""
        if compress is None:
            delivery.threshold = self.compression_threshold
        else:
            delivery.threshold = 1 if compress else SIZE_MAX
        if slow_consumer is not None:
            policy = policy_of(slow_consumer)
        delivery.policy = self.policy if policy == INHERITED else policy

    cdef uint64_t number_of(self, uint64_t namespace, object key) except? 0xFFFFFFFFFFFFFFFF:
        """The number that stands for a key of messages of which only the latest matters; 0 for None.

        The namespace is the key of a room, or PRIVATE_KEYS, or HUB_KEYS.
        """
        cdef str name
        cdef tuple place
        if key is None:
            return 0
        # Without whatever else an object of a subclass may hold.
        name = PyUnicode_FromObject(key)
        place = (namespace, name)
        number = self.keys.get(place)
        if number is None:
            if len(self.keys) >= MOST_KEYS or self.key_length + len(name) > MOST_KEY_CHARACTERS:
                self.keys.clear()
                self.key_length = 0
            self.last_key += 1
            self.keys[place] = number = self.last_key
            self.key_length += len(name)
        return number

    cdef Room open_room(self, str name):
        """Makes a room that nobody is in yet, with the settings that it was given."""
        cdef Room room = Room(name)
        self.last_key += 1
        room.key = self.last_key
        config = self.room_configs.get(name)
        if config is not None:
            self.configure(room, config)
        # Meanwhile the garbage collector may have run code that opened it too.
        return self.room_table.setdefault(name, room)

    cdef object configure(self, Room room, object config):
        """Gives a room the settings of a RoomConfig. No member may be in step with the window that it has had."""
        room.policy = policy_of(config.slow_consumer)
        room.window = self.window_of(config)

    cdef SharedWindow window_of(self, object config):
        """The window that a room with that RoomConfig begins with, or None."""
        if config.compression != "shared":
            return None
        window = SharedWindow(self.pool, config.restart_interval)
        self.restart(window)
        return window

    cdef void restart(self, SharedWindow window) noexcept:
        """Nobody is in step with the window from here on, until the first message."""
        self.last_generation += 1
        self.window_changes += 1
        window.restart(self.last_generation)
