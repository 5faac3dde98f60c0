"""The HTTP of an opening handshake (RFC 9112)."""
