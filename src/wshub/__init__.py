"""wshub: a WebSocket hub for Python."""
