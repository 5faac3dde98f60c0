"""``wshub publish``: the words of the command, the standard input, and the errors."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_node import until
from tests.support.history_nodes import ROOM, as_json, client_of, gap_as_json, history_node
from tests.support.programs import environment
from tests.support.serving_hub import connected
from wshub import EventHandler, HistoryConfig, Hub
from wshub.brokers.workers import WorkersBroker


async def run_publish(
    directory: Path, *arguments: str | bytes, text: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "wshub", "publish", *arguments]
    variables = environment(WSHUB_BROKER=f"workers:{directory}", PYTHONIOENCODING="latin-1")
    return await asyncio.to_thread(
        subprocess.run, command, input=text, capture_output=True, timeout=30, env=variables, check=False
    )


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["lobby", "hello"], b"", "hello"),
        (["lobby", "-5 degrees"], b"", "-5 degrees"),
        (["lobby", "-hello"], b"", "-hello"),
        (["lobby", "--help"], b"", "--help"),
        (["--user", "ann", "--all"], b"", "--all"),
        (["--all", "-5 degrees"], b"", "-5 degrees"),
        (["--all", "--", "--all"], b"", "--all"),
        (["lobby", ""], b"", ""),
        (["lobby", "é"], b"", "é"),
        (["lobby", "-"], "é\n".encode(), "é"),
        (["lobby", "-"], b"two\nlines\n\n", "two\nlines\n"),
        (["--all", "-"], b"no newline", "no newline"),
    ],
)
async def test_the_message_is_what_was_given(
    arguments: list[str], text: bytes, message: str, socket_directory: Path
) -> None:
    def opened(connection: Any) -> None:
        connection.user = "ann"
        connection.join("lobby")

    hub = Hub(broker=WorkersBroker(socket_directory))
    async with hub.serve("127.0.0.1", 0, EventHandler(on_open=opened)) as server:
        await hub.broker_started()
        async with connected(f"ws://127.0.0.1:{server.port}/") as client:
            await (await client.ping())
            done = await run_publish(socket_directory, *arguments, text=text)
            assert (done.returncode, done.stderr) == (0, b"")
            assert await client.recv() == message


async def test_a_message_is_stored_in_the_history_of_its_room(socket_directory: Path) -> None:
    config = HistoryConfig(size=2, encode=as_json, encode_gap=gap_as_json)
    broker = WorkersBroker(socket_directory)
    async with history_node(broker, config) as node, client_of(node) as client:
        for number in range(2):
            arguments = ["--history", "size=2,ttl_ms=300000", "--idempotency-key", f"key {number}", ROOM]
            for _ in range(2):
                done = await run_publish(socket_directory, *arguments, str(number))
                assert (done.returncode, done.stderr) == (0, b"")
        await until(lambda: client.data == ["0", "1"])
        assert [offset for _, offset in client.offsets] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "text", "said"),
    [
        (["lobby"], b"", b"a room and a message"),
        (["--all", "lobby", "hello"], b"", b"a room and a message"),
        (["lobby", "hello", "--all"], b"", b"give the options first"),
        (["--user", "--all", "hello"], b"", b"a room and a message"),
        (["lobby", "-"], b"\xff", b"the standard input is not UTF-8"),
        (["lobby", os.fsdecode(b"\xff")], b"", b"the message cannot be sent"),
        (["--broker", "http://localhost", "lobby", "hello"], b"", b"a broker is named by"),
        (["--history", "500", "lobby", "hello"], b"", b"such as size=500"),
        (["--history", "size=5,size=6", "lobby", "hello"], b"", b"'size=6' is no setting"),
        (["--history", "size=0", "lobby", "hello"], b"", b"size must be"),
        (["--history", "size=5", "--user", "ann", "hello"], b"", b"only a room has a history"),
        (["--idempotency-key", "7", "lobby", "hello"], b"", b"--idempotency-key needs --history"),
    ],
)
def test_what_cannot_be_sent_is_said(arguments: list[str], text: bytes, said: bytes, socket_directory: Path) -> None:
    done = asyncio.run(run_publish(socket_directory, *arguments, text=text))
    assert done.returncode != 0
    assert said in done.stderr
    assert b"Traceback" not in done.stderr
