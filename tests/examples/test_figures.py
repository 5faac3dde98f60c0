"""The figures of the documentation: charts, tables and stored figures say the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.support.pages import ROOT, page

FIGURES = json.loads((ROOT / "benchmarks" / "figures.json").read_text())


def tables(name: str) -> list[list[list[str]]]:
    """Return the cells of every table of a page, without the line under the titles."""
    found = re.findall(r"(?:^\|.*\|\n)+", page(name).read_text(), re.MULTILINE)
    rows = [[line.strip("| ").split(" | ") for line in table.splitlines()] for table in found]
    return [[row for row in table if row[0] != "---"] for table in rows]


@pytest.mark.parametrize("group", FIGURES)
def test_the_page_on_performance_has_the_stored_figures(group) -> None:
    figures = FIGURES[group]
    titles, *rows = next(table for table in tables("performance.md") if table[0][1:] == figures["columns"])
    assert titles[0] == "work"
    stored = {row["work"]: row["values"] for row in figures["rows"]}
    shown = {work: [None if cell == "-" else float(cell) for cell in cells] for work, *cells in rows}
    assert shown == stored


def test_the_charts_show_the_stored_figures() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "charts.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), "run benchmarks/charts.py"
