"""Has uvicorn recognise a WebSocket request whose ``Upgrade`` is a list (RFC 9110 section 7.8)."""

from __future__ import annotations

import importlib
from typing import Any

from wshub.protocol.handshake.server import Handshake
from wshub.protocol.http.headers import Headers

__all__ = ["recognise_lists_of_upgrades"]

# uvicorn's two HTTP protocols. httptools may not be installed.
_READERS = (
    ("uvicorn.protocols.http.httptools_impl", "HttpToolsProtocol"),
    ("uvicorn.protocols.http.h11_impl", "H11Protocol"),
)


def recognise_lists_of_upgrades(websocket_class: type) -> None:
    """Have uvicorn hand ``Upgrade: h2c, websocket`` over to that class, as it does with ``websocket`` alone.

    uvicorn has no setting for this, so a method of its HTTP protocols is replaced. Servers with another class of
    WebSocket protocols behave as before.
    """
    for module, name in _READERS:
        try:
            reader: Any = getattr(importlib.import_module(module), name)
        except ImportError:
            continue
        reader._get_upgrade = _get_upgrade_of(reader._get_upgrade, websocket_class)


def _get_upgrade_of(original: Any, websocket_class: type) -> Any:
    def _get_upgrade(self: Any) -> bytes | None:
        # uvicorn calls this for every HTTP request. Few requests have the field, so the others return early.
        for name, _ in self.headers:
            if name == b"upgrade":
                break
        else:
            return None
        upgrade: bytes | None = original(self)
        if upgrade != b"websocket" and _is_ours(self, websocket_class):
            return b"websocket"
        return upgrade

    return _get_upgrade


def _is_ours(reader: Any, websocket_class: type) -> bool:
    """Whether the request of a reader is a WebSocket request that this class serves."""
    served_by = reader.ws_protocol_class
    if served_by is None or not issubclass(served_by, websocket_class):
        return False
    return Handshake.is_upgrade(Headers(reader.headers))
