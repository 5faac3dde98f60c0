# cython: language_level=3
"""The epoll reactor: it reads all TCP and Unix connections of a hub behind one reader of the asyncio loop.

It is fair between connections. A round reads each connection once, at most RECEIVE_SIZE bytes. A connection with more
to read waits until every other that was ready has been read. One run makes at most ROUNDS rounds, and reads nothing
more after RUN_SECONDS. Then timers and all else of the loop have their time, and the next run first reads what is left.
Receivers bound the work that one read causes.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t, uintptr_t

from wshub.links.clock cimport read_clock
from wshub.links.epoll_link cimport RUN_BYTES, EpollLink, EpollLinks
from wshub.links.epoll_listeners cimport LISTENER_BIT, EpollListeners
from wshub.links.link cimport LinkCounters, Receiver
from wshub.links.tls.epoll_tls_link cimport EpollTls, EpollTlsLink
from wshub.links.linux_sockets cimport (
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLRDHUP,
    close,
    epoll_event,
    epoll_wait,
    getpeername,
    recv,
    sockaddr,
    socklen_t,
    ssize_t,
)

import logging
import time

logger = logging.getLogger("wshub.server")

cdef enum:
    RECEIVE_SIZE = 65536
    EVENTS = 512
    # Maximum number of rounds in one run. Each further round saves an iteration of the loop.
    ROUNDS = 4
    # The clock is read again after WORK_BETWEEN_LOOKS units of work, or after READS_BETWEEN_LOOKS reads. A message that
    # arrived is MESSAGE_WORK units, and a queued message is 1 unit.
    MESSAGE_WORK = 16
    WORK_BETWEEN_LOOKS = 2048
    READS_BETWEEN_LOOKS = 8
    # The clock is read after each read of this size: a message may be inflated, and costs by its size.
    LARGE_READ = 4096

# Seconds after which a run reads nothing more.
cdef double RUN_SECONDS = 0.002

cdef list NOTHING = []


cdef void learn_peer(EpollLink link) noexcept:
    """Ask the kernel for the peer's address."""
    cdef socklen_t length = sizeof(link.peer)
    if getpeername(link.descriptor, <sockaddr *>link.peer, &length) == 0 and length <= sizeof(link.peer):
        link.peer_length = length


cdef class EpollReactor:
    """Serves connections from an asyncio loop.

    Args:
        loop: any asyncio event loop with ``add_reader``. Use the reactor only on the thread of that loop.
        counters: where the bytes and messages of a link are counted, as long as it has no other.
        clock: a function without arguments that returns seconds and never goes back.
    """

    # Whether a connected socket can become a link by adopt().
    adopts = True

    def __cinit__(self, loop, LinkCounters counters not None, clock=time.monotonic):
        self.users = 1
        self.clock = clock
        self.clock_is_monotonic = clock is time.monotonic
        self.links = EpollLinks(loop, counters)
        self.listeners = EpollListeners(self.links)
        self.buffer = <uint8_t *>PyMem_RawMalloc(RECEIVE_SIZE)
        if self.buffer == NULL:
            raise MemoryError
        self.links.run_method = self._run
        self.continue_method = self._continue
        try:
            loop.add_reader(self.links.epoll_fd, self.links.run_method)
        except BaseException:
            # The error's traceback may keep the reactor alive.
            self.continue_method = None
            self.links.close_epoll()
            raise

    def __dealloc__(self):
        PyMem_RawFree(self.buffer)

    def retain(self):
        """Count one more user of the reactor, which will call release()."""
        self.users += 1

    def release(self):
        """Count one user less, and close the reactor after the last one. The caller's connections have ended."""
        self.users -= 1
        if self.users == 0:
            self.close()

    def close(self):
        """End every connection at once and leave the loop. The receivers are called before this returns."""
        cdef EpollLinks links = self.links
        if self.closed:
            return
        for descriptor in list(self.listeners.listeners):
            self.unlisten(descriptor)
        for link in list(links.opened):
            (<EpollLink>link).abort(False)
        links.running = True
        links.bytes_sent = 0
        try:
            self.flush()
            links.notify()
        finally:
            links.running = False
        self.closed = True
        self.continue_method = None
        if self.tls is not None:
            self.tls.waiting.clear()
        if not links.loop.is_closed():
            links.loop.remove_reader(links.epoll_fd)
        links.close_epoll()

    async def listen(self, listening_socket, accepted, *, int backlog=100, ssl=None):
        """Accept the connections of a bound socket, with TLS if ``ssl`` is a ServerTls.

        ``accepted(link)`` is called with each new link, before any TLS handshake, and returns its Receiver.
        """
        cdef EpollTls tls = self.share_tls() if ssl is not None else None
        listening_socket.setblocking(False)
        listening_socket.listen(backlog)
        self.listeners.add(listening_socket, accepted, ssl, tls)

    cdef EpollTls share_tls(self):
        """Return what all TLS links share."""
        if self.tls is None:
            self.tls = EpollTls(self.links)
        return self.tls

    def unlisten(self, int descriptor):
        """Accept no more connections of that listening socket, which stays open."""
        self.listeners.remove(descriptor)

    def resume_accepting(self):
        """Try again to accept, and to send, after there were no descriptors or no memory."""
        if self.links.needs_rescan or self.links.send_retries:
            self.links.schedule_run()
        self.listeners.resume()

    def adopt(self, int descriptor, Receiver receiver not None):
        """Make a link of a connected, non-blocking socket, which the reactor owns from now on, also if this raises."""
        cdef EpollLink link = self.links.add(descriptor)
        learn_peer(link)
        link.receiver = receiver
        return link

    def adopt_client(self, int descriptor, Receiver receiver not None, context, server_hostname, established):
        """Make a TLS link of a socket that is connected to a server. It owns the descriptor, also if this raises.

        Args:
            descriptor: a connected, non-blocking socket.
            receiver: gets what arrives. It is not called if the handshake fails.
            context: an SSLContext of the client's side.
            server_hostname: the name that the server's certificate must have, or None.
            established: called once, after the handshake: with None, or with the exception that it failed with.
        """
        cdef EpollTls tls
        cdef EpollTlsLink link
        try:
            tls = self.share_tls()
        except BaseException:
            close(descriptor)
            raise
        link = tls.add(descriptor, context, True, server_hostname)
        learn_peer(link)
        link.receiver = receiver
        link.on_established = established
        # Like a link that has something to read, it takes a step: the first one sends.
        link.has_data = True
        tls.wait_for_step(link)
        self.links.schedule_run()
        return link

    @property
    def connection_count(self):
        """The number of open links."""
        return len(self.links.opened)

    @property
    def bytes_in_shared_pair(self):
        """Bytes in the BIOs that all TLS links share: 0 whenever other code than a callback of ``ssl`` runs."""
        return self.tls.pending if self.tls is not None else 0

    def _run(self):
        self.links.run_scheduled = False
        if not self.continues_later:
            self.run()

    def _continue(self):
        self.continues_later = False
        self.run()

    cdef object run(self):
        cdef EpollLinks links = self.links
        cdef int rounds = 0
        if self.closed or links.running:
            return
        links.running = True
        # Links that the run before had no time to read come first.
        self.reads_first = self.time_is_up
        self.time_is_up = self.clock_was_read = False
        links.bytes_sent = 0
        try:
            if self.has_unsent:
                self.has_unsent = False
                self.flush()
            while rounds < ROUNDS and not self.time_is_up:
                rounds += 1
                if not self.run_round():
                    break
            if self.tls is not None and self.tls.waiting:
                # They have their share whatever else there is to do.
                self.tls.take_steps()
                self.finish_round()
        except MemoryError:
            # Nothing is lost: the next run, at the latest that of the sweep, does what this one could not.
            links.needs_rescan = True
            logger.error("out of memory: input is handled late")
        finally:
            links.running = False
        if self.time_is_up or (self.tls is not None and self.tls.waiting):
            self.continue_later()
        # Epoll reports new data only: the reactor itself must come back to what is left.
        elif links.readable or links.pending_notifications or links.dirty_head is not None:
            links.schedule_run()

    cdef void continue_later(self) noexcept:
        """Have one run in the next loop iteration, after timers and all else of the loop."""
        try:
            self.links.loop.call_soon(self.continue_method)
            self.continues_later = True
        except (MemoryError, RuntimeError):
            # There is no memory, or no loop any more.
            self.links.schedule_run()

    cdef bint run_round(self) except -1:
        """Return whether there was anything to do."""
        cdef bint busy
        cdef EpollLinks links = self.links
        cdef list readable = links.readable
        if links.needs_rescan:
            links.rescan()
        if readable:
            links.readable = []
        else:
            # Links that poll() adds to the list wait for the next round.
            readable = NOTHING
        if links.send_retries:
            links.retry_sends()
        busy = len(readable) > 0
        if self.reads_first:
            self.reads_first = False
            self.read_all(readable)
            busy |= self.poll()
        else:
            busy |= self.poll()
            self.read_all(readable)
        busy |= self.finish_round()
        return busy

    cdef bint finish_round(self) noexcept:
        """Send, and notify. Return whether there was anything to do."""
        cdef EpollLinks links = self.links
        cdef bint busy = False
        while links.pending_notifications or (links.dirty_head is not None and not self.has_unsent):
            busy = True
            if not self.has_unsent:
                self.flush()
            links.notify()
        return busy

    cdef int read_all(self, list readable) except -1:
        cdef EpollLink link
        for link in readable:
            link.reads_later = False
            if not link.has_data or link.closed or link.paused:
                continue
            if self.time_is_up:
                self.links.read_later(link)
            else:
                self.read(link)
        return 0

    cdef bint poll(self) noexcept:
        """Ask epoll what is ready, and read or accept it. Return whether there was anything."""
        cdef EpollLinks links = self.links
        cdef epoll_event events[EVENTS]
        cdef int count = epoll_wait(links.epoll_fd, events, EVENTS, 0)
        cdef int index
        cdef uintptr_t pointer
        cdef EpollLink link

        for index in range(count):
            pointer = <uintptr_t>events[index].data.ptr
            if pointer & LISTENER_BIT:
                self.listeners.accept(pointer)
                continue
            # The pointer is valid even if an earlier event in `events` ended the link: pending_notifications holds it
            # until notify().
            link = <EpollLink><PyObject *>pointer
            if link.closed:
                continue
            if events[index].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                link.hung_up = True
            if events[index].events & EPOLLOUT and link.blocked:
                link.blocked = False
                if not link.dirty:
                    links.mark_dirty(link)
            if events[index].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                link.has_data = True
                if link.paused:
                    if events[index].events & EPOLLERR:
                        links.end_if_reset(link)
                # A link that waits for the next round is not read twice in this one because more has arrived.
                elif link.reads_later:
                    continue
                elif self.time_is_up:
                    links.read_later(link)
                else:
                    self.read(link)
        return count > 0

    cdef void read(self, EpollLink link) noexcept:
        """Receive once, and give the bytes to the receiver."""
        cdef uint8_t *target = NULL
        cdef size_t space = 0
        cdef bint direct
        cdef ssize_t received
        # The receiver of a handshake may replace itself in the link. This reference keeps it alive until it returns.
        cdef Receiver receiver = link.receiver

        if link.encrypted:
            self.check_time(link, link.receive_records())
            return
        if not link.finishing:
            space = receiver.get_buffer(&target)
        direct = space > 0
        if not direct:
            target = self.buffer
            space = RECEIVE_SIZE
        elif space > RECEIVE_SIZE:
            space = RECEIVE_SIZE
        while True:
            received = recv(link.descriptor, target, space, 0)
            if received >= 0 or errno != EINTR:
                break
        if received < 0:
            link.has_data = False
            if errno != EAGAIN:
                self.links.on_lost(link, errno)
            return
        if received == 0:
            link.has_data = False
            link.ended = True
            if link.finishing:
                if not link.dirty:
                    self.links.mark_dirty(link)
            else:
                receiver.eof_received()
            return
        # A stream that gave less than was asked for is empty, unless its end or an error is still to be read.
        link.has_data = <size_t>received == space or link.hung_up
        link.counters.bytes_received += received
        if link.finishing:
            pass
        elif direct:
            receiver.buffer_updated(received)
        else:
            receiver.data_received(target, received)
        if link.has_data and not link.paused and not link.closed:
            self.links.read_later(link)
        self.check_time(link, received)

    cdef void check_time(self, EpollLink link, size_t received) noexcept:
        """Set time_is_up once the run has had its time. The clock is not read after every read."""
        cdef uint64_t work = link.counters.messages_received * MESSAGE_WORK + link.counters.messages.accepted
        cdef double now
        self.reads += 1
        if link.counters is not self.counting:
            self.counting = link.counters
            self.fanned_out = link.counters.bytes_fanned_out
        if link.counters.bytes_fanned_out - self.fanned_out >= RUN_BYTES:
            self.fanned_out = link.counters.bytes_fanned_out
            self.time_is_up = True
        if (
            self.reads % READS_BETWEEN_LOOKS and work - self.work < WORK_BETWEEN_LOOKS
            and received < LARGE_READ
        ):
            return
        self.work = work
        now = read_clock(self.clock, self.clock_is_monotonic)
        if not self.clock_was_read:
            self.clock_was_read = True
            self.began = now
        elif now - self.began >= RUN_SECONDS:
            self.time_is_up = True

    cdef void flush(self) noexcept:
        if not self.links.flush():
            self.has_unsent = self.time_is_up = True
