"""``wshub serve --workers`` with an engine: who is in a room when a worker is killed, by the clocks of all."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.cli.test_workers_presence import served_room
from tests.support.nats_engine import running_jetstream
from tests.support.redis_cluster import running_cluster
from tests.support.redis_engine import running_engine


@pytest.fixture(params=["redis", "valkey", "cluster", "2.9", "current"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an engine."""
    if request.param in ("redis", "valkey"):
        with running_engine(request.param) as redis:
            yield redis.url
    elif request.param == "cluster":
        with running_cluster("valkey") as setup:
            yield setup.url
    else:
        with running_jetstream(request.param) as nats:
            yield nats.url


@pytest.mark.long
@pytest.mark.parametrize("run", ["asyncio"], indirect=True)
async def test_users_of_a_killed_node_leave_once_unless_they_come_back(
    engine: str, tmp_path, socket_directory, monkeypatch
) -> None:
    monkeypatch.setenv("WSHUB_BROKER", engine)
    async with served_room(tmp_path, socket_directory, monkeypatch, grace_ms=4_000) as room:
        process = room.users[0].process
        affected = [user for user in room.users[1:] if user.process == process]
        leaving = asyncio.create_task(room.users[0].leave())
        os.kill(process, signal.SIGKILL)
        await leaving
        while not all(user.process and user.process != process for user in affected):
            await asyncio.sleep(0.01)
        # The engine keeps the entries of the node until the others take it for dead, and for the grace.
        while not room.told()["leave 0"]:
            await asyncio.sleep(0.02)
        await room.all_know(*room.users[1:])
        assert room.told() == room.joins() + Counter(["leave 0"])
