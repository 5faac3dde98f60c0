"""The words of refusals: what a handshake that is not accepted is answered with.

Each is the arguments of a ``HandshakeError``: status, reason and, for some, header fields. It is no error itself, since
the traceback of an error that is raised again and again grows.
"""

from __future__ import annotations

__all__ = [
    "FAILED",
    "INCOMPLETE",
    "NOTHING_AT_PATH",
    "NOT_A_HANDSHAKE",
    "NOT_HANDED_OVER",
    "OUT_OF_RESOURCES",
    "REFUSED_BY_MIDDLEWARE",
    "SHUTTING_DOWN",
    "TOO_MANY_CONNECTIONS",
    "TOO_MANY_FROM_ADDRESS",
    "TOO_MANY_NEW",
    "TOO_MANY_NEW_FROM_ADDRESS",
    "TOO_MUCH_EARLY_DATA",
    "UNDECIDED",
]

_RETRY_LATER = (("Retry-After", "5"),)

TOO_MUCH_EARLY_DATA = (400, "Too much was sent before the handshake was answered.")
REFUSED_BY_MIDDLEWARE = (403, "The application's middleware has refused the handshake.")
NOTHING_AT_PATH = (404, "There is nothing at this path.")
INCOMPLETE = (408, "The request was not complete in time.")
NOT_A_HANDSHAKE = (426, "Only WebSocket handshakes are answered here.", (("Upgrade", "websocket"),))
NOT_HANDED_OVER = (426, "This server does not hand WebSocket requests over.")
TOO_MANY_FROM_ADDRESS = (429, "There are too many connections from this address.", _RETRY_LATER)
TOO_MANY_NEW_FROM_ADDRESS = (429, "There are too many new connections from this address.", _RETRY_LATER)
FAILED = (500, "The handshake failed on the server's side.")
OUT_OF_RESOURCES = (503, "The server has no resources left.", _RETRY_LATER)
SHUTTING_DOWN = (503, "The server is shutting down.")
TOO_MANY_CONNECTIONS = (503, "There are too many connections.", _RETRY_LATER)
TOO_MANY_NEW = (503, "There are too many new connections.", _RETRY_LATER)
UNDECIDED = (503, "The server did not decide in time.")
