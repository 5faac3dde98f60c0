"""SSL contexts, and which transports may carry the connections of one.

aiofastnet makes SSL objects of its own from the context's native pointer. CPython's callbacks look for a Python object
in them, which is not there: with a callback in the context, a ClientHello ends the process. An application can set a
callback at any time, also while a handshake is under way, and some callbacks cannot be read back. So aiofastnet carries
only contexts that only wshub has.
"""

from __future__ import annotations

import logging
import os
import ssl
from functools import cache
from typing import Any
from weakref import WeakSet

__all__ = ["create_own_context", "load_aiofastnet", "mark_as_own", "suits_aiofastnet"]

_own_contexts: WeakSet[ssl.SSLContext] = WeakSet()


def create_own_context(
    certfile: str | os.PathLike[str], keyfile: str | os.PathLike[str] | None = None
) -> ssl.SSLContext:
    """Create a server's context for a certificate. The caller keeps it to itself."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certfile, keyfile)
    return mark_as_own(context)


def mark_as_own(context: ssl.SSLContext) -> ssl.SSLContext:
    """Record that only wshub has the context, and return it."""
    _own_contexts.add(context)
    # Not with the first connection: an import needs descriptors, and there may be none left by then.
    load_aiofastnet()
    return context


@cache
def load_aiofastnet() -> Any:
    """The module, or None where it is not installed."""
    try:
        import aiofastnet
    except ImportError:
        return None
    logging.getLogger("asyncio").addFilter(_has_no_class_for_an_error)
    return aiofastnet


def _has_no_class_for_an_error(record: logging.LogRecord) -> bool:
    """Leave out of the log what logging cannot format.

    If a client leaves during its TLS handshake, aiofastnet logs a class in place of an exception.
    """
    return record.exc_info is None or not isinstance(record.exc_info[1], type)


def suits_aiofastnet(context: ssl.SSLContext) -> bool:
    """Whether aiofastnet can carry connections of the context: it is wshub's own, and has no callback.

    ssl.create_default_context() sets a key log callback if SSLKEYLOGFILE is in the environment.
    """
    return (
        context in _own_contexts
        and context.sni_callback is None
        and getattr(context, "keylog_filename", None) is None
        and getattr(context, "_msg_callback", None) is None
    )
