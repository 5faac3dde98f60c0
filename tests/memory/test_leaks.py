"""Closed connections leave nothing behind, however they were used and closed."""

from __future__ import annotations

import os

import pytest

# With a sanitizer every allocation is slow, and freed memory stays allocated for a while.
COUNT = 66 if "WSHUB_SANITIZED" in os.environ else 330


def test_many_tls_connections_leave_no_object_descriptor_or_memory(run_program) -> None:
    run_program("leaks", "66", "asyncio", "tls")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_many_connections_leave_no_object_descriptor_or_memory(run_program, loop) -> None:
    run_program("leaks", str(COUNT), loop)
