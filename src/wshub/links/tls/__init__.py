"""TLS for the links of the epoll reactor, through Python's ``ssl``."""
