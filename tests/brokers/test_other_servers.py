"""Other servers with several workers: a directory in ``WSHUB_BROKER`` joins their hubs."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.support.free_ports import free_port
from tests.support.programs import environment, running_program
from tests.support.workers_program import PROGRAM, clients, received_by_all

WORKERS = 2

COMMANDS = {
    "uvicorn, wshub": "uvicorn program:app --port {port} --workers 2 --ws wshub.uvicorn.protocol:WebSocketProtocol",
    "uvicorn": "uvicorn program:app --port {port} --workers 2 --ws websockets-sansio",
    "hypercorn": "hypercorn program:app --bind 127.0.0.1:{port} --workers 2",
    "gunicorn": "gunicorn program:app --bind 127.0.0.1:{port} --workers 2 --worker-class uvicorn_worker.UvicornWorker",
    "granian": "granian program:app --interface asgi --port {port} --workers 2",
}


@pytest.mark.one_loop
@pytest.mark.parametrize("server", COMMANDS)
async def test_a_broadcast_reaches_the_members_on_every_worker(server, socket_directory, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    port = free_port()
    command = [sys.executable, "-m", *COMMANDS[server].format(port=port).split()]
    variables = environment(WSHUB_BROKER=f"workers:{socket_directory}")
    with running_program(command, port=port, env=variables, cwd=tmp_path):
        async with clients(f"127.0.0.1:{port}", WORKERS) as members:
            await members[0].websocket.send("hello")
            assert await received_by_all(members, 1) == [["hello"]] * len(members)
            # All workers know all members.
            for client in members:
                while await client.ask("present?") != len(members):
                    await asyncio.sleep(0.02)
