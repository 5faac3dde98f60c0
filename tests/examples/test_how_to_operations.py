"""The programs and files of the pages on containers and on systemd."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
import yaml

from tests.support.free_ports import free_port
from tests.support.pages import page, program, write_programs
from tests.support.programs import environment, running_program
from tests.support.replacing import replaced
from wshub import HubConfig
from wshub.uvicorn.running import GRACEFUL_SHUTDOWN

SYSTEMD_ANALYZE = shutil.which("systemd-analyze")


def container() -> dict[str, Any]:
    """Return the specification of the pod in the page's manifest."""
    deployment, service = yaml.safe_load_all(program("containers.md", "deployment.yaml"))
    template = deployment["spec"]["template"]
    assert (
        service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    )
    specification: dict[str, Any] = template["spec"]
    return specification


def options_of(command: list[str]) -> dict[str, str]:
    """Return the options of ``wshub serve`` with their values."""
    return dict(zip(command[3::2], command[4::2], strict=True))


def test_a_pod_has_the_time_that_its_server_takes_to_end() -> None:
    pod = container()
    [only] = pod["containers"]
    graceful = int(options_of(only["args"])["--timeout-graceful-shutdown"])
    pause = int(only["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > graceful + pause
    text = program("containers.md", "main.py")
    spread = int(re.search(r"shutdown_spread_ms=([\d_]+)", text)[1])  # type: ignore[index]
    assert spread + 4 * HubConfig().close_timeout_ms <= graceful * 1000


def test_the_dockerfile_and_the_manifest_start_the_same_server() -> None:
    dockerfile = program("containers.md", "Dockerfile")
    [only] = container()["containers"]
    command = yaml.safe_load(re.search(r"^CMD (.*)$", dockerfile, re.M)[1])  # type: ignore[index]
    assert command == only["args"][:5]
    [port] = only["ports"]
    assert f"EXPOSE {port['containerPort']}" in dockerfile


def test_the_server_of_a_pod_answers_its_probes_and_closes_when_it_is_told_to(tmp_path: Path) -> None:
    write_programs("containers.md", tmp_path)
    port = free_port()
    [only] = container()["containers"]
    command = [part.replace("0.0.0.0", "127.0.0.1") for part in only["args"]]
    variables = environment(WSHUB_FORWARDED_ALLOW_IPS="127.0.0.0/8", WSHUB_PORT=str(port))

    async def scenario(process: subprocess.Popen[str]) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as probe:
            for name in ("readinessProbe", "livenessProbe"):
                assert (await probe.get(only[name]["httpGet"]["path"])).status_code == 200
        url = f"ws://127.0.0.1:{port}/chat"
        async with websockets.connect(url, proxy=None) as one, websockets.connect(url, proxy=None) as two:
            await one.send("hello")
            assert await one.recv() == await two.recv() == "hello"
            process.send_signal(signal.SIGTERM)
            # The two closes are spread over twenty seconds: one comes at once, and the other connection still works.
            await asyncio.wait(
                [asyncio.ensure_future(each.wait_closed()) for each in (one, two)], return_when="FIRST_COMPLETED"
            )
            first, second = (one, two) if one.close_code else (two, one)
            assert (first.close_code, second.close_code) == (1001, None)
            await second.send("still here")
            assert await second.recv() == "still here"
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)

    with running_program([sys.executable, "-m", *command], port=port, env=variables, cwd=tmp_path) as server:
        asyncio.run(asyncio.wait_for(scenario(server.process), 50))


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    assert SYSTEMD_ANALYZE is not None
    unit = replaced(
        program("systemd.md", "chat.service"), {"/srv/chat/.venv/bin/wshub": "/bin/true", "User=chat\n": ""}
    )
    (tmp_path / "chat.service").write_text(unit)
    drop_in = tmp_path / "chat.service.d"
    drop_in.mkdir()
    (drop_in / "broker.conf").write_text(program("systemd.md", "broker.conf"))
    (drop_in / "metrics.conf").write_text(program("monitoring.md", "metrics.conf"))
    verify = [SYSTEMD_ANALYZE, "verify", "--man=no", str(tmp_path / "chat.service")]
    variables = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    result = subprocess.run(verify, env=variables, capture_output=True, text=True, timeout=60, check=False)
    # It also complains about units of the machine itself.
    ours = ("chat.service", "broker.conf", "metrics.conf")
    assert [line for line in result.stderr.splitlines() if any(name in line for name in ours)] == []


def test_the_command_of_the_unit_serves_on_its_socket(tmp_path: Path, socket_directory: Path) -> None:
    unit = program("systemd.md", "chat.service")
    write_programs("containers.md", tmp_path)
    uds = str(socket_directory / "chat.sock")
    words = shlex.split(re.search(r"^ExecStart=(.*)$", unit, re.M)[1])  # type: ignore[index]
    command = [sys.executable, "-m", "wshub", *[word.replace("/run/chat/chat.sock", uds) for word in words[1:]]]
    variables = environment(RUNTIME_DIRECTORY=str(socket_directory))

    async def scenario() -> None:
        async with websockets.unix_connect(uds, "ws://localhost/chat", proxy=None) as client:
            await client.send("hello")
            assert await client.recv() == "hello"
        # The workers have met in the directory that systemd removes.
        assert any(name.startswith("wshub-") for name in os.listdir(socket_directory))

    with running_program(command, uds=uds, env=variables, cwd=tmp_path) as server:
        asyncio.run(asyncio.wait_for(scenario(), 30))
        assert "Traceback" not in server.end()
    assert list(socket_directory.iterdir()) == []


def test_systemd_waits_longer_than_the_server_takes_to_end() -> None:
    unit = program("systemd.md", "chat.service")
    assert "TimeoutStopSec=70" in unit
    assert GRACEFUL_SHUTDOWN < 70
    assert (
        f"longer than `--timeout-graceful-shutdown`, {GRACEFUL_SHUTDOWN} s by default" in page("systemd.md").read_text()
    )
