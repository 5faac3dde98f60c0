"""A hub on any ASGI server."""
