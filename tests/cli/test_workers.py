"""``wshub serve --workers``: the hubs of the workers act as one, with nothing to configure."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.programs import environment
from tests.support.workers_program import PROGRAM, clients, received_by_all
from tests.support.wshub_serve import PATIENT_SUPERVISOR, serving

WORKERS = 3


@contextlib.contextmanager
def serving_workers(directory: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str):
    """Serve the program with several workers, whose files are below a directory of their own."""
    (directory / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    with serving("program:app", "--app-dir", str(directory), "--workers", str(WORKERS), *arguments) as server:
        yield server
    assert list(temporary.iterdir()) == []


async def test_a_broadcast_reaches_the_members_on_every_worker_once(tmp_path, socket_directory, monkeypatch) -> None:
    with serving_workers(tmp_path, socket_directory, monkeypatch) as server:
        async with clients(server.address, WORKERS) as members:
            for number, client in enumerate(members):
                await client.websocket.send(f"message {number}")
            expected = Counter(f"message {number}" for number in range(len(members)))
            for received in await received_by_all(members, len(members)):
                assert Counter(received) == expected
        assert "Traceback" not in await asyncio.to_thread(server.end)


@pytest.mark.one_loop
async def test_a_worker_that_is_killed_is_replaced_and_joined(tmp_path, socket_directory, monkeypatch) -> None:
    with serving_workers(tmp_path, socket_directory, monkeypatch) as server:
        async with clients(server.address, WORKERS) as members:
            os.kill(int(members[0].process), signal.SIGKILL)
        async with clients(server.address, WORKERS) as members:
            await members[0].websocket.send("hello")
            assert await received_by_all(members, 1) == [["hello"]] * len(members)


@pytest.mark.one_loop
async def test_workers_that_are_replaced_on_sighup_are_joined(tmp_path, socket_directory, monkeypatch) -> None:
    with serving_workers(tmp_path, socket_directory, monkeypatch, *PATIENT_SUPERVISOR) as server:
        async with clients(server.address, WORKERS) as before:
            processes = {client.process for client in before}
            server.process.send_signal(signal.SIGHUP)
            for client in before:
                await client.websocket.wait_closed()
        async with clients(server.address, WORKERS) as members:
            assert not processes & {client.process for client in members}
            await members[0].websocket.send("hello")
            assert await received_by_all(members, 1) == [["hello"]] * len(members)


@pytest.mark.one_loop
async def test_another_program_publishes_to_the_workers(tmp_path, socket_directory, monkeypatch) -> None:
    with serving_workers(tmp_path, socket_directory, monkeypatch) as server:
        async with clients(server.address, WORKERS) as members:
            (directory,) = socket_directory.iterdir()
            command = [sys.executable, "-m", "wshub", "publish", "--broker", f"workers:{directory}"]
            for arguments in (
                ["lobby", "to the room"],
                ["--user", "user of lobby", "to the user"],
                ["--all", "to all"],
            ):
                await asyncio.to_thread(
                    subprocess.run, [*command, *arguments], check=True, timeout=30, env=environment()
                )
            for received in await received_by_all(members, 3):
                assert received == ["to the room", "to the user", "to all"]
