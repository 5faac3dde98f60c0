"""Fixtures of the tests of brokers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def path() -> Iterator[Path]:
    """A directory for the sockets of workers. Paths below ``tmp_path`` may be too long for them."""
    directory = tempfile.mkdtemp(prefix="wshub-test-")
    yield Path(directory)
    shutil.rmtree(directory)
