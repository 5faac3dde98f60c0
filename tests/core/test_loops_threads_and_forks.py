"""The environment of a hub: debug mode, several loops and threads, forks, and handlers that act on others."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading

import pytest
import uvloop

from tests.support.raw_peers import REQUEST, masked, raw_peer
from tests.support.serving_hub import connected, serving
from wshub import Connection, EventHandler, Frame, Hub, Message


def echo(connection: Connection, message: Message) -> None:
    connection.send(message)


async def converse(url: str, text: str) -> None:
    async with connected(url) as client:
        for number in range(200):
            await client.send(f"{text} {number}")
            assert await client.recv() == f"{text} {number}"


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_in_debug_mode_finds_nothing_wrong(factory, caplog) -> None:
    async def scenario() -> None:
        async with serving(EventHandler(on_message=echo)) as (hub, url):
            await asyncio.gather(*(converse(url, f"client {number}") for number in range(3)))
            hub.broadcast("nobody")

    with asyncio.Runner(loop_factory=factory, debug=True) as runner:
        runner.run(asyncio.wait_for(scenario(), 30))
    assert [record.message for record in caplog.records if record.name.startswith("wshub")] == []


def test_two_loops_in_two_threads_have_a_hub_each() -> None:
    failures: list[BaseException] = []
    hubs: list[Hub] = []
    ready = threading.Barrier(2)

    async def scenario(name: str) -> None:
        async with serving(EventHandler(on_message=echo)) as (hub, url):
            hubs.append(hub)
            ready.wait(10)
            await asyncio.gather(converse(url, name), converse(url, name))
            ready.wait(10)
            # This runs in the thread of the other hub.
            other = hubs[0] if hubs[1] is hub else hubs[1]
            other.broadcast("from the other thread")
            ready.wait(10)

    def run(name: str) -> None:
        try:
            asyncio.run(asyncio.wait_for(scenario(name), 30))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert all(hub.stats().messages_received == 400 for hub in hubs)


async def test_a_handler_may_close_all_connections_in_the_middle_of_a_broadcast() -> None:
    closed: list[int] = []

    def on_message(connection: Connection, message: Message) -> None:
        hub = connection.hub
        assert hub.broadcast("before") == 5
        for member in hub.room_members("all"):
            member.close(4000)
            assert hub.broadcast("between", room="all") == hub.room_size("all")
        assert hub.broadcast("after") == 0

    handler = EventHandler(
        on_open=lambda connection: connection.join("all"),
        on_message=on_message,
        on_close=lambda connection, code, reason: closed.append(code),
    )
    async with serving(handler) as (hub, url):
        managers = [raw_peer(url) for _ in range(5)]
        peers = [await manager.__aenter__() for manager in managers]
        while hub.room_size("all") < 5:
            await asyncio.sleep(0)
        peers[0].send(Frame.text("go"))
        received = []
        for peer in peers:
            frames = []
            while (frame := await peer.frame()).opcode.name == "TEXT":
                frames.append(frame.payload)
            assert frames[0] == b"before"
            received.append(len(frames))
            peer.send(Frame.close(4000))
            peer.writer.close()
        assert sorted(received) == [1, 2, 3, 4, 5]
        while hub.connection_count:
            await asyncio.sleep(0)
        assert closed == [4000] * 5
        counts = hub.stats()
        assert counts.messages_accepted == counts.messages_delivered == sum(received)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
async def test_a_handler_that_forks_leaves_the_connections_with_the_parent() -> None:
    def on_message(connection: Connection, message: Message) -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        connection.send(message)

    async with serving(EventHandler(on_message=on_message)) as (hub, url):
        async with connected(url) as client:
            for number in range(3):
                await client.send(f"{number}")
                assert await client.recv() == f"{number}"
        while hub.connection_count:
            await asyncio.sleep(0)
        assert hub.stats().closes == {1000: 1}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
async def test_a_child_that_outlives_its_parents_connections_keeps_none_of_them_open() -> None:
    """A forked process inherits the sockets; the peer still sees the connection end."""

    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (_, url), raw_peer(url) as peer:
        connection = await opened
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
        try:
            connection.close(1000)
            assert await peer.close_code() == 1000
            peer.send(Frame.close(1000))
            assert await peer.reader.read() == b""
        finally:
            os.close(writing)
            await asyncio.to_thread(os.waitpid, child, 0)


STATES = {
    "a request is half read": "client.sendall(REQUEST[:40]); await turns()",
    "on_upgrade is asked": "waits.append(1); client.sendall(REQUEST); await turns()",
    "a connection is open": "await opened()",
    "a message is queued": "(await opened()).send('queued')",
    "a peer does not read": "connection = await opened(); connection.send(bytes(16_000_000)); await turns()",
    "a message is half read": "await opened(); client.sendall(TEXT[:5]); await turns()",
    "a handler is suspended": "await opened(); client.sendall(TEXT); await turns()",
    "receive() waits": "connection = await opened(); asyncio.ensure_future(connection.receive()); await turns()",
    "drain() waits": (
        "connection = await opened(); connection.send(bytes(16_000_000)); "
        "asyncio.ensure_future(connection.drain()); await turns()"
    ),
    "the hub closes a connection": "(await opened()).close(1000); await turns()",
    "the peer has closed": "await opened(); client.sendall(CLOSE); await turns()",
    "the peer has reset": "await opened(); client.close()",
    "the hub is closing": "await opened(); asyncio.ensure_future(hub.close()); await turns()",
}


@pytest.mark.one_loop
@pytest.mark.parametrize("end", ["stopped and closed", "closed by asyncio.run"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_loop_may_end_in_every_state(loop: str, state: str, end: str) -> None:
    """The program does not crash, and prints only Python's own messages about pending tasks."""
    program = textwrap.dedent(
        """
        import asyncio, gc, socket, sys
        import uvloop
        from wshub import EventHandler, Hub

        waits = []
        connections = []

        async def on_upgrade(request):
            if waits:
                await asyncio.Event().wait()

        async def on_message(connection, message):
            await asyncio.Event().wait()

        hub = Hub(on_upgrade=on_upgrade)
        client = socket.socket()

        async def turns():
            for _ in range(20):
                await asyncio.sleep(0)

        async def opened():
            client.sendall(REQUEST)
            while not connections:
                await asyncio.sleep(0)
            connections[0].join("room")
            return connections[0]

        async def main():
            on = {} if "receive()" in STATE else {"on_message": on_message}
            server = await hub.serve("127.0.0.1", 0, EventHandler(on_open=connections.append, **on)).__aenter__()
            client.connect(("127.0.0.1", server.port))
            PROGRAM
            if END == "stopped and closed":
                asyncio.get_running_loop().stop()
                await asyncio.sleep(60)

        factory = uvloop.new_event_loop if LOOP == "uvloop" else asyncio.new_event_loop
        if END == "stopped and closed":
            loop = factory()
            loop.create_task(main())
            loop.run_forever()
            loop.close()
        else:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(main())
        for connection in connections:
            try:
                connection.send("nobody will send this")
                connection.close()
            except Exception as error:
                assert type(error).__name__ in ("ConnectionClosed", "ConnectionLost"), error
        hub.broadcast("nobody")
        assert hub.stats().messages_pending >= 0
        del hub
        connections.clear()
        gc.collect()
        print("survived")
        """
    )
    for name, value in (
        ("PROGRAM", STATES[state]),
        ("REQUEST", repr(REQUEST)),
        ("TEXT", repr(masked(Frame.text("a message")))),
        ("CLOSE", repr(masked(Frame.close(1000)))),
        ("STATE", repr(state)),
        ("END", repr(end)),
        ("LOOP", repr(loop)),
    ):
        program = program.replace(name, value)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "survived\n", result.stderr
    assert result.returncode == 0
    assert "ignored" not in result.stderr, result.stderr


async def test_threads_may_call_every_method() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (hub, url), connected(url) as client:
        connection = await opened

        def work() -> None:
            for index in range(100):
                connection.send(str(index))
            connection.send_text("text")
            connection.send_binary(b"binary")
            connection.send_json({"a": 1})
            connection.send_ping(b"p")
            connection.send_pong(b"q")
            connection.join("room")
            hub.join_room(connection, "other")
            connection.leave("other")
            hub.broadcast_to_room("room", "to the room")
            with pytest.raises(TypeError):
                connection.send(3)

        await asyncio.to_thread(work)
        expected = [*(str(index) for index in range(100)), "text", b"binary", '{"a":1}']
        assert [await client.recv() for _ in expected] == expected
        assert connection.rooms == {"room"}
