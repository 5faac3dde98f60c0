"""Each row of the table of failures in the documentation has a test, and each of those tests has a row."""

from __future__ import annotations

from pathlib import Path
from types import FunctionType

import pytest

from tests.brokers import test_redis_cluster, test_redis_sentinel
from tests.core import test_cluster_engine_failures, test_cluster_node_failures
from tests.uvicorn import test_shared_directory

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "cluster.md"
HEADING = "| failure | what your program sees | what clients see | where it is counted |"


def rows() -> dict[str, list[str]]:
    """Return the other cells of each row, by the failure."""
    lines = iter(PAGE.read_text().splitlines())
    assert HEADING in lines
    assert next(lines) == "| --- | --- | --- | --- |"
    found = {}
    for line in lines:
        if not line.startswith("|"):
            break
        failure, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert failure not in found
        found[failure] = cells
    return found


def failures_of_tests() -> dict[str, list[str]]:
    """Return the names of the tests of each failure."""
    found: dict[str, list[str]] = {}
    modules = (test_cluster_engine_failures, test_cluster_node_failures, test_shared_directory)
    for module in (*modules, test_redis_sentinel, test_redis_cluster):
        for name, function in vars(module).items():
            if name.startswith("test_") and isinstance(function, FunctionType):
                for mark in getattr(function, "pytestmark", ()):
                    if mark.name == "failure":
                        (failure,) = mark.args
                        found.setdefault(failure, []).append(name)
    return found


def test_every_failure_has_a_test_and_every_test_a_failure() -> None:
    assert rows().keys() == failures_of_tests().keys()


@pytest.mark.parametrize("failure", rows())
def test_every_row_says_what_happens_in_each_column(failure: str) -> None:
    cells = rows()[failure]
    assert len(cells) == 3
    assert all(cells)
