"""How docstrings and signatures become the reference."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring

# Classes that wshub makes, and an application does not. How they are constructed is private.
MADE_BY_WSHUB = {
    "wshub.Headers",
    "wshub.HubHealth",
    "wshub.HubStats",
    "wshub.Node",
    "wshub.Published",
    "wshub.RequestHead",
    "wshub.RoomStats",
    "wshub.Server",
    "wshub.Survey",
    "wshub.app.Context",
    "wshub.app.context.Request",
    "wshub.app.context.Response",
    "wshub.app.router.Router",
    "wshub.asgi.application.HubApplication",
    "wshub.core.cluster_types.ClusterStats",
    "wshub.core.cluster_types.IgnoredEnvelopes",
    "wshub.core.stats_types.CompressionStats",
    "wshub.core.stats_types.DroppedMessages",
    "wshub.core.stats_types.Histogram",
    "wshub.uvicorn.protocol.WebSocketProtocol",
}

# How Sphinx writes an alias that it was told not to resolve.
ALIAS = re.compile(r"TypeAliasForwardRef\('wshub\.(\w+)'\)")


def whole_docstring(self: GoogleDocstring) -> tuple[str, list[str]]:
    """Return no type, and the docstring of an attribute. Its first sentence may have a colon."""
    lines = [self._lines.next(), *self._dedent(self._consume_to_end())]
    return "", self.__class__(lines, self._config).lines()


def change_signature(
    app: Sphinx, what: str, name: str, value: object, options: object, signature: str | None, returned: str | None
) -> tuple[str, str | None] | None:
    """Leave out private signatures, and write the aliases of wshub by their names."""
    if what == "class" and name in MADE_BY_WSHUB:
        return "", None
    if signature is None or "TypeAliasForwardRef" not in signature:
        return None
    return ALIAS.sub(r"\1", signature), returned


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the event handler. Napoleon would take text before a colon for the type of an attribute."""
    GoogleDocstring._consume_inline_attribute = whole_docstring  # type: ignore[method-assign]
    app.connect("autodoc-process-signature", change_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
