from wshub.links.tls.epoll_tls_output import EpollTlsOutput, TlsBuffers

class EpollTls(TlsBuffers):
    """The pair and the buffers of a reactor, and the handshakes that wait for a step."""

class EpollTlsLink(EpollTlsOutput):
    """One TLS connection of an epoll reactor, of the server's or the client's side."""

    partial_length: int
