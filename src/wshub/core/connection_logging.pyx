# cython: language_level=3
"""Decides once for each connection whether it is logged. connection_log.py writes the lines."""

from libc.stdint cimport int64_t

import logging

from wshub.core.connection_log import ConnectionLog, logger

cdef int DEBUG = logging.DEBUG


cdef void log_opened(ConnectionCore connection, double now) noexcept:
    """Log the opening of a connection, if its hub has an access log or the level is DEBUG.

    If not, its end is not logged either, and nothing about it is kept.
    """
    if connection.hub.access_log or logger.isEnabledFor(DEBUG):
        # The answer to the handshake is in the queue.
        connection.log = ConnectionLog(connection, connection.hub.access_log, now, connection.link.end_of_queue())


cdef void log_closed(ConnectionCore connection) noexcept:
    """Log the end of a connection whose opening was logged."""
    cdef int64_t sent = connection.link.bytes_written
    log, connection.log = connection.log, None
    log.closed(connection.code, connection.reason, connection.hub.clock(), connection.bytes_received, sent)
