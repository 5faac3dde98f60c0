"""The shipped types fit a strictly checked program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import wshub


def test_types_are_shipped() -> None:
    assert (Path(wshub.__file__).parent / "py.typed").exists()


TYPED = """
from typing import assert_type

from wshub import Connection, EventHandler, Hub, HubConfig, Message

hub = Hub(HubConfig(ping_interval_ms=1000, slow_consumer="latest"))
HubConfig(ping_interval_ms="1000")  # type: ignore[arg-type]
HubConfig(slow_consumer="newest")  # type: ignore[arg-type]
HubConfig(ping_interval=1)  # type: ignore[call-arg]


def on_message(connection: Connection, message: Message) -> None:
    assert_type(message.data, str | bytes)
    connection.send(message, compress=False, slow_consumer="latest", key="price")
    connection.send(bytearray(b"binary"))
    connection.send(5)  # type: ignore[arg-type]
    connection.send("text", key=5)  # type: ignore[arg-type]
    assert_type(hub.broadcast(message, room="lobby", exclude=connection), int)
    assert_type(connection.close_code, int | None)


async def endpoint(connection: Connection) -> None:
    assert_type(await connection.receive(timeout=5), Message)
    async for message in connection:
        assert_type(message, Message)


hub.serve("127.0.0.1", 8080, EventHandler(on_message=on_message))
hub.serve("127.0.0.1", 8080, endpoint)
hub.serve("127.0.0.1", "8080", endpoint)  # type: ignore[arg-type]
"""


def test_types_are_those_that_a_strict_program_expects(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(TYPED)
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(program)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
