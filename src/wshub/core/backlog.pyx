# cython: language_level=3
"""The connections of a hub with input that waits for a later loop iteration.

A connection that has used its share of an iteration goes to the end of the queue. Each iteration takes at least one
connection from the front, and each connection once. Timers and other connections run between two iterations.
"""

from wshub.links.link cimport Receiver

from collections import deque

# Seconds of one loop iteration after which no further connection is taken. Sending the messages that result takes
# several times as long.
cdef double MAX_SECONDS = 0.001


cdef class Backlog:
    """A queue of receivers, whose ``continue_input()`` is called in a later loop iteration.

    Args:
        clock: the hub's clock.
    """

    def __cinit__(self, clock):
        self.clock = clock
        self.waiting = deque()

    cdef bint push(self, Receiver receiver, object loop) noexcept:
        """Put a receiver, which is not in the queue, at its end. Returns False if there is no memory or no loop."""
        try:
            self.schedule(loop)
            self.waiting.append(receiver)
        except (MemoryError, RuntimeError):
            # RuntimeError: the loop has closed.
            return False
        return True

    cdef object schedule(self, object loop):
        if self.loop is not loop:
            loop.call_soon(self._run, loop)
            self.loop = loop

    def _run(self, loop):
        cdef double began = self.clock()
        cdef Py_ssize_t left = len(self.waiting)
        self.loop = None
        while left > 0:
            left -= 1
            (<Receiver>self.waiting.popleft()).continue_input()
            if <double>self.clock() - began >= MAX_SECONDS:
                break
        if self.waiting:
            self.schedule(loop)
