"""The programs of the page on task queues, with a real Celery worker and a real engine."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import websockets

from tests.support.free_ports import free_port
from tests.support.pages import blocks, write_programs
from tests.support.programs import environment, running_program
from tests.support.redis_engine import running_engine
from wshub import HistoryConfig, Hub
from wshub.brokers.choosing import broker_from_url
from wshub.publisher import AsyncPublisher


@pytest.mark.skipif("WSHUB_SANITIZED" in os.environ, reason="Celery is not what the sanitizers are for")
@pytest.mark.skipif(importlib.util.find_spec("celery") is None, reason="celery is not installed")
def test_a_task_reaches_every_connection_of_its_user(tmp_path: Path) -> None:
    write_programs("task-queues.md", tmp_path)
    port = free_port()

    async def scenario() -> None:
        url = f"ws://127.0.0.1:{port}/notices?user="
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(url, proxy=None)
        async with (
            websockets.connect(url + "ann", proxy=None) as one,
            websockets.connect(url + "ann", proxy=None) as two,
            websockets.connect(url + "ben", proxy=None) as other,
        ):
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as browser:
                assert (await browser.post("/reports/ann")).status_code == 202
                assert await one.recv() == await two.recv() == "Your report is ready."
                assert (await browser.post("/reports/ben")).status_code == 202
            assert await other.recv() == "Your report is ready."

    with running_engine("redis") as engine:
        variables = environment(WSHUB_BROKER=engine.url)
        server = [sys.executable, "-m", "wshub", "serve", "main:app", "--broker", engine.url, "--port", str(port)]
        worker = [
            sys.executable,
            "-m",
            "celery",
            "--app",
            "tasks",
            "worker",
            "--concurrency",
            "1",
            "--loglevel",
            "ERROR",
        ]
        with (
            running_program(server, port=port, env=variables, cwd=tmp_path) as program,
            running_program(worker, port=engine.port, env=variables, cwd=tmp_path),
        ):
            asyncio.run(asyncio.wait_for(scenario(), 50))
            assert "Traceback" not in program.end()


async def test_the_command_of_the_page_stores_with_the_settings_of_its_module(
    tmp_path: Path,
) -> None:
    write_programs("task-queues.md", tmp_path)
    names = runpy.run_path(str(tmp_path / "histories.py"))
    (shell,) = [text for text in blocks("task-queues.md", "sh") if "--history" in text]
    (command,) = [shlex.split(line) for line in shell.splitlines() if "--history" in line]
    settings = dict(each.split("=") for each in command[command.index("--history") + 1].split(","))
    assert {name: int(value) for name, value in settings.items()} == {"size": 500, "ttl_ms": 3_600_000}
    assert HistoryConfig(size=500, ttl_ms=3_600_000) == names["CHAT"]
    with running_engine("redis") as engine:
        command[command.index("--broker") + 1] = engine.url
        hub = Hub(broker=broker_from_url(engine.url))
        hub.configure_room("chat:*", history=names["CHAT"])
        async with hub, AsyncPublisher(engine.url, histories={"chat:*": names["CHAT"]}) as publisher:
            await hub.broker_started()
            await publisher.publish("from a task", room="chat:7", idempotency_key="task 1")
            done = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-m", *command], env=environment(), timeout=30, check=False
            )
            assert done.returncode == 0
            kept = [found.data for found in (await hub.history("chat:7")).publications]
    assert kept == ["from a task", "It is stored."]
