# cython: language_level=3
"""The connections of the epoll reactor: what a link does, how links send, and the lists of work that they wait for.

Each descriptor is registered once with epoll, edge-triggered, for both directions. A paused link needs no system call:
it is not read, and remembers that there is something to read. Output is queued during a run and leaves at its end, in
one system call for each link as a rule.
"""

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, ENOMEM, errno
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset

from wshub.links.link cimport (
    LinkCounters,
    Link,
    iovec,
    queue_advance,
    queue_gather,
    queue_is_empty,
    queue_push,
)
from wshub.links.linux_sockets cimport (
    AF_INET,
    AF_INET6,
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLET,
    EPOLLIN,
    EPOLLOUT,
    EPOLLRDHUP,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SHUT_WR,
    SO_ERROR,
    SOL_SOCKET,
    TIOCOUTQ,
    close,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    getsockopt,
    ioctl,
    msghdr,
    send,
    sendmsg,
    shutdown,
    sockaddr,
    socklen_t,
    ssize_t,
)
from wshub.protocol.frame_buffer cimport DELIVERED, FrameBuffer, frame_is_message

import os
import socket

cdef enum:
    SCRATCH_SIZE = 65536
    # Pieces of memory in one call of sendmsg(2).
    PIECES = 64


# A chain of links that were never flushed may be long. It must not be released by recursion.
@cython.trashcan(True)
cdef class EpollLink(Link):
    """One connection of an epoll reactor."""

    # Without parameters this cannot fail. If it did, __dealloc__() would close descriptor 0.
    def __cinit__(self):
        self.descriptor = -1

    def __dealloc__(self):
        # The descriptor is open here only if the reactor was collected together with its links.
        if self.descriptor >= 0:
            close(self.descriptor)

    cdef int write(self, FrameBuffer *frame) noexcept:
        if self.closed or self.finishing:
            return 0
        # This does the same as push(), without the call.
        if queue_push(&self.queue, frame) < 0:
            return -1
        self.counters.messages.accepted += frame_is_message(frame)
        if not self.dirty and not self.blocked:
            self.links.mark_dirty(self)
        return 0

    cdef void read_to_end(self) noexcept:
        self.reads_to_end = True

    cdef void pause(self) noexcept:
        self.paused = True
        if self.hung_up:
            # Epoll has reported the end already, and will not do so again.
            self.links.end_if_reset(self)

    cdef void resume(self) noexcept:
        if not self.paused:
            return
        self.paused = False
        if self.has_data and not self.closed:
            self.links.read_later(self)
            self.links.schedule_run()

    cdef void abort(self, bint after_flush) noexcept:
        if self.closed:
            return
        if not after_flush:
            self.links.on_lost(self, 0)
        elif not self.finishing:
            self.finishing = True
            self.resume()
            if not self.dirty and not self.blocked:
                self.links.mark_dirty(self)

    cdef void flush_now(self) noexcept:
        if not self.closed and not self.blocked:
            self.send_queue()

    cdef int64_t bytes_unacked(self) noexcept:
        # Epoll reports a writable socket only once a third of the kernel's buffer is free. A slow reader takes a while.
        cdef int length = 0
        ioctl(self.descriptor, TIOCOUTQ, &length)
        return length

    cdef void send_queue(self) noexcept:
        """Send what the kernel takes of the queue. When all has left, do what was to follow."""
        cdef EpollLinks links = self.links
        cdef iovec pieces[PIECES]
        cdef msghdr message
        cdef int count
        cdef size_t total
        cdef ssize_t sent

        while not queue_is_empty(&self.queue):
            count = queue_gather(&self.queue, pieces, PIECES, links.scratch, SCRATCH_SIZE, &total)
            if count == 1:
                sent = send(self.descriptor, pieces[0].iov_base, total, MSG_NOSIGNAL | MSG_DONTWAIT)
            else:
                memset(&message, 0, sizeof(message))
                message.msg_iov = pieces
                message.msg_iovlen = count
                sent = sendmsg(self.descriptor, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
            if sent < 0:
                if errno == EINTR:
                    continue
                links.on_send_error(self, errno)
                return
            self.bytes_written += sent
            links.bytes_sent += sent
            self.counters.bytes_sent += sent
            self.counters.messages.outcomes[DELIVERED] += queue_advance(&self.queue, sent)
            if <size_t>sent < total:
                links.on_would_block(self)
                return
        if self.finishing:
            if self.ended:
                links.on_lost(self, 0)
                return
            if not self.shut_down:
                self.shut_down = True
                shutdown(self.descriptor, SHUT_WR)
        if self.drain_requested:
            links.enqueue(links.pending_notifications, self)

    cdef size_t receive_records(self) noexcept:
        """Receive once, if the link is encrypted, and give the bytes to the receiver. Return the number of bytes."""
        return 0

    cdef void forget(self) noexcept:
        """Give up what an ended link has no use for. The descriptor is still open."""

    cdef int detach(self) noexcept:
        cdef int descriptor = self.descriptor
        if not self.closed:
            self.closed = True
            self.descriptor = -1
            self.receiver = None
            epoll_ctl(self.links.epoll_fd, EPOLL_CTL_DEL, descriptor, NULL)
            # pending_notifications keeps the link alive: events that this run has fetched may still point to it.
            self.links.enqueue_loss(self)
        return descriptor

    cdef int fileno(self) noexcept:
        return self.descriptor

    cdef object peer_name(self):
        cdef int family
        cdef bytes raw
        cdef const sockaddr *address = <const sockaddr *>self.peer
        if self.peer_length == 0:
            return None
        raw = (<uint8_t *>self.peer)[:self.peer_length]
        family = address.sa_family
        # The address of a Unix socket is nothing but its family.
        if family != AF_INET and family != AF_INET6:
            return None
        port = raw[2] << 8 | raw[3]
        if family == AF_INET:
            return socket.inet_ntop(socket.AF_INET, raw[4:8]), port
        return socket.inet_ntop(socket.AF_INET6, raw[8:24]), port


cdef class EpollLinks:
    """All links of one reactor.

    Args:
        loop: the event loop that calls the reactor.
        counters: where the bytes and messages of a new link are counted.
    """

    def __cinit__(self, loop, LinkCounters counters not None):
        self.epoll_fd = -1
        self.loop = loop
        self.counters = counters
        self.opened = set()
        self.readable = []
        self.send_retries = []
        self.pending_notifications = []
        self.scratch = <uint8_t *>PyMem_RawMalloc(SCRATCH_SIZE)
        if self.scratch == NULL:
            raise MemoryError
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        # Without scratch the field of the descriptor may never have been set: 0 would be the standard input.
        if self.scratch != NULL and self.epoll_fd >= 0:
            close(self.epoll_fd)
        PyMem_RawFree(self.scratch)

    cdef void close_epoll(self) noexcept:
        """Close the epoll instance. There must be no open link."""
        self.run_method = None
        if self.epoll_fd >= 0:
            close(self.epoll_fd)
        self.epoll_fd = -1

    cdef EpollLink add(self, int descriptor):
        """Make a link of a connected socket. It owns the descriptor, also if this raises OSError or MemoryError."""
        cdef EpollLink link
        try:
            link = EpollLink.__new__(EpollLink)
        except BaseException:
            close(descriptor)
            raise
        self.watch(link, descriptor)
        return link

    cdef int watch(self, EpollLink link, int descriptor) except -1:
        """Have epoll watch the socket of a new link, which owns the descriptor from now on. Raise as add() does."""
        cdef epoll_event event
        link.descriptor = descriptor
        link.links = self
        link.counters = self.counters
        event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
        event.data.ptr = <void *><PyObject *>link
        # The step that may fail comes first: epoll must not know a link that nothing keeps alive.
        self.opened.add(link)
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, descriptor, &event) < 0:
            error = errno
            self.opened.discard(link)
            raise OSError(error, os.strerror(error))
        return 0

    # Work that waits

    cdef void enqueue(self, list links, EpollLink link) noexcept:
        """Append the link to one of the lists of work."""
        try:
            links.append(link)
        except MemoryError:
            self.needs_rescan = True

    cdef void read_later(self, EpollLink link) noexcept:
        """Have the link read once in the next round."""
        if link.reads_later:
            return
        try:
            self.readable.append(link)
            link.reads_later = True
        except MemoryError:
            self.needs_rescan = True

    cdef void mark_dirty(self, EpollLink link) noexcept:
        """Have the link flushed at the end of this round, or in a run of its own."""
        link.dirty = True
        if self.dirty_head is None:
            self.dirty_head = link
        else:
            self.dirty_tail.next_dirty = link
        self.dirty_tail = link
        if not self.running:
            self.schedule_run()

    cdef void schedule_run(self) noexcept:
        """Have the loop call the reactor in its next iteration, once."""
        if self.running or self.run_scheduled or self.run_method is None:
            return
        try:
            self.loop.call_soon(self.run_method)
            self.run_scheduled = True
        except RuntimeError:
            # The loop is closed: nothing of this reactor will ever run again.
            pass
        except MemoryError:
            self.needs_rescan = True

    cdef int retry_sends(self) except -1:
        """Mark the links as dirty whose output the kernel had no memory for."""
        cdef EpollLink link
        for link in self.send_retries:
            if not link.dirty and not link.closed:
                self.mark_dirty(link)
        self.send_retries.clear()
        return 0

    cdef int rescan(self) except -1:
        """Find the links that are missing from a list. Raise MemoryError if there is still no memory."""
        cdef EpollLink link
        cdef list gone = []
        for link in self.opened:
            if link.closed:
                gone.append(link)
            elif link.has_data and not link.paused and not link.reads_later:
                self.readable.append(link)
                link.reads_later = True
            elif not link.dirty and not link.blocked:
                # It may have output, a shutdown or a notification that is due. A flush finds out.
                self.mark_dirty(link)
        self.needs_rescan = False
        for link in gone:
            self.enqueue_loss(link)
        return 0

    # Sending

    cdef bint flush(self) noexcept:
        """Send the queued output of each link that has some. No Python code runs.

        Return False if this run has sent RUN_BYTES before all has left.
        """
        cdef EpollLink link
        while self.dirty_head is not None:
            if self.bytes_sent >= RUN_BYTES:
                return False
            link = self.dirty_head
            self.dirty_head = link.next_dirty
            link.next_dirty = None
            link.dirty = False
            if not link.closed:
                link.send_queue()
        self.dirty_tail = None
        return True

    cdef void on_send_error(self, EpollLink link, int error) noexcept:
        """Have the link send again when it can, or end it."""
        if error == EAGAIN:
            self.on_would_block(link)
        elif error == ENOBUFS or error == ENOMEM:
            # Nothing reports when there is memory again: the next run tries, at the latest that of the sweep.
            self.enqueue(self.send_retries, link)
        else:
            self.on_send_failed(link, error)

    cdef void on_would_block(self, EpollLink link) noexcept:
        """Mark the link as blocked. epoll reports when the kernel takes bytes again."""
        link.blocked = True
        link.mark_blocked()
        if link.should_notify_drained():
            self.enqueue(self.pending_notifications, link)

    # The ends of links, and calls of receivers

    cdef void on_send_failed(self, EpollLink link, int error) noexcept:
        """End the link, or have it read to its end: then recv(2) says that the peer has gone."""
        if not link.reads_to_end or link.ended or link.finishing:
            self.on_lost(link, error)
            return
        link.drop_queue()
        # Nothing is sent any more, and no new data is reported: the reactor itself must go on reading.
        link.blocked = True
        link.has_data = link.hung_up = True
        if not link.paused:
            self.read_later(link)
            self.schedule_run()

    cdef void end_if_reset(self, EpollLink link) noexcept:
        """End a paused link at once if the peer has reset it. If the peer has only ended its side, do nothing."""
        cdef int error = 0
        cdef socklen_t length = sizeof(error)
        if link.closed or (link.reads_to_end and not link.ended and not link.finishing):
            return
        if getsockopt(link.descriptor, SOL_SOCKET, SO_ERROR, &error, &length) == 0 and error:
            self.on_lost(link, error)

    cdef void on_lost(self, EpollLink link, int error) noexcept:
        """Close the descriptor and drop the queue. The receiver is called at the end of this round."""
        if link.closed:
            return
        link.closed = True
        link.error = error
        link.drop_queue()
        link.forget()
        # close(2) alone is not enough: epoll goes on to report the socket while a forked process has it too.
        epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, link.descriptor, NULL)
        close(link.descriptor)
        link.descriptor = -1
        link.lost_pending = True
        self.enqueue_loss(link)
        self.schedule_run()

    cdef void enqueue_loss(self, EpollLink link) noexcept:
        """Move a closed link from the open links to pending_notifications."""
        try:
            self.pending_notifications.append(link)
            self.opened.discard(link)
        except MemoryError:
            # It stays among the open links, where rescan() finds it.
            self.needs_rescan = True

    cdef void notify(self) noexcept:
        """Call the receivers of links that were lost or have drained. They may write and abort."""
        cdef list pending = self.pending_notifications
        cdef EpollLink link
        if not pending:
            return
        self.pending_notifications = []
        for link in pending:
            if link.lost_pending:
                link.lost_pending = False
                if link.receiver is not None:
                    link.receiver.connection_lost(link.error)
                    link.receiver = None
            else:
                # An earlier receiver in this loop may have queued more for this link.
                link.notify_drained()
