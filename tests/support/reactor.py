"""The mark for tests of the native reactor. ``WSHUB_USE_REACTOR=0`` runs all other tests over asyncio's transports."""

from __future__ import annotations

import pytest

from wshub.links.reactors import has_native_reactor

HAS_REACTOR = has_native_reactor()

needs_reactor = pytest.mark.skipif(not HAS_REACTOR, reason="the native reactor is switched off, or was not built")
