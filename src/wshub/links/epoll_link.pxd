from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t

from wshub.links.link cimport LinkCounters, Link


cdef enum:
    # Bytes that one run sends, or queues for many receivers. The rest leaves in the next run.
    RUN_BYTES = 32 << 20


cdef class EpollLinks:
    """All links of one reactor: the epoll instance that watches them, and the work that they wait for.

    A run is one call of the reactor by the event loop. Between runs this object schedules one when a link has work.
    """

    cdef object loop
    cdef LinkCounters counters           # the counters of new links
    cdef int epoll_fd            # owned; -1 once closed
    cdef set opened              # every open link: the only references that keep them alive
    cdef list readable           # links with more to read than one round takes
    cdef list send_retries       # links that the kernel had no memory for
    cdef list pending_notifications  # links that were lost or have drained, and whose receivers were not called yet
    cdef EpollLink dirty_head    # a chain through EpollLink.next_dirty of links with output to send; or None
    cdef EpollLink dirty_tail    # the last link of the chain; undefined if the chain is empty
    cdef uint8_t *scratch        # owned: short frames are copied together here before they are sent
    cdef size_t bytes_sent       # in this run
    cdef object run_method       # the reactor's method for one run; None once closed
    cdef bint needs_rescan       # a link is missing from a list because there was no memory for the list
    cdef bint running
    cdef bint run_scheduled

    cdef EpollLink add(self, int descriptor)
    cdef int watch(self, EpollLink link, int descriptor) except -1
    cdef void close_epoll(self) noexcept
    cdef void enqueue(self, list links, EpollLink link) noexcept
    cdef void read_later(self, EpollLink link) noexcept
    cdef void mark_dirty(self, EpollLink link) noexcept
    cdef void schedule_run(self) noexcept
    cdef int retry_sends(self) except -1
    cdef int rescan(self) except -1
    cdef bint flush(self) noexcept
    cdef void on_send_error(self, EpollLink link, int error) noexcept
    cdef void on_would_block(self, EpollLink link) noexcept
    cdef void on_send_failed(self, EpollLink link, int error) noexcept
    cdef void end_if_reset(self, EpollLink link) noexcept
    cdef void on_lost(self, EpollLink link, int error) noexcept
    cdef void enqueue_loss(self, EpollLink link) noexcept
    cdef void notify(self) noexcept


cdef class EpollLink(Link):
    cdef EpollLinks links        # all links of the reactor
    cdef EpollLink next_dirty    # the garbage collector sees the chain: a closed loop leaves it as it is
    cdef int descriptor          # owned; -1 once closed
    cdef int error               # why the link was lost: an errno, or 0
    cdef uint8_t dirty           # in the chain of links with output to send
    cdef uint8_t paused
    cdef uint8_t has_data        # there may be more to read: epoll reports new data only
    cdef uint8_t reads_later     # in the list of links to be read in the next round
    cdef uint8_t hung_up         # the peer has ended its side, or the connection has failed: read until recv(2) says so
    cdef uint8_t ended           # the end of the peer's side has been read
    cdef uint8_t shut_down       # the end of this side has been sent
    cdef uint8_t lost_pending    # in pending_notifications, because it is lost
    cdef uint32_t peer[7]        # the peer's sockaddr_in or sockaddr_in6, aligned like these
    cdef uint8_t peer_length
    cdef uint8_t reads_to_end    # see Link.read_to_end()
    cdef uint8_t encrypted       # receive_records() reads it, not the reactor

    cdef void send_queue(self) noexcept
    cdef size_t receive_records(self) noexcept
    cdef void forget(self) noexcept
