# cython: language_level=3
"""The reactor: all plain TCP and Unix connections of a hub behind one reader of the asyncio loop.

Every descriptor is registered once, edge-triggered, for both directions, so that nothing but its end ever takes
another epoll call: a link that is paused merely is not read, and remembers that there is something to read.

Fairness: in one round a connection is read once, at most RECEIVE_SIZE octets; one with more to read waits until
every other that was ready has had its turn. At most ACCEPT_BURST connections are accepted in a round. One call from
the loop makes at most ROUNDS of them, and reads nothing more after TURN_SECONDS. Timers and everything else of the loop
run then, and the next call reads first what is left. Receivers bound what one read may lead to.
"""

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, ENOBUFS, ENOMEM, EPERM, EPROTO, errno
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uintptr_t
from libc.string cimport memcpy, memset

from wshub.links.link cimport (
    Ledger,
    Link,
    Receiver,
    iovec,
    queue_advance,
    queue_gather,
    queue_is_empty,
    queue_push,
)
from wshub.protocol.frame_buffer cimport DELIVERED, FrameBuffer, frame_is_message

import logging
import os
import socket
import time

from wshub.links.failures import accept_failed
from wshub.links.shortage import ShortageLog

logger = logging.getLogger("wshub.server")

NOT_WATCHED = ShortageLog("a new connection cannot be watched (%s): it is closed")

cdef extern from "sys/types.h" nogil:
    ctypedef Py_ssize_t ssize_t

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll_fd, int operation, int descriptor, epoll_event *event)
    int epoll_wait(int epoll_fd, epoll_event *events, int count, int timeout)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET

cdef extern from "sys/socket.h" nogil:
    cdef struct sockaddr:
        unsigned short sa_family
    ctypedef unsigned int socklen_t
    cdef struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    int accept4(int descriptor, sockaddr *address, socklen_t *length, int flags)
    ssize_t recv(int descriptor, void *buffer, size_t length, int flags)
    ssize_t send(int descriptor, const void *buffer, size_t length, int flags)
    ssize_t sendmsg(int descriptor, const msghdr *message, int flags)
    int shutdown(int descriptor, int how)
    int getpeername(int descriptor, sockaddr *address, socklen_t *length)
    int SOCK_NONBLOCK, SOCK_CLOEXEC, MSG_NOSIGNAL, MSG_DONTWAIT, SHUT_WR, AF_INET, AF_INET6

cdef extern from "sys/ioctl.h" nogil:
    int ioctl(int descriptor, unsigned long request, int *result)
    # Of a socket: octets sent that the peer has not acknowledged.
    unsigned long TIOCOUTQ

cdef extern from "unistd.h" nogil:
    int close(int descriptor)

cdef enum:
    RECEIVE_SIZE = 65536
    SCRATCH_SIZE = 65536
    ACCEPT_BURST = 64
    EVENTS = 512
    PIECES = 64
    # Turns that one call from the loop makes while there is something ready: each one saves a pass of the loop.
    ROUNDS = 4
    # How much is done between two looks at the clock: a message that has arrived counts for MESSAGE_WORK, one that has
    # been queued for 1.
    MESSAGE_WORK = 16
    WORK_BETWEEN_LOOKS = 2048
    READS_BETWEEN_LOOKS = 8
    # From this size on a read is followed by a look at the clock: a message may be inflated, and costs by its size.
    LARGE_READ = 4096
    # Bytes that a turn sends, or has queued for many receivers; the rest leaves in the next one.
    TURN_BYTES = 32 << 20

# Seconds after which a turn reads nothing more.
cdef double TURN_SECONDS = 0.002

# Descriptors of listeners and pointers to links share epoll's one field; objects are aligned, so the lowest bit is
# free to tell them apart.
cdef enum:
    LISTENER_BIT = 1


cdef list NOTHING = []


cdef class Listener:
    """A listening socket of a reactor."""


# A chain of links that were never flushed may be long, and must not be given up by recursion.
@cython.trashcan(True)
cdef class ReactorLink(Link):
    """One connection of a reactor."""

    def __cinit__(self, *arguments, **keywords):
        self.descriptor = -1

    def __dealloc__(self):
        # Reached with an open descriptor only if the reactor was collected together with its links.
        if self.descriptor >= 0:
            close(self.descriptor)

    cdef int write(self, FrameBuffer *frame) noexcept:
        if self.closed or self.finishing:
            return 0
        # As push() does, which this is too hot to call.
        if queue_push(&self.queue, frame) < 0:
            return -1
        self.ledger.messages.accepted += frame_is_message(frame)
        if not self.dirty and not self.blocked:
            self.reactor.mark_dirty(self)
        return 0

    cdef void pause(self) noexcept:
        self.paused = True

    cdef void resume(self) noexcept:
        if not self.paused:
            return
        self.paused = False
        if self.has_data and not self.closed:
            self.reactor.read_later(self)
            self.reactor.schedule_turn()

    cdef void abort(self, bint after_flush) noexcept:
        if self.closed:
            return
        if not after_flush:
            self.reactor.lose(self, 0)
        elif not self.finishing:
            self.finishing = True
            self.resume()
            if not self.dirty and not self.blocked:
                self.reactor.mark_dirty(self)

    cdef void flush_now(self) noexcept:
        if not self.closed and not self.blocked:
            self.reactor.flush_link(self)

    cdef int64_t unacknowledged(self) noexcept:
        # Epoll tells of room only once a third of the kernel's buffer is free, which a slow reader takes a while for.
        cdef int octets = 0
        ioctl(self.descriptor, TIOCOUTQ, &octets)
        return octets

    cdef int detach(self) noexcept:
        cdef int descriptor = self.descriptor
        if not self.closed:
            self.closed = True
            self.descriptor = -1
            self.receiver = None
            epoll_ctl(self.reactor.epoll_fd, EPOLL_CTL_DEL, descriptor, NULL)
            # Among the notices it lives until no event of this turn can be its own.
            self.reactor.note_loss(self)
        return descriptor

    cdef object peer_name(self):
        cdef int family
        cdef bytes raw
        if self.peer_length == 0:
            return None
        raw = (<uint8_t *>self.peer)[:self.peer_length]
        family = (<sockaddr *>self.peer).sa_family
        # That of a Unix socket is nothing but its family.
        if family != AF_INET and family != AF_INET6:
            return None
        port = raw[2] << 8 | raw[3]
        if family == AF_INET:
            return socket.inet_ntop(socket.AF_INET, raw[4:8]), port
        return socket.inet_ntop(socket.AF_INET6, raw[8:24]), port


cdef class Reactor:
    """Drives connections from an asyncio loop.

    Args:
        loop: any asyncio event loop with ``add_reader``; the reactor is to be used on its thread alone.
        ledger: where octets and messages of a link are counted, as long as it has no other.
        clock: a function without arguments: seconds, never going back.
    """

    # Whether a connected socket can become a link by adopt().
    adopts = True

    def __cinit__(self, loop, Ledger ledger not None, clock=time.monotonic):
        self.epoll_fd = -1
        self.users = 1
        self.loop = loop
        self.ledger = ledger
        self.clock = clock
        self.links = set()
        self.listeners = {}
        self.readable = []
        self.notices = []
        self.starved = []
        self.buffer = <uint8_t *>PyMem_RawMalloc(RECEIVE_SIZE)
        self.scratch = <uint8_t *>PyMem_RawMalloc(SCRATCH_SIZE)
        if self.buffer == NULL or self.scratch == NULL:
            raise MemoryError
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.turn_method = self._turn
        self.continue_method = self._continue
        try:
            loop.add_reader(self.epoll_fd, self.turn_method)
        except BaseException:
            # The error's traceback may keep the reactor alive.
            self.turn_method = self.continue_method = None
            close(self.epoll_fd)
            self.epoll_fd = -1
            raise

    def __dealloc__(self):
        # Without a buffer there is no descriptor either: a field that was never set would be one, the standard input.
        if self.buffer != NULL and self.epoll_fd >= 0:
            close(self.epoll_fd)
        PyMem_RawFree(self.buffer)
        PyMem_RawFree(self.scratch)

    def retain(self):
        """Somebody more uses the reactor, and will release it."""
        self.users += 1

    def release(self):
        """Closes the reactor, unless somebody else still uses it. The connections of whoever calls this have ended."""
        self.users -= 1
        if self.users == 0:
            self.close()

    def close(self):
        """Ends every connection at once and lets go of the loop. The receivers are told before this returns."""
        if self.closed:
            return
        for descriptor in list(self.listeners):
            self.unlisten(descriptor)
        for link in list(self.links):
            (<ReactorLink>link).abort(False)
        self.in_turn = True
        self.turn_bytes = 0
        try:
            self.flush()
            self.notify()
        finally:
            self.in_turn = False
        self.closed = True
        self.turn_method = self.continue_method = None
        if not self.loop.is_closed():
            self.loop.remove_reader(self.epoll_fd)
        close(self.epoll_fd)
        self.epoll_fd = -1

    async def listen(self, listening_socket, accepted, *, int backlog=100):
        """Accepts the connections of a bound socket.

        ``accepted(link)`` is called with each new link, and returns its Receiver.
        """
        cdef Listener listener = Listener.__new__(Listener)
        listening_socket.setblocking(False)
        listening_socket.listen(backlog)
        listener.socket = listening_socket
        listener.descriptor = listening_socket.fileno()
        listener.accepted = accepted
        # First what may fail: epoll must not know of a listener that is not in the table.
        self.listeners[listener.descriptor] = listener
        try:
            self.register_listener(listener)
        except BaseException:
            del self.listeners[listener.descriptor]
            raise

    def unlisten(self, int descriptor):
        """Accepts no more connections of that listening socket, which is left open."""
        cdef Listener listener = self.listeners.pop(descriptor, None)
        if listener is not None and not listener.paused:
            epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, descriptor, NULL)

    def resume_accepting(self):
        """Tries again to accept, and to send, after there were no descriptors or no memory to be had."""
        cdef Listener listener
        if self.overlooked or self.starved:
            self.schedule_turn()
        for listener in self.listeners.values():
            if listener.paused:
                try:
                    self.register_listener(listener)
                except OSError:
                    # There is no memory yet: the next sweep tries again.
                    return

    def adopt(self, int descriptor, Receiver receiver not None):
        """Makes a link of a connected, non-blocking socket, which the reactor owns from here on."""
        cdef ReactorLink link = self.add(descriptor)
        cdef socklen_t length = sizeof(link.peer)
        if getpeername(descriptor, <sockaddr *>link.peer, &length) == 0 and length <= sizeof(link.peer):
            link.peer_length = length
        link.receiver = receiver
        return link

    @property
    def connection_count(self):
        """How many links are open."""
        return len(self.links)

    cdef register_listener(self, Listener listener):
        cdef epoll_event event
        event.events = EPOLLIN
        # Not a pointer: the listener may be given up, and be gone, between epoll_wait() and its turn.
        event.data.ptr = <void *>(<uintptr_t>listener.descriptor << 1 | LISTENER_BIT)
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, listener.descriptor, &event) < 0:
            raise OSError(errno, os.strerror(errno))
        listener.paused = False

    cdef ReactorLink add(self, int descriptor):
        """A link for the descriptor, which it owns at once, also if this raises OSError or MemoryError."""
        cdef ReactorLink link
        cdef epoll_event event
        try:
            link = ReactorLink.__new__(ReactorLink)
        except BaseException:
            close(descriptor)
            raise
        link.descriptor = descriptor
        link.reactor = self
        link.ledger = self.ledger
        event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
        event.data.ptr = <void *><PyObject *>link
        # First what may fail: epoll must not know of a link that nothing keeps alive.
        self.links.add(link)
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, descriptor, &event) < 0:
            error = errno
            self.links.discard(link)
            raise OSError(error, os.strerror(error))
        return link

    def _turn(self):
        self.turn_scheduled = False
        if not self.rests:
            self.take_turn()

    def _continue(self):
        self.rests = False
        self.take_turn()

    cdef object take_turn(self):
        cdef int rounds = 0
        if self.closed or self.in_turn:
            return
        self.in_turn = True
        # The reads that the turn before had no time for come first.
        self.is_behind = self.is_over
        self.is_over = self.is_timed = False
        self.turn_bytes = 0
        try:
            if self.has_unsent:
                self.has_unsent = False
                self.flush()
            while rounds < ROUNDS and not self.is_over:
                rounds += 1
                if not self.poll_and_flush():
                    break
        except MemoryError:
            # Nothing is lost; the next turn, at the latest that of the sweep, does what this one could not.
            self.overlooked = True
            logger.error("out of memory: what arrives is handled late")
        finally:
            self.in_turn = False
        if self.is_over:
            self.rest()
        # Epoll tells of new data only; what is left over must be asked for.
        elif self.readable or self.notices or self.dirty_head is not None:
            self.schedule_turn()

    cdef void rest(self) noexcept:
        """Leaves the rest to the next loop iteration, and to one turn in it: timers and others run in between."""
        try:
            self.loop.call_soon(self.continue_method)
            self.rests = True
        except (MemoryError, RuntimeError):
            # There is no memory, or no loop any more.
            self.schedule_turn()

    cdef bint poll_and_flush(self) except -1:
        """One round. Returns whether there was anything to do."""
        cdef bint busy
        cdef list readable = self.readable
        cdef ReactorLink link
        if self.overlooked:
            self.look_again()
        if readable:
            self.readable = []
        else:
            # Links that poll() adds to the list wait for the next round.
            readable = NOTHING
        for link in self.starved:
            if not link.dirty and not link.closed:
                self.mark_dirty(link)
        self.starved.clear()
        busy = len(readable) > 0
        if self.is_behind:
            self.is_behind = False
            self.read_all(readable)
            busy |= self.poll()
        else:
            busy |= self.poll()
            self.read_all(readable)
        while self.notices or (self.dirty_head is not None and not self.has_unsent):
            busy = True
            if not self.has_unsent:
                self.flush()
            self.notify()
        return busy

    cdef int read_all(self, list readable) except -1:
        cdef ReactorLink link
        for link in readable:
            link.reads_later = False
            if not link.has_data or link.closed or link.paused:
                continue
            if self.is_over:
                self.read_later(link)
            else:
                self.read(link)
        return 0

    cdef void look_at_clock(self, ReactorLink link, size_t received) noexcept:
        """Notes that the time of this turn is over, if it is. It is not asked after every read."""
        cdef uint64_t work = link.ledger.messages_received * MESSAGE_WORK + link.ledger.messages.accepted
        cdef double now
        self.reads += 1
        if link.ledger is not self.counting:
            self.counting = link.ledger
            self.fanned_out = link.ledger.bytes_fanned_out
        if link.ledger.bytes_fanned_out - self.fanned_out >= TURN_BYTES:
            self.fanned_out = link.ledger.bytes_fanned_out
            self.is_over = True
        if (
            self.reads % READS_BETWEEN_LOOKS and work - self.work < WORK_BETWEEN_LOOKS
            and received < LARGE_READ
        ):
            return
        self.work = work
        now = self.clock()
        if not self.is_timed:
            self.is_timed = True
            self.began = now
        elif now - self.began >= TURN_SECONDS:
            self.is_over = True

    cdef void note(self, list notes, ReactorLink link) noexcept:
        """Appends the link to one of the lists of what is still to be done."""
        try:
            notes.append(link)
        except MemoryError:
            self.overlooked = True

    cdef void read_later(self, ReactorLink link) noexcept:
        """Has the link read in the next round, once."""
        if link.reads_later:
            return
        try:
            self.readable.append(link)
            link.reads_later = True
        except MemoryError:
            self.overlooked = True

    cdef int look_again(self) except -1:
        """Finds what could not be noted for lack of memory. Raises MemoryError if there is none yet."""
        cdef ReactorLink link
        cdef list gone = []
        for link in self.links:
            if link.closed:
                gone.append(link)
            elif link.has_data and not link.paused and not link.reads_later:
                self.readable.append(link)
                link.reads_later = True
            elif not link.dirty and not link.blocked:
                # Whatever there is to be sent, shut down or told of is found when it is flushed.
                self.mark_dirty(link)
        self.overlooked = False
        for link in gone:
            self.note_loss(link)
        return 0

    cdef void note_loss(self, ReactorLink link) noexcept:
        try:
            self.notices.append(link)
            self.links.discard(link)
        except MemoryError:
            # It stays among the links, where look_again() finds it.
            self.overlooked = True

    cdef void schedule_turn(self) noexcept:
        if self.in_turn or self.turn_scheduled or self.closed:
            return
        try:
            self.loop.call_soon(self.turn_method)
            self.turn_scheduled = True
        except RuntimeError:
            # The loop is closed: nothing of this reactor will ever run again.
            pass
        except MemoryError:
            self.overlooked = True

    cdef void mark_dirty(self, ReactorLink link) noexcept:
        link.dirty = True
        if self.dirty_head is None:
            self.dirty_head = link
        else:
            self.dirty_tail.next_dirty = link
        self.dirty_tail = link
        if not self.in_turn:
            self.schedule_turn()

    cdef bint poll(self) noexcept:
        cdef epoll_event events[EVENTS]
        cdef int count = epoll_wait(self.epoll_fd, events, EVENTS, 0)
        cdef int index
        cdef uintptr_t pointer
        cdef ReactorLink link

        for index in range(count):
            pointer = <uintptr_t>events[index].data.ptr
            if pointer & LISTENER_BIT:
                self.accept(<int>(pointer >> 1))
                continue
            # Alive even if it was lost earlier in this loop: `notices` holds it until notify().
            link = <ReactorLink><PyObject *>pointer
            if link.closed:
                continue
            if events[index].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                link.hung_up = True
            if events[index].events & EPOLLOUT and link.blocked:
                link.blocked = False
                if not link.dirty:
                    self.mark_dirty(link)
            if events[index].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                link.has_data = True
                # One that waits for its next turn is not read twice in this one because more has arrived.
                if link.reads_later or (link.paused and not events[index].events & EPOLLERR):
                    continue
                if self.is_over and not link.paused:
                    self.read_later(link)
                else:
                    self.read(link)
        return count > 0

    cdef void accept(self, int listening) noexcept:
        cdef int _accepted, descriptor
        cdef uint32_t address[7]
        cdef socklen_t length
        cdef ReactorLink link
        cdef Listener listener

        for _accepted in range(ACCEPT_BURST):
            listener = self.listeners.get(listening)
            if listener is None or listener.paused:
                return
            length = sizeof(address)
            descriptor = accept4(listener.descriptor, <sockaddr *>address, &length, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if descriptor < 0:
                if errno in (EINTR, ECONNABORTED, EPROTO, EPERM):
                    continue
                if errno == EAGAIN:
                    # Nobody waits any more. A single success is no recovery: it may have taken the last descriptor.
                    self.exhausted = False
                else:
                    # EMFILE, ENFILE, ENOBUFS or ENOMEM. The connections wait in the backlog: asking again at
                    # once would keep the loop busy for nothing.
                    self.pause_accepting(listener, errno)
                return
            self.accepted += 1
            try:
                link = self.add(descriptor)
            except (OSError, MemoryError) as error:
                NOT_WATCHED.failed(error)
                self.unwatched = True
                continue
            if self.unwatched:
                self.unwatched = False
                NOT_WATCHED.recovered()
            if length <= sizeof(address):
                memcpy(link.peer, address, length)
                link.peer_length = length
            try:
                link.receiver = listener.accepted(link)
                if link.receiver is None:
                    raise TypeError("accepted() returned None")
            except BaseException as error:
                # First of all: a link without a receiver must not be read.
                self.lose(link, 0)
                accept_failed(self.loop, error)

    cdef void pause_accepting(self, Listener listener, int error) noexcept:
        listener.paused = True
        epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, listener.descriptor, NULL)
        if not self.exhausted:
            self.exhausted = True
            logger.error(
                "no more connections can be accepted for now (%s): raise the limit on open files, or lower "
                "max_connections", os.strerror(error)
            )

    cdef void read(self, ReactorLink link) noexcept:
        """Receives once, and passes it on."""
        cdef uint8_t *target = NULL
        cdef size_t room = 0
        cdef bint direct
        cdef ssize_t received
        # The receiver of a handshake puts another in its place; it must live until it returns.
        cdef Receiver receiver = link.receiver

        if not link.finishing:
            room = receiver.get_buffer(&target)
        direct = room > 0
        if not direct:
            target = self.buffer
            room = RECEIVE_SIZE
        elif room > RECEIVE_SIZE:
            room = RECEIVE_SIZE
        while True:
            received = recv(link.descriptor, target, room, 0)
            if received >= 0 or errno != EINTR:
                break
        if received < 0:
            link.has_data = False
            if errno != EAGAIN:
                self.lose(link, errno)
            return
        if received == 0:
            link.has_data = False
            link.ended = True
            if link.finishing:
                if not link.dirty:
                    self.mark_dirty(link)
            else:
                receiver.eof_received()
            return
        # A stream that gave less than was asked for is empty, unless its end or an error is still to be read.
        link.has_data = <size_t>received == room or link.hung_up
        link.ledger.bytes_received += received
        if link.finishing:
            pass
        elif direct:
            receiver.buffer_updated(received)
        else:
            receiver.data_received(target, received)
        if link.has_data and not link.paused and not link.closed:
            self.read_later(link)
        self.look_at_clock(link, received)

    cdef void flush(self) noexcept:
        """Sends the queued output of every connection that has some. No Python code runs."""
        cdef ReactorLink link
        while self.dirty_head is not None:
            if self.turn_bytes >= TURN_BYTES:
                self.has_unsent = self.is_over = True
                return
            link = self.dirty_head
            self.dirty_head = link.next_dirty
            link.next_dirty = None
            link.dirty = False
            if not link.closed:
                self.flush_link(link)
        self.dirty_tail = None

    cdef void flush_link(self, ReactorLink link) noexcept:
        cdef iovec pieces[PIECES]
        cdef msghdr message
        cdef int count
        cdef size_t total
        cdef ssize_t sent

        while not queue_is_empty(&link.queue):
            count = queue_gather(&link.queue, pieces, PIECES, self.scratch, SCRATCH_SIZE, &total)
            if count == 1:
                sent = send(link.descriptor, pieces[0].iov_base, total, MSG_NOSIGNAL | MSG_DONTWAIT)
            else:
                memset(&message, 0, sizeof(message))
                message.msg_iov = pieces
                message.msg_iovlen = count
                sent = sendmsg(link.descriptor, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
            if sent < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN:
                    self.leave_behind(link)
                elif errno == ENOBUFS or errno == ENOMEM:
                    # Nothing will tell when there is memory again: the next turn tries, at the latest the sweep's.
                    self.note(self.starved, link)
                else:
                    self.lose(link, errno)
                return
            link.given += sent
            self.turn_bytes += sent
            link.ledger.bytes_sent += sent
            link.ledger.messages.outcomes[DELIVERED] += queue_advance(&link.queue, sent)
            if <size_t>sent < total:
                self.leave_behind(link)
                return
        if link.finishing:
            if link.ended:
                self.lose(link, 0)
                return
            if not link.shut_down:
                link.shut_down = True
                shutdown(link.descriptor, SHUT_WR)
        if link.notify_drained:
            self.note(self.notices, link)

    cdef void leave_behind(self, ReactorLink link) noexcept:
        """The kernel takes no more for now: epoll tells when it does."""
        link.blocked = True
        link.fall_behind()
        if link.has_news():
            self.note(self.notices, link)

    cdef void notify(self) noexcept:
        """Tells receivers what became of their links. They may write and abort as they like."""
        cdef list notices = self.notices
        cdef ReactorLink link
        if not notices:
            return
        self.notices = []
        for link in notices:
            if link.lost_pending:
                link.lost_pending = False
                if link.receiver is not None:
                    link.receiver.connection_lost(link.error)
                    link.receiver = None
            else:
                # Those who were told before it may have queued more.
                link.tell_drained()

    cdef void lose(self, ReactorLink link, int error) noexcept:
        """Closes the descriptor and forgets what is queued. The receiver is told at the end of this turn."""
        if link.closed:
            return
        link.closed = True
        link.error = error
        link.drop_queue()
        # Closing alone is not enough: while a forked process has the socket too, epoll goes on to report it.
        epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, link.descriptor, NULL)
        close(link.descriptor)
        link.descriptor = -1
        link.lost_pending = True
        self.note_loss(link)
        self.schedule_turn()
