"""Without memory an operation raises MemoryError or a connection ends; the process and all other connections go on."""

from __future__ import annotations

import pytest

from tests.support.reactor import needs_reactor

try:
    import _testcapi  # noqa: F401
except ImportError:
    pytest.skip("this Python has no _testcapi, which lets allocations fail", allow_module_level=True)

# Seconds for each phase of a connection.
SECONDS = 3
SECONDS_OF_TLS = 10


def test_every_allocation_of_the_parser_and_of_messages_may_fail(run_program) -> None:
    output = run_program("out_of_memory", "parser")
    assert "messages: " in output


def test_every_allocation_of_a_broadcast_may_fail_and_all_members_stay_in_sync(run_program) -> None:
    output = run_program("out_of_memory", "broadcast")
    assert "broadcast: " in output


@needs_reactor
def test_every_allocation_of_a_command_to_an_engine_may_fail(run_program) -> None:
    output = run_program("out_of_memory", "engine")
    assert output.count("lost the envelope") == 4


@needs_reactor
def test_every_allocation_of_a_turn_of_the_hub_may_fail(run_program) -> None:
    output = run_program("out_of_memory", "hub", str(SECONDS))
    assert output.count("ended the connection") == 9


@needs_reactor
def test_every_allocation_of_a_tls_connection_may_fail(run_program) -> None:
    output = run_program("out_of_memory_tls", str(SECONDS_OF_TLS))
    assert output.count("ended the connection") == 14
