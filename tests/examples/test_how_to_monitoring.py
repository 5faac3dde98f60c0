"""The files of the page on monitoring, with real workers behind a real nginx."""

from __future__ import annotations

import asyncio
import configparser
import re
import sys
import time
from pathlib import Path

import httpx
import pytest
import websockets
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support import nginx
from tests.support.free_ports import free_port
from tests.support.pages import blocks, page, program, write_programs
from tests.support.programs import environment, running_program
from tests.support.replacing import replaced
from tests.support.wshub_serve import serving
from wshub.metrics_table import METRICS

PAGE = "monitoring.md"
NAMES = {metric.name + {"counter": "_total"}.get(metric.kind, "") for metric in METRICS}


async def talk(uds: str) -> None:
    async with websockets.unix_connect(uds, "ws://localhost/chat", proxy=None) as client:
        await client.send("hello")
        assert await client.recv() == "hello"


def value_of(text: str, name: str) -> float:
    """Return the sum of a metric in the answer to a scrape."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = [sample.value for sample in samples if sample.name == name and sample.labels["hub"] == "chat"]
    assert found, name
    return sum(found)


@pytest.mark.skipif(nginx.PATH is None, reason="nginx is not installed")
def test_a_scrape_through_nginx_has_the_counts_of_all_workers(tmp_path: Path, socket_directory: Path) -> None:
    write_programs(PAGE, tmp_path)
    uds = str(socket_directory / "chat.sock")
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(program(PAGE, "metrics.conf"))
    variable, directory = unit["Service"]["Environment"].split("=")
    assert directory == f"/run/{unit['Service']['RuntimeDirectory']}"
    shared = tmp_path / "metrics"
    shared.mkdir()
    port, outside = free_port(), free_port()
    (refusal,) = re.findall(r"`(location /metrics \{.*?\})`", page(PAGE).read_text())
    http = replaced(
        program(PAGE, "metrics-nginx.conf"), {"127.0.0.1:9180": f"127.0.0.1:{port}", "/run/chat/chat.sock": uds}
    )
    http += f"server {{ listen 127.0.0.1:{outside}; {refusal} location / {{ proxy_pass http://unix:{uds}; }} }}"
    path = yaml.safe_load(program(PAGE, "prometheus.yml"))["scrape_configs"][0]["metrics_path"]
    command = [sys.executable, "-m", "wshub", "serve", "main:app", "--workers", "2", "--uds", uds]
    with (
        running_program(command, uds=uds, env=environment(**{variable: str(shared)}), cwd=tmp_path) as server,
        nginx.running(http, tmp_path / "nginx", port),
    ):
        for _ in range(8):
            asyncio.run(asyncio.wait_for(talk(uds), 20))
        with httpx.Client(trust_env=False) as client:
            while True:
                answer = client.get(f"http://127.0.0.1:{port}{path}")
                assert answer.status_code == 200
                # Each worker writes its counts once a second.
                if value_of(answer.text, "wshub_connections_opened_total") == 8:
                    break
            assert value_of(answer.text, "wshub_received_messages_total") == 8
            assert client.get(f"http://127.0.0.1:{outside}{path}").status_code == 404
            # On a busy machine a worker may take the other one for gone, for a moment.
            while client.get(f"http://127.0.0.1:{outside}/health/ready").status_code != 200:
                time.sleep(0.05)
        assert "Traceback" not in server.end()


def test_the_program_answers_probes_as_the_page_shows(tmp_path: Path) -> None:
    write_programs(PAGE, tmp_path)
    with serving("main:app", "--app-dir", str(tmp_path)) as server:
        with httpx.Client(base_url=f"http://{server.address}", trust_env=False) as client:
            ready = client.get("/health/ready")
            assert (ready.status_code, ready.json()) == (200, {"ok": True, "brokers": {}})
            assert client.get("/metrics").headers["Location"].endswith("/metrics/")
        assert "Traceback" not in server.end()


def test_the_alerts_name_metrics_that_exist() -> None:
    (group,) = yaml.safe_load(program(PAGE, "alerts.yml"))["groups"]
    for rule in group["rules"]:
        named = re.findall(r"\bwshub_\w+", rule["expr"])
        assert named
        assert set(named) <= NAMES
    assert yaml.safe_load(program(PAGE, "prometheus.yml"))["rule_files"] == ["alerts.yml"]
    assert any("--fail" in block for block in blocks(PAGE, "sh"))
