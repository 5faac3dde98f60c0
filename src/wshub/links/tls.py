"""SSL contexts, and which transports may carry the connections of one.

aiofastnet makes SSL objects of its own from the context's native pointer. CPython's callbacks look for a Python object
in them, which is not there: with a callback in the context, a ClientHello ends the process. An application can set a
callback at any time, also while a handshake is under way, and some callbacks cannot be read back. So aiofastnet carries
only contexts that nobody but wshub has.
"""

from __future__ import annotations

import os
import ssl
from weakref import WeakSet

__all__ = ["create_own_context", "mark_as_own", "suits_aiofastnet"]

_own_contexts: WeakSet[ssl.SSLContext] = WeakSet()


def create_own_context(
    certfile: str | os.PathLike[str], keyfile: str | os.PathLike[str] | None = None
) -> ssl.SSLContext:
    """A server's context for a certificate, which nobody else is to have."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certfile, keyfile)
    return mark_as_own(context)


def mark_as_own(context: ssl.SSLContext) -> ssl.SSLContext:
    """Say that nobody but wshub has the context, and return it."""
    _own_contexts.add(context)
    return context


def suits_aiofastnet(context: ssl.SSLContext) -> bool:
    """Whether aiofastnet can carry connections of the context: it is wshub's own, and has no callback.

    A default context has one if the environment has SSLKEYLOGFILE.
    """
    return (
        context in _own_contexts
        and context.sni_callback is None
        and getattr(context, "keylog_filename", None) is None
        and getattr(context, "_msg_callback", None) is None
    )
