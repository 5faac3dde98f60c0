"""The answers to the probes of a load balancer or an orchestrator: is the process alive, and is the hub ready."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from wshub.core.binding import bind_for_request
from wshub.errors import HandshakeError

if TYPE_CHECKING:
    from wshub.core.clustered import ClusteredHub

__all__ = ["PROBE_FIELDS", "answer_probe"]

PROBE_FIELDS = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))
"""The header fields of each answer, besides its length."""


def answer_probe(name: str, *hubs: ClusteredHub) -> tuple[int, bytes] | None:
    """Return the status and the body of an answer; None if there is no such probe.

    Args:
        name: ``live``: the event loop runs, since it answers. ``ready``: each hub takes connections, and its broker is
            connected if it has one.
        hubs: that must be ready. One that is not in use yet is bound to the running loop, so that its broker starts.
    """
    if name == "live":
        return 200, b'{"ok": true}'
    if name != "ready":
        return None
    ok = True
    brokers = {}
    for hub in hubs:
        try:
            if not hub.is_in_use and not hub._has_closed:
                bind_for_request(hub)
        except HandshakeError:
            ok = False
        health = hub.health()
        ok = ok and health.ok
        if health.broker is not None:
            brokers[hub.name] = health.broker.state
    return 200 if ok else 503, json.dumps({"ok": ok, "brokers": brokers}).encode()
