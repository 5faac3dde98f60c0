cdef class HandlerTable:
    """The handlers of one EventHandler, looked up once."""

    cdef readonly object handler
    cdef object on_open, on_message, on_close, on_error, on_ping, on_pong, on_drain
    cdef dict close_codes  # code that the hub would close with: code to send in its place; or None
    cdef bint receives     # messages wait for receive() from the start
    cdef bint endpoint     # on_open receives the messages, and its end closes the connection
