# cython: language_level=3
"""Takes the stream of another worker apart into records.

One peer gets a share of a loop iteration. When that is spent, the bytes that are not handled yet wait in `unread`, and
the link is paused.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.stddef cimport size_t
from libc.stdint cimport SIZE_MAX, uint8_t
from libc.string cimport memcpy, memmove

from wshub.brokers.little_endian cimport read_number
from wshub.brokers.workers_record cimport HEADER_SIZE, LENGTH_SIZE, MAX_HELLO
from wshub.links.clock cimport read_clock
from wshub.links.link cimport Receiver

cdef enum:
    # Records between two looks at the clock. An envelope may go to all members of a room.
    RECORDS_BETWEEN_LOOKS = 4
    # Bytes for which there is space at least when the link reads into `unread`.
    LEAST_READ = 16384
    # More memory than this is freed once all of it was handled.
    KEPT_CAPACITY = 131072
    # Bytes that may arrive before there is a link: only a worker that breaks the rules sends any.
    MAX_BEFORE_LINK = 1 << 20

# Seconds that the records of one peer may take of a loop iteration.
cdef double BUDGET_SECONDS = 0.001


cdef class RecordReceiver(Receiver):
    """Receives records. A subclass overrides ``record_received`` and ``fail``."""

    def __cinit__(self, *arguments, **keywords):
        self.longest = MAX_HELLO
        self.blocks = NO_LINK

    def __dealloc__(self):
        PyMem_RawFree(self.unread)

    cdef void record_received(self, uint8_t kind, const uint8_t *body, size_t length) noexcept:
        """Take a record. `body` is valid until this returns."""

    cdef void fail(self, str reason) noexcept:
        """End the connection: the peer has broken the rules, or there is no memory for what it sends."""

    cdef void data_received(self, const uint8_t *data, size_t length) noexcept:
        cdef size_t handled = 0
        self.has_heard = True
        if self.ended:
            return
        if self.unread_end > self.unread_start:
            if self.keep(data, length) == 0:
                self.handle_unread()
            return
        if not self.blocks:
            handled = self.handle(data, length)
        if handled < length and not self.ended:
            self.keep(data + handled, length - handled)

    cdef size_t get_buffer(self, uint8_t **buffer) noexcept:
        # Without unread bytes, the reactor's own buffer saves memory for each peer.
        if self.unread_end == self.unread_start or self.blocks or self.ended:
            return 0
        if self.reserve(LEAST_READ) < 0:
            return 0
        buffer[0] = self.unread + self.unread_end
        return self.unread_capacity - self.unread_end

    cdef void buffer_updated(self, size_t length) noexcept:
        self.has_heard = True
        self.unread_end += length
        self.handle_unread()

    cdef void eof_received(self) noexcept:
        if self.link is not None:
            self.link.abort(False)
        else:
            # The link is ended once it is there.
            self.ended = True

    cdef void handle_all_unread(self) noexcept:
        """Handle what waits although its share of an iteration is spent."""
        cdef size_t before
        while self.unread_end > self.unread_start and not self.ended:
            before = self.unread_start
            self.handle_unread()
            self.blocks = 0
            if self.unread_start == before:
                return

    cdef int keep(self, const uint8_t *data, size_t length) noexcept:
        """Append bytes to those that wait. Return -1 if the connection has ended because of it."""
        if self.blocks & NO_LINK and self.unread_end + length > MAX_BEFORE_LINK:
            self.fail("it sends before it was answered")
            return -1
        if self.reserve(length) < 0:
            self.fail("there is no memory for what it sends")
            return -1
        memcpy(self.unread + self.unread_end, data, length)
        self.unread_end += length
        return 0

    cdef int reserve(self, size_t length) noexcept:
        """Make space for that many bytes after those that wait. Return -1, and change nothing, if there is no memory.

        A length that a peer only declares reserves nothing: the space doubles as bytes arrive.
        """
        cdef size_t waiting = self.unread_end - self.unread_start
        cdef size_t capacity = self.unread_capacity
        cdef uint8_t *grown
        if length <= self.unread_capacity - self.unread_end:
            return 0
        if length > SIZE_MAX / 4 - waiting:
            return -1
        if waiting + length > capacity:
            capacity = max(waiting + length, 2 * capacity, <size_t>LEAST_READ)
            grown = <uint8_t *>PyMem_RawRealloc(self.unread, capacity)
            if grown == NULL:
                return -1
            self.unread = grown
            self.unread_capacity = capacity
        memmove(self.unread, self.unread + self.unread_start, waiting)
        self.unread_start = 0
        self.unread_end = waiting
        return 0

    cdef void free_unread(self) noexcept:
        """Free the bytes that wait. While one of their records is being handled, they stay until the object ends."""
        if self.handles_unread:
            return
        PyMem_RawFree(self.unread)
        self.unread = NULL
        self.unread_start = self.unread_end = self.unread_capacity = 0

    cdef void handle_unread(self) noexcept:
        """Handle the records among the bytes that wait."""
        if self.blocks or self.ended:
            return
        self.handles_unread = True
        self.unread_start += self.handle(self.unread + self.unread_start, self.unread_end - self.unread_start)
        self.handles_unread = False
        if self.unread_start < self.unread_end:
            return
        self.unread_start = self.unread_end = 0
        if self.unread_capacity > KEPT_CAPACITY:
            self.free_unread()

    cdef void unblock(self, uint8_t block) noexcept:
        """Handle the records that wait, unless they wait for something else too. Then read again."""
        self.blocks &= ~block
        self.handle_unread()
        if not self.blocks and not self.ended and self.link is not None:
            self.link.resume()

    cdef size_t handle(self, const uint8_t *data, size_t length) noexcept:
        """Handle whole records until input is blocked. Return how many bytes they had."""
        cdef size_t position = 0, size
        cdef int count = 0
        cdef double began = 0, now
        while not self.blocks and not self.ended and length - position >= LENGTH_SIZE:
            size = <size_t>read_number(data + position, LENGTH_SIZE)
            if size == 0 or size > self.longest:
                self.fail("the length of a record is out of bounds")
                break
            if length - position - LENGTH_SIZE < size:
                break
            self.record_received(data[position + LENGTH_SIZE], data + position + HEADER_SIZE, size - 1)
            position += LENGTH_SIZE + size
            count += 1
            if count % RECORDS_BETWEEN_LOOKS == 0:
                now = read_clock(None, True)
                if count == RECORDS_BETWEEN_LOOKS:
                    began = now
                elif now - began >= BUDGET_SECONDS:
                    self.wait_for_next_iteration()
        return position

    cdef void wait_for_next_iteration(self) noexcept:
        """Leave further records to the next iteration of the loop."""
        try:
            self.loop.call_soon(self._continue)
        except (MemoryError, RuntimeError):
            # There is no memory: this peer has more time now. Or there is no loop any more.
            return
        self.blocks |= BUDGET_SPENT
        if self.link is not None:
            self.link.pause()

    def _continue(self):
        self.unblock(BUDGET_SPENT)
