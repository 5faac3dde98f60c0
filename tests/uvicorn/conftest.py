"""Fixtures for the tests of uvicorn."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def default_hangup() -> Iterator[None]:
    """Have SIGHUP end the process, as by default. It may be ignored here, as under ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
