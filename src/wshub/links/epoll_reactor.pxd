from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t

from wshub.links.epoll_link cimport EpollLink, EpollLinks
from wshub.links.epoll_listeners cimport EpollListeners
from wshub.links.link cimport LinkCounters
from wshub.links.tls.epoll_tls_link cimport EpollTls


cdef class EpollReactor:
    """Serves the TCP and Unix connections of a hub, with and without TLS.

    Its epoll descriptor is a reader of the asyncio loop. A run is one call of _run(), in up to ROUNDS rounds. A round
    reads each link that is ready once, and its receiver parses and handles the bytes. Then it sends the output of all
    links. Finally it calls the receivers of links that were lost or have drained. Only receivers run Python code, never
    while sending.
    """

    cdef EpollLinks links
    cdef EpollListeners listeners
    cdef EpollTls tls            # from the first use of TLS on; or None
    cdef object clock
    cdef bint clock_is_monotonic  # it is time.monotonic
    cdef uint8_t *buffer         # owned: received bytes, unless the receiver has a buffer for them
    cdef int users               # the objects that release() it; the last one closes it
    cdef bint closed
    cdef bint clock_was_read     # in this run
    cdef bint time_is_up         # nothing more is read in this run
    cdef bint reads_first        # the run before had no time left: what it left unread comes before new events
    cdef bint continues_later    # the next run is in the next loop iteration, whatever is ready before
    cdef bint has_unsent         # the run before left links with output
    cdef double began            # when the clock was first read in this run
    cdef uint64_t reads          # ever
    cdef uint64_t work           # of the counters, when the clock was last read
    cdef LinkCounters counting         # of the link that was read last
    cdef uint64_t fanned_out     # of those counters, when it last ended a run
    cdef object continue_method  # _continue(), bound once

    cdef object run(self)
    cdef void continue_later(self) noexcept
    cdef EpollTls share_tls(self)
    cdef bint run_round(self) except -1
    cdef bint finish_round(self) noexcept
    cdef int read_all(self, list readable) except -1
    cdef bint poll(self) noexcept
    cdef void read(self, EpollLink link) noexcept
    cdef void check_time(self, EpollLink link, size_t received) noexcept
    cdef void flush(self) noexcept
