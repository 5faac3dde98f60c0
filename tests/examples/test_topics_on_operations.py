"""The programs and the tables of the pages on logging and on metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from tests.support.pages import ROOT, blocks, load, page, write_programs
from tests.support.wshub_serve import serving
from wshub import Hub
from wshub.core.limit_log import _TEXTS
from wshub.metrics_table import METRICS

SUFFIXES = {"counter": "_total", "gauge": "", "histogram": ""}
EXPOSED = {metric.name + SUFFIXES[metric.kind]: metric for metric in METRICS}


def chat(url: str) -> None:
    """Come, say hello, and go."""

    async def talk() -> None:
        async with websockets.connect(url, proxy=None) as client:
            await client.send("hello")
            assert await client.recv() == "hello"

    asyncio.run(asyncio.wait_for(talk(), 20))


def test_the_program_on_logging_writes_what_the_page_shows(tmp_path: Path) -> None:
    write_programs("topics/logging.md", tmp_path)
    with serving("main:app", "--app-dir", str(tmp_path)) as server:
        chat(f"ws://{server.address}/chat")
        output = server.end()
    (shown,) = blocks("topics/logging.md", "text")
    lines = [line for line in output.splitlines() if re.match(r"\w+ wshub\.", line)]
    for line in shown.splitlines():
        pattern = re.escape(line)
        pattern = re.sub(r"127\\\.0\\\.0\\\.1:\d+", r"127\\.0\\.0\\.1:\\d+", pattern)
        pattern = re.sub(r"\d+\\ (ms|bytes|sent)", r"\\d+\\ \1", pattern)
        assert any(re.fullmatch(pattern, found) for found in lines), (line, lines)


async def test_the_formatter_for_json_writes_the_fields(tmp_path: Path, capsys: Any) -> None:
    import logging

    module: Any = load("topics/logging.md", "json_logs.py", tmp_path)
    record = logging.makeLogRecord({"name": "wshub.client", "levelname": "DEBUG", "msg": "x", "connection_id": 5})
    assert json.loads(module.JsonFormatter().format(record)) == {
        "level": "DEBUG",
        "logger": "wshub.client",
        "message": "x",
        "connection_id": 5,
    }


def test_the_program_on_metrics_answers_scrapes_and_probes(tmp_path: Path) -> None:
    write_programs("topics/metrics.md", tmp_path)
    with serving("main:app", "--app-dir", str(tmp_path)) as server, contextlib.ExitStack() as stack:
        http = stack.enter_context(httpx.Client(base_url=f"http://{server.address}", trust_env=False))
        chat(f"ws://{server.address}/chat")
        text = http.get("/metrics", follow_redirects=True).text
        assert 'wshub_connections_opened_total{hub="hub"} 1.0\n' in text
        assert http.get("/health/live").status_code == http.get("/health/ready").status_code == 200
        assert "Traceback" not in server.end()


def test_the_page_lists_each_metric_with_its_kind() -> None:
    listed = {}
    for row in re.findall(r"^\| (`wshub_.*)$", page("topics/metrics.md").read_text(), re.MULTILINE):
        names, kind, *_ = row.split(" | ")
        listed |= dict.fromkeys(re.findall(r"`(\w+)`", names), kind)
    assert listed == {name: metric.kind for name, metric in EXPOSED.items()}


def names_in(query: str) -> set[str]:
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bwshub_\w+", query)}


def test_the_queries_of_the_page_name_metrics_that_exist() -> None:
    found = names_in(page("topics/metrics.md").read_text())
    assert found - {"wshub_"} <= EXPOSED.keys()


def test_the_queries_of_the_dashboard_name_metrics_that_exist() -> None:
    board = json.loads((ROOT / "examples" / "grafana" / "dashboard.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    found = set().union(*map(names_in, queries))
    assert found <= EXPOSED.keys()
    # It leaves out numbers that follow from others, and the traffic of the broker.
    assert {name for name in EXPOSED if name.startswith("wshub_") and name not in found} == {
        "wshub_send_queue_messages",
        "wshub_rates_exceeded_total",
        "wshub_compressed_messages_total",
        "wshub_cluster_published_total",
        "wshub_cluster_rejected_total",
        "wshub_cluster_received_total",
        "wshub_cluster_delivered_total",
        "wshub_cluster_ignored_total",
        "wshub_broker_sent_total",
        "wshub_broker_received_total",
        "wshub_broker_sent_bytes_total",
        "wshub_broker_received_bytes_total",
        "wshub_broker_reconnects_total",
        "wshub_broker_subscriptions",
        "wshub_broker_peers",
        "wshub_history_rooms",
        "wshub_history_reads_total",
        "wshub_presence_taken_over_total",
    }
    for panel in panels:
        right = panel["gridPos"]["x"] + panel["gridPos"]["w"]
        assert right <= 24
        assert panel["datasource"]["uid"] == "${datasource}"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    board = json.loads((ROOT / "examples" / "grafana" / "dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (column, line)
            for column in range(place["x"], place["x"] + place["w"])
            for line in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_reference_lists_the_text_of_each_limit() -> None:
    text = page("reference/logs.md").read_text()
    for limit, message in _TEXTS.items():
        assert f"| `{limit}` | {message} |\n" in text


@pytest.mark.parametrize("name", ["opened", "closed", "refused", "limit", "listening", "stopped", "started"])
def test_the_page_on_logging_names_each_event(name: str) -> None:
    assert f"`{name}`" in page("topics/logging.md").read_text()


def test_the_counts_that_the_page_names_exist() -> None:
    stats = Hub().stats()
    for block in blocks("topics/metrics.md", "python"):
        for path in re.findall(r"\bstats\.([\w.]+)", block):
            value: Any = stats
            for name in path.split("."):
                value = getattr(value, name)
