"""``wshub serve --workers``: who is in a room, while workers are replaced and killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import websockets

from tests.support.wshub_serve import PATIENT_SUPERVISOR, Serving, serving

WORKERS = 3
USERS = 12

pytestmark = pytest.mark.hangs_after(300)

PROGRAM = """
import json
import os

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from wshub import BrokerError, Hub, PresenceConfig

hub = Hub()
events = os.open(os.environ["EVENTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def on_join(room, member):
    os.write(events, f"join {member.user}\\n".encode())


def on_leave(room, member):
    os.write(events, f"leave {member.user}\\n".encode())


hub.configure_room("room", presence=PresenceConfig(on_join=on_join, on_leave=on_leave, grace_ms=GRACE))


async def serve(connection):
    connection.user = connection.path_params["user"]
    connection.join("room", info=connection.user.upper())
    connection.send_json(os.getpid())
    async for message in connection:
        users, cursor = [], ""
        while True:
            try:
                page = await hub.presence("room", limit=5, cursor=cursor)
            except BrokerError:
                continue
            users += [[member.user, member.info] for member in page.members]
            cursor = page.cursor
            if not cursor:
                break
        connection.send_json(sorted(users))


app = Starlette(routes=[WebSocketRoute("/{user}", hub.asgi(serve))])
"""


class User:
    """A user who comes back whenever the connection is lost."""

    def __init__(self, address: str, name: str) -> None:
        self.name = name
        self.url = f"ws://{address}/{name}"
        self.processes: list[int] = []
        self.socket: websockets.ClientConnection | None = None
        self.task = asyncio.create_task(self.stay())

    async def stay(self) -> None:
        while True:
            with contextlib.suppress(OSError, websockets.WebSocketException):
                async with websockets.connect(self.url, proxy=None, ping_interval=None) as socket:
                    self.processes.append(json.loads(await socket.recv()))
                    self.socket = socket
                    await socket.wait_closed()
            self.socket = None
            await asyncio.sleep(0.01)

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    @property
    def process(self) -> int:
        return self.processes[-1] if self.socket is not None else 0

    async def who(self) -> list[str]:
        """Return the users that the worker of this one knows; nobody if the connection is lost meanwhile."""
        if self.socket is None:
            return []
        with contextlib.suppress(websockets.WebSocketException):
            await self.socket.send("who?")
            found = json.loads(await self.socket.recv())
            assert all(info == user.upper() for user, info in found)
            return [user for user, _ in found]
        return []


class Room:
    """A server, its users, and what its functions were called with."""

    def __init__(self, server: Serving, users: list[User], events: Path) -> None:
        self.server = server
        self.users = users
        self.events = events

    def told(self) -> Counter[str]:
        return Counter(self.events.read_text().splitlines())

    def joins(self) -> Counter[str]:
        """Return what must have been told if each user of the beginning has joined once."""
        return Counter(f"join {number}" for number in range(USERS))

    def told_of(self) -> dict[str, list[str]]:
        """Return the events of each user, in order."""
        told: dict[str, list[str]] = {}
        for line in self.events.read_text().splitlines():
            event, user = line.split()
            told.setdefault(user, []).append(event)
        return told

    async def all_know(self, *users: User) -> None:
        """Wait until the worker of each of these users knows exactly them.

        A connection that was lost is listed until the grace is over.
        """
        expected = {user.name for user in users}
        for user in users:
            while set(await user.who()) != expected:
                await asyncio.sleep(0.02)


async def spread(users: list[User]) -> None:
    """Wait until several workers have users: those that had started first got all of them."""
    while True:
        while not all(user.process for user in users):
            await asyncio.sleep(0.01)
        if len({user.process for user in users}) > 1:
            return
        for user in users[: USERS // 2]:
            if user.socket is not None:
                await user.socket.close()


@contextlib.asynccontextmanager
async def served_room(
    directory: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, grace_ms: int
) -> AsyncIterator[Room]:
    (directory / "program.py").write_text(PROGRAM.replace("GRACE", str(grace_ms)))
    events = directory / "events"
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("EVENTS", str(events))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    with serving("program:app", "--app-dir", str(directory), "--workers", str(WORKERS), *arguments) as server:
        users = [User(server.address, str(number)) for number in range(USERS)]
        room = Room(server, users, events)
        try:
            await spread(users)
            await room.all_know(*users)
            yield room
        finally:
            for user in users:
                await user.leave()
        assert "Traceback" not in await asyncio.to_thread(server.end)


# The server has the loop of its own choice, whatever that of the test is.
@pytest.mark.parametrize("run", ["asyncio"], indirect=True)
async def test_nobody_joins_or_leaves_while_all_workers_are_replaced(tmp_path, socket_directory, monkeypatch) -> None:
    async with served_room(tmp_path, socket_directory, monkeypatch, *PATIENT_SUPERVISOR, grace_ms=120_000) as room:
        before = {user.process for user in room.users}
        room.server.process.send_signal(signal.SIGHUP)
        while not all(user.process and user.process not in before for user in room.users):
            await asyncio.sleep(0.02)
        await room.all_know(*room.users)
        assert room.told() == room.joins()


@pytest.mark.parametrize("run", ["uvloop"], indirect=True)
async def test_users_of_a_killed_worker_leave_once_unless_they_come_back(
    tmp_path, socket_directory, monkeypatch
) -> None:
    async with served_room(tmp_path, socket_directory, monkeypatch, grace_ms=4_000) as room:
        process = room.users[0].process
        affected = [user for user in room.users if user.process == process]
        # The first one stays away, and the others come back.
        await_end = asyncio.create_task(room.users[0].leave())
        os.kill(process, signal.SIGKILL)
        await await_end
        staying = room.users[1:]
        while not all(user.process and user.process != process for user in affected if user is not room.users[0]):
            await asyncio.sleep(0.01)
        await room.all_know(*staying)
        while not room.told()["leave 0"]:
            await asyncio.sleep(0.02)
        # On a busy machine, some may come back after the grace. Then they have left, and join again.
        await room.all_know(*staying)
        while not all(room.told_of()[user.name][-1] == "join" for user in staying):
            await asyncio.sleep(0.02)
        for user, told in room.told_of().items():
            assert told == (["join", "leave"] * len(told))[: len(told)], user
            assert (told[-1] == "leave") == (user == "0"), (user, told)
