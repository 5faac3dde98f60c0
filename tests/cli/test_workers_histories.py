"""``wshub serve --workers``: rooms with history lose nothing while all workers are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
import websockets

from tests.support.history_nodes import Client
from tests.support.wshub_serve import PATIENT_SUPERVISOR, serving

# All workers begin at once, on a machine that does much else.
pytestmark = pytest.mark.hangs_after(300)

WORKERS = 4
MEMBERS = 12

PROGRAM = """
import json
import os

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from wshub import BrokerError, HistoryConfig, Hub, Position

hub = Hub()
hub.configure_room(
    "room",
    history=HistoryConfig(
        size=10_000,
        encode=lambda found: json.dumps([found.offset, found.epoch, found.data]),
        encode_gap=lambda gap: json.dumps(["gap", gap]),
    ),
)


async def serve(connection):
    connection.send_json(["process", os.getpid()])
    async for asked in connection.iter_json():
        if isinstance(asked, dict):
            try:
                await hub.publish(asked["text"], room="room", idempotency_key=asked["text"])
            except BrokerError:
                connection.send_json(["failed", asked["text"]])
            else:
                connection.send_json(["published", asked["text"]])
        else:
            position = Position(*asked) if asked is not None else None
            recovery = await connection.recover("room", position)
            place = recovery.position
            connection.send_json(["back", recovery.sent, recovery.gap, place.offset, place.epoch])


app = Starlette(routes=[WebSocketRoute("/", hub.asgi(serve))])
"""


class Member(Client):
    """A client that comes back whenever it is cut off, until it has enough."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.processes: list[int] = []
        self.task = asyncio.create_task(self.stay())

    async def stay(self) -> None:
        while True:
            with contextlib.suppress(OSError, websockets.WebSocketException):
                await self.come_back(self.url)
                assert self._reader is not None
                await asyncio.wait([self._reader])

    def _take(self, message: list) -> None:
        if message[0] == "process":
            self.processes.append(message[1])
        else:
            super()._take(message)


async def publish(url: str, texts: list[str], published: list[str]) -> None:
    """Publish each of these texts, again with the same key if the worker goes."""
    left = list(texts)
    while left:
        with contextlib.suppress(OSError, websockets.WebSocketException):
            async with websockets.connect(url, proxy=None, ping_interval=None) as socket:
                await socket.recv()
                while left:
                    await socket.send(json.dumps({"text": left[0]}))
                    outcome, text = json.loads(await socket.recv())
                    assert text == left[0]
                    if outcome == "published":
                        published.append(left.pop(0))
                        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def members_of(url: str):
    members = [Member(url) for _ in range(MEMBERS)]
    try:
        while not all(member.is_back for member in members):
            await asyncio.sleep(0.01)
        yield members
    finally:
        for member in members:
            member.task.cancel()
        await asyncio.wait([member.task for member in members])
        for member in members:
            await member.leave()


async def until_each_has(members: list[Member], texts: set[str]) -> None:
    while not all(texts <= set(member.data) for member in members):
        for member in members:
            assert not member.task.done(), member.task.exception()
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def serving_room(
    directory: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, program: str = PROGRAM
):
    (directory / "program.py").write_text(program)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    with serving("program:app", "--app-dir", str(directory), "--workers", str(WORKERS), *arguments) as server:
        yield server


@pytest.mark.one_loop
async def test_each_client_gets_each_message_once_while_the_workers_are_replaced(
    tmp_path, socket_directory, monkeypatch
) -> None:
    with serving_room(tmp_path, socket_directory, monkeypatch, *PATIENT_SUPERVISOR) as server:
        url = f"ws://{server.address}/"
        async with asyncio.timeout(250), members_of(url) as members:
            before = {process for member in members for process in member.processes}
            published: list[str] = []
            texts = [[f"{publisher} {number}" for number in range(10_000)] for publisher in range(3)]
            publishers = [asyncio.create_task(publish(url, some, published)) for some in texts]
            server.process.send_signal(signal.SIGHUP)
            # Every member has moved to a new worker.
            while not all(member.is_back and set(member.processes) - before for member in members):
                await asyncio.sleep(0.01)
            for publisher in publishers:
                publisher.cancel()
            await asyncio.wait(publishers)
            await until_each_has(members, set(published))
            assert len(published) > 100
            for member in members:
                assert member.gaps == []
                assert len(member.data) == len(set(member.data))
                offsets = [offset for _, offset in member.offsets]
                assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
                assert len({epoch for epoch, _ in member.offsets}) == 1
            longest = max((member.data for member in members), key=len)
            for publisher in range(3):
                numbers = [int(text.split()[1]) for text in longest if text.startswith(f"{publisher} ")]
                assert numbers == sorted(numbers)
        output = await asyncio.to_thread(server.end)
        assert "Traceback" not in output


async def test_members_are_told_when_a_killed_worker_takes_the_history_with_it(
    tmp_path, socket_directory, monkeypatch
) -> None:
    with serving_room(tmp_path, socket_directory, monkeypatch) as server:
        url = f"ws://{server.address}/"
        async with asyncio.timeout(250), members_of(url) as members:
            published: list[str] = []
            await publish(url, ["before"], published)
            await until_each_has(members, {"before"})
            killed: set[int] = set()
            number = 0
            # One of the workers owns the room.
            while not all("epoch" in member.gaps for member in members):
                process = members[0].processes[-1]
                if process not in killed and members[0].is_back:
                    killed.add(process)
                    os.kill(process, signal.SIGKILL)
                number += 1
                await publish(url, [f"after {number}"], published)
                await asyncio.sleep(0.05)
            await publish(url, ["the last"], published)
            await until_each_has(members, {"the last"})
            for member in members:
                assert len(member.data) == len(set(member.data))
                assert len({epoch for epoch, _ in member.offsets}) >= 2
        assert "Traceback" not in await asyncio.to_thread(server.end)


ROOMS_PROGRAM = """
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from wshub import HistoryConfig, Hub

first, second = Hub(name="first"), Hub(name="second")
for hub in (first, second):
    hub.configure_room("room:*", history=HistoryConfig())


async def serve(connection):
    async for room in connection.iter_json():
        published = [await hub.publish("message", room=room) for hub in (first, second)]
        connection.send_json([each.position.epoch for each in published])


async def endpoint(websocket):
    await serve(await second.accept(websocket))


app = Starlette(routes=[WebSocketRoute("/", first.asgi(serve)), WebSocketRoute("/endpoint", endpoint)])
"""


async def epochs_of_rooms(url: str) -> list[list[str]]:
    """Publish in each of 20 rooms of two hubs over one connection. Return the epochs of their histories."""
    while True:
        with contextlib.suppress(OSError, websockets.WebSocketException):
            async with websockets.connect(url, proxy=None, ping_interval=None) as socket:
                epochs = []
                for number in range(20):
                    await socket.send(json.dumps(f"room:{number}"))
                    epochs.append(json.loads(await socket.recv()))
                return epochs
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("run", "reactor"), [("asyncio", "1"), ("asyncio", "0")], indirect=["run"], ids=["reactor", "transports"]
)
async def test_workers_that_have_had_no_connection_hand_their_histories_over(
    reactor, tmp_path, socket_directory, monkeypatch
) -> None:
    monkeypatch.setenv("WSHUB_USE_REACTOR", reactor)
    with serving_room(tmp_path, socket_directory, monkeypatch, *PATIENT_SUPERVISOR, program=ROOMS_PROGRAM) as server:
        url = f"ws://{server.address}/"
        async with asyncio.timeout(250):
            before = await epochs_of_rooms(url)
            former = server.children()
            server.process.send_signal(signal.SIGHUP)
            # One child stays: what looks after the memory that processes share.
            while len(server.children() & former) > 1 or len(server.children()) < len(former):
                await asyncio.sleep(0.05)
            assert await epochs_of_rooms(url) == before
        assert "Traceback" not in await asyncio.to_thread(server.end)
