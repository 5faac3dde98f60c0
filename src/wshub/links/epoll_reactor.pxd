from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from wshub.links.link cimport Ledger, Link


cdef class Reactor:
    """Owns the descriptors of all plain TCP and Unix connections of a hub, in an epoll instance of its own.

    The epoll descriptor is registered with the asyncio loop as a reader. A turn is one call of _turn(): what is
    ready is read, parsed and handled, a bounded amount for each connection; then every connection with queued
    output is sent it, in one system call as a rule; then receivers are told of what was lost or drained. Only
    receivers run Python code, only while reading and while being told, never while sending.
    """

    cdef object loop
    cdef object clock
    cdef Ledger ledger
    cdef int epoll_fd
    cdef set links            # every open ReactorLink: what keeps them alive
    cdef dict listeners       # descriptor: Listener
    cdef list readable        # links with more to read than one turn takes
    cdef list starved         # links that the kernel had no memory for
    cdef list notices         # links whose receivers are to be told that they are lost or drained
    cdef ReactorLink dirty_head  # chained by ReactorLink.next_dirty: output queued, not sent yet; or None
    cdef ReactorLink dirty_tail  # the last of them; anything if there is none
    cdef uint64_t accepted    # connections, ever
    cdef uint8_t *buffer      # owned: what is read goes here
    cdef uint8_t *scratch     # owned: small frames are copied together here to be sent
    cdef int users            # who would close it: the last one does
    cdef bint overlooked      # for lack of memory something is in none of the lists where it belongs
    cdef bint in_turn
    cdef bint is_timed        # the clock has been looked at in this turn
    cdef bint is_over         # the time of this turn is over: nothing more is read in it
    cdef bint is_behind       # the time of the turn before was over: what it has left is read first
    cdef bint rests           # the next turn is in the next loop iteration, whatever is ready before
    cdef bint has_unsent      # the turn before has left links with output
    cdef size_t turn_bytes    # sent in this turn
    cdef Ledger counting      # of the link that was read last
    cdef uint64_t fanned_out  # by that, when a turn was last over because of it
    cdef object continue_method  # _continue(), bound once
    cdef double began         # when the clock was first looked at in this turn
    cdef uint64_t reads       # ever
    cdef uint64_t work        # of a ledger, when the clock was last looked at
    cdef bint closed
    cdef bint exhausted       # no descriptor could be had for a connection, and the log says so
    cdef bint unwatched       # epoll could not take a connection, and the log says so
    cdef bint turn_scheduled
    cdef object turn_method

    cdef void note(self, list notes, ReactorLink link) noexcept
    cdef void read_later(self, ReactorLink link) noexcept
    cdef int look_again(self) except -1
    cdef void note_loss(self, ReactorLink link) noexcept
    cdef void schedule_turn(self) noexcept
    cdef void mark_dirty(self, ReactorLink link) noexcept
    cdef bint poll(self) noexcept
    cdef int read_all(self, list readable) except -1
    cdef object take_turn(self)
    cdef void rest(self) noexcept
    cdef void look_at_clock(self, ReactorLink link, size_t received) noexcept
    cdef bint poll_and_flush(self) except -1
    cdef register_listener(self, Listener listener)
    cdef void pause_accepting(self, Listener listener, int error) noexcept
    cdef void read(self, ReactorLink link) noexcept
    cdef void flush(self) noexcept
    cdef void flush_link(self, ReactorLink link) noexcept
    cdef void leave_behind(self, ReactorLink link) noexcept
    cdef void notify(self) noexcept
    cdef void lose(self, ReactorLink link, int error) noexcept
    cdef void accept(self, int listening) noexcept
    cdef ReactorLink add(self, int descriptor)


cdef class Listener:
    cdef object socket    # keeps the descriptor open
    cdef int descriptor   # borrowed from the socket
    cdef object accepted  # called with each new link; returns its Receiver
    cdef bint paused


cdef class ReactorLink(Link):
    cdef Reactor reactor
    cdef ReactorLink next_dirty  # the garbage collector sees the chain: a closed loop leaves it as it is
    cdef int descriptor       # owned; -1 once closed
    cdef int error            # why the link was lost: an errno, or 0
    cdef uint8_t dirty           # in the reactor's chain of links with output to send
    cdef uint8_t paused
    cdef uint8_t has_data        # there may be more to read: epoll tells of new data only
    cdef uint8_t reads_later     # in the reactor's list of links to be read in the next round
    cdef uint8_t hung_up         # the peer has ended its side, or the connection has failed: read until that shows
    cdef uint8_t ended           # the end of the peer's side has been read
    cdef uint8_t shut_down       # the end of our side has been sent
    cdef uint8_t lost_pending    # in notices, because it is lost
    cdef uint32_t peer[7]     # the peer's sockaddr_in or sockaddr_in6, whose alignment this has
    cdef uint8_t peer_length
