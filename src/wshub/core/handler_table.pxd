cdef class HandlerTable:
    """The handlers of one EventHandler, looked up once."""

    cdef readonly object handler
    cdef object on_open, on_message, on_close, on_error, on_ping, on_pong, on_drain
    cdef dict close_codes  # close code that the hub would send: the code to send instead. None if there are none
    cdef bint receives     # messages wait for receive() from the start
    cdef bint endpoint     # on_open receives the messages, and its end closes the connection
