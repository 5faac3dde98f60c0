"""Fixtures of the tests of brokers."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(socket_directory: Path) -> Path:
    """The directory that workers share."""
    return socket_directory
