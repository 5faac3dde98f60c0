"""The example of several nodes: its program and its configuration of nginx, with a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from pathlib import Path

import httpx
import pytest
import websockets

from tests.support import nginx
from tests.support.free_ports import free_port
from tests.support.programs import environment, running_program
from tests.support.redis_engine import RedisEngine

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cluster"


def configuration(prefix: Path, port: int, nodes: list[int]) -> str:
    """Return the example's configuration of nginx, for another port and nodes of this machine."""
    text = (EXAMPLE / "nginx.conf").read_text()
    for number, node in enumerate(nodes, 1):
        assert f"server node-{number}:8000;" in text
        text = text.replace(f"node-{number}:8000", f"127.0.0.1:{node}")
    assert "listen 8080;" in text
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};")
    folders = "".join(f"{kind}_temp_path {prefix}/{kind}; " for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    text = text.replace("http {", f"http {{ access_log off; client_body_temp_path {prefix}/body; {folders}")
    return f"daemon off; master_process off; pid {prefix}/nginx.pid; error_log stderr;\n{text}"


@pytest.mark.one_loop
@pytest.mark.skipif(nginx.PATH is None, reason="there is no nginx on this machine")
async def test_members_on_two_nodes_behind_nginx_talk(redis_engine: RedisEngine, tmp_path: Path) -> None:
    assert nginx.PATH is not None
    nodes = [free_port(), free_port()]
    port = free_port()
    file = tmp_path / "nginx.conf"
    file.write_text(configuration(tmp_path, port, nodes))
    variables = environment(WSHUB_BROKER=redis_engine.url)
    with contextlib.ExitStack() as programs:
        for node in nodes:
            command = [sys.executable, "-m", "wshub", "serve", "main:app", "--port", str(node)]
            programs.enter_context(running_program(command, port=node, env=variables, cwd=EXAMPLE))
        programs.enter_context(running_program([nginx.PATH, "-p", str(tmp_path), "-c", str(file)], port=port))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            while (await client.get("/health/ready")).status_code != 200 or len(
                (await client.get("/nodes")).json()
            ) < 2:
                await asyncio.sleep(0.05)
            async with contextlib.AsyncExitStack() as stack:
                members = [
                    await stack.enter_async_context(websockets.connect(f"ws://127.0.0.1:{port}/chat", proxy=None))
                    for _ in range(10)
                ]
                # nginx gives each node its share.
                while sorted(node["connections"] for node in (await client.get("/nodes")).json()) != [5, 5]:
                    await asyncio.sleep(0.05)
                await members[0].send("hello")
                assert [await member.recv() for member in members] == ["hello"] * len(members)


def test_the_files_of_the_example_agree() -> None:
    compose = (EXAMPLE / "compose.yaml").read_text()
    assert set(re.findall(r"^  (node-\d):", compose, re.MULTILINE)) == set(
        re.findall(r"server (node-\d):8000;", (EXAMPLE / "nginx.conf").read_text())
    )
    assert "EXPOSE 8000" in (EXAMPLE / "Dockerfile").read_text()
    assert "8080:8080" in compose
