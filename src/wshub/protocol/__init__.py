"""RFC 6455 without I/O: frames, messages, close codes, the handshake, and the native incremental parser."""
