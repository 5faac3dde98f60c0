# cython: language_level=3
"""One compressor for all members of a room, whose output refers to the room's earlier messages (RFC 7692 section 7.2).

A client can decompress the output if its decompressor has the same history as the compressor. It is then "in sync": it
got every compressed message of the room since the history began, and no other compressed message after them.

- A client gets in sync with the first message of a history, whatever it received before.
- A client in sync gets the room's messages compressed and all others plain. A compressed message from elsewhere desyncs
  the client.
- A client that is not in sync gets each message in a form that does not refer to other messages.

Each history has a number, its generation. A connection remembers the generation that its client is in sync with.
"""

from libc.stdint cimport uint8_t, uint64_t

from wshub.protocol.compression.compressed_once cimport DeflatePool
from wshub.protocol.compression.deflate cimport (
    deflater_clear,
    deflater_forget,
    deflater_init,
)
from wshub.protocol.frame_buffer cimport FrameBuffer

cdef enum:
    # One compression serves all members, so a longer search pays. It costs little in so small a window.
    LEVEL = 6
    WINDOW_BITS = 13
    MEMORY_LEVEL = 6


cdef class SharedWindow:
    def __cinit__(self, DeflatePool pool not None, uint64_t restart_interval):
        self.pool = pool
        self.restart_interval = restart_interval
        self.window_bits = min(<uint8_t>WINDOW_BITS, pool.window_bits)
        deflater_init(&self.deflater, LEVEL, MEMORY_LEVEL, self.window_bits)

    def __dealloc__(self):
        deflater_clear(&self.deflater)

    cdef bint is_due(self) noexcept:
        """Whether to begin a new history with the next message.

        True after `restart_interval` messages, and if no member is in sync. Also true if the members that are not in
        sync have missed as many deliveries as there are able members. Then the cost is at most twice that of the best
        choice.
        """
        return self.in_sync == 0 or self.messages >= self.restart_interval or self.missed >= self.able

    cdef void restart(self, uint64_t generation) noexcept:
        """Forget the history. The next message begins a new one, with that generation."""
        deflater_forget(&self.deflater)
        self.generation = generation
        self.messages = 0
        self.missed = 0

    cdef FrameBuffer *compress(self, FrameBuffer *frame) noexcept:
        """Return the form for members in sync; the caller owns it. NULL means no memory: the caller must restart."""
        cdef FrameBuffer *form
        self.messages += 1
        form = self.pool.compress(&self.deflater, frame, False)
        if form != NULL:
            form.uses_context = True
        return form
