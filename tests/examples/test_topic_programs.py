"""The programs in ``docs/topics``: each shows what its page says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import websockets

from tests.support.free_ports import free_port
from tests.support.nats_engine import running_nats
from tests.support.pages import blocks, load, program, served, snippet
from tests.support.programs import environment, running_program
from tests.support.raw_peers import raw_peer
from tests.support.redis_engine import running_engine
from tests.support.replacing import replaced
from tests.support.serving_hub import connected
from tests.support.wshub_serve import serving
from wshub import Frame
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.publisher import AsyncPublisher

OFFER = b"permessage-deflate; client_max_window_bits"


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0)


async def end_of(client: websockets.ClientConnection) -> tuple[int | None, str | None]:
    await client.wait_closed()
    return client.close_code, client.close_reason


def prints_of(module: Any) -> asyncio.Queue[str]:
    """Collect what a program prints."""
    printed: asyncio.Queue[str] = asyncio.Queue()
    module.print = lambda *values: printed.put_nowait(" ".join(map(str, values)))
    return printed


async def decoded(client: websockets.ClientConnection) -> Any:
    return json.loads(await client.recv())


# The programs as the pages start them


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("topics/lifecycle.md", "life.py"),
        ("topics/compression.md", "quotes.py"),
        ("topics/threads.md", "thermometer.py"),
    ],
)
def test_a_program_serves_until_it_is_interrupted(page: str, name: str, tmp_path: Path) -> None:
    port = free_port()
    source = program(page, name)
    assert "8080" in source
    (tmp_path / name).write_text(source.replace("8080", str(port)))

    async def scenario() -> None:
        async with connected(f"ws://127.0.0.1:{port}") as client:
            assert await client.recv()

    with running_program([sys.executable, name], port=port, env=environment(), cwd=tmp_path) as running:
        asyncio.run(asyncio.wait_for(scenario(), 20))
        assert "Traceback" not in running.end(signal.SIGINT)
        assert running.process.returncode == 0


@pytest.mark.parametrize(
    ("page", "name", "path", "says"),
    [
        ("topics/rooms.md", "members", "/rooms?name=ann", "join red"),
        ("topics/slow-readers.md", "ticker", "/prices", "hello"),
        ("topics/errors.md", "careful", "/orders?token=a-token-of-ann", "{}"),
        ("topics/brokers.md", "history", "/news", "say hello"),
    ],
)
def test_wshub_serves_a_program(page: str, name: str, path: str, says: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(program(page, f"{name}.py"))
    assert f"wshub serve {name}:app\n" in blocks(page, "sh")

    async def scenario(address: str) -> None:
        async with connected(f"ws://{address}{path}") as client:
            await client.send(says)
            assert await client.recv()

    with serving(f"{name}:app", "--app-dir", str(tmp_path)) as server:
        asyncio.run(asyncio.wait_for(scenario(server.address), 20))
        assert "Traceback" not in server.end()


def test_a_program_keeps_an_archive_of_all_chats(tmp_path: Path) -> None:
    (tmp_path / "archive.py").write_text(program("topics/rooms.md", "archive.py"))
    assert "WSHUB_BROKER=nats://localhost python archive.py\n" in blocks("topics/rooms.md", "sh")

    async def scenario(url: str) -> None:
        database = sqlite3.connect(tmp_path / "archive.db")
        async with AsyncPublisher(url) as publisher:
            await publisher.publish("text", room="chat:1")
            await publisher.publish("not kept", room="news")
            await publisher.publish(b"\x00\xff", room="chat:2")
        while len(rows := database.execute("SELECT room, data FROM messages").fetchall()) < 2:
            await asyncio.sleep(0.01)
        assert rows == [("chat:1", "text"), ("chat:2", b"\x00\xff")]
        database.close()

    with running_nats("current") as engine:
        process = subprocess.Popen(
            [sys.executable, "archive.py"],
            env=environment(WSHUB_BROKER=engine.url),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell has what runs in the background ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "watching chat:*\n"
            asyncio.run(asyncio.wait_for(scenario(engine.url), 20))
        finally:
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=60)
        assert (said, process.returncode) == ("", 0)


# The life of a connection


async def test_the_life_of_a_connection_is_told_in_events(tmp_path: Path) -> None:
    module: Any = load("topics/lifecycle.md", "life.py", tmp_path)
    module.handler = module.Life()
    printed = prints_of(module)
    async with served(module) as url:
        async with connected(url) as client:
            assert await client.recv() == 'Welcome. Say "bye" or "fail", or anything else.'
            await client.send("hello")
            assert await client.recv() == "You said hello."
            await client.send("bye")
            assert await end_of(client) == (4000, "see you")
        assert await printed.get() == "closed: 4000 see you ['guests']"
        async with connected(url) as client:
            await client.send("fail")
            assert await end_of(client) == (1011, "internal error")
        assert await printed.get() == "error: the handler has failed"
        assert await printed.get() == "closed: 1011 internal error ['guests']"


async def test_the_life_of_a_connection_is_one_coroutine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module: Any = load("topics/lifecycle.md", "life.py", tmp_path)
    other: Any = load("topics/lifecycle.md", "coroutine_life.py", tmp_path)
    module.handler = other.live
    printed = prints_of(other)
    async with served(module) as url:
        async with connected(url) as client:
            assert await client.recv() == 'Welcome. Say "bye", or anything else.'
            await client.send("hello")
            assert await client.recv() == "You said hello."
            await client.send("bye")
            assert await end_of(client) == (4000, "see you")
        assert await printed.get() == "closed: 4000 ['guests']"
        async with raw_peer(f"{url}/") as peer:
            await peer.frame()
            peer.reset()
        assert await printed.get() == "lost: 1006"
        assert await printed.get() == "closed: 1006 ['guests']"
    assert caplog.records == []


async def test_one_connection_takes_commands_of_each_type(tmp_path: Path) -> None:
    module: Any = load("topics/lifecycle.md", "life.py", tmp_path)
    module.handler = load("topics/lifecycle.md", "commands.py", tmp_path).live
    async with served(module) as url, connected(url) as client:
        assert await decoded(client) == {"type": "welcome"}
        await client.send('{"type": "join", "room": "red"}')
        await client.send('{"type": "join", "room": 7}')
        assert await decoded(client) == {"type": "error", "text": "There is no such command."}
        assert module.hub.rooms == {"red"}
        await client.send("no JSON")
        assert await end_of(client) == (1007, "expected JSON")


# Rooms


async def test_the_members_of_a_room_are_told_who_they_are(tmp_path: Path) -> None:
    module: Any = load("topics/rooms.md", "members.py", tmp_path)
    async with (
        served(module) as url,
        connected(f"{url}/?name=ann") as ann,
        connected(f"{url}/?name=bob") as bob,
        connected(f"{url}/?name=bob") as second_tab,
    ):
        await ann.send("join red")
        assert await decoded(ann) == {"room": "red", "members": ["ann"]}
        for tab in (bob, second_tab):
            await tab.send("join red")
            assert await decoded(tab) == await decoded(ann) == {"room": "red", "members": ["ann", "bob"]}
        assert await decoded(bob) == {"room": "red", "members": ["ann", "bob"]}
        await ann.send("say red hello all")
        said = {"room": "red", "name": "ann", "text": "hello all"}
        assert await decoded(bob) == await decoded(second_tab) == said
        await bob.send("say blue hello")
        await bob.send("join green")
        assert await decoded(bob) == {"error": "There is no room green."}
        await bob.send(b"\xff")
        assert await decoded(bob) == {"error": "There is no room None."}
        await second_tab.close()
        assert await decoded(bob) == await decoded(ann) == {"room": "red", "members": ["ann", "bob"]}
        await bob.send("leave red")
        # The sender was left out of what it said.
        assert await decoded(ann) == {"room": "red", "members": ["ann"]}


async def test_all_nodes_tell_who_is_in_a_room(tmp_path: Path) -> None:
    engine = MemoryEngine()
    modules: list[Any] = [load("topics/rooms.md", "members.py", tmp_path) for _ in range(2)]
    for module in modules:
        module.hub.broker = MemoryBroker(engine)
        exec(snippet("topics/rooms.md", "async def names_everywhere"), vars(module))
    one, two = modules
    async with (
        served(one) as first,
        served(two) as second,
        connected(f"{first}/?name=ann") as ann,
        connected(f"{second}/?name=bob") as bob,
    ):
        for client in (ann, bob):
            await client.send("join red")
            await client.recv()
        while len(await one.hub.nodes()) < 2:
            await asyncio.sleep(0)
        assert await one.names_everywhere("red") == ["ann", "bob"]
        assert await one.hub.room_count("red") == 2
        assert one.names_in("red") == ["ann"]
        await two.hub.subscribed("red")
        await one.tell_all_members("red")
        for client in (ann, bob):
            # Before that, a node may have told both of them its own members.
            while (await decoded(client))["members"] != ["ann", "bob"]:
                pass


# Slow readers


async def test_a_new_client_gets_the_board_and_then_each_change(tmp_path: Path) -> None:
    module: Any = load("topics/slow-readers.md", "ticker.py", tmp_path)
    async with served(module) as url, connected(url) as one, connected(url) as two:
        assert await decoded(one) == await decoded(two) == {"BTC": 60_000.0, "ETH": 3_000.0, "SOL": 150.0}
        module.show("ETH", 3_001.0)
        assert await decoded(one) == await decoded(two) == {"ETH": 3_001.0}
        async with connected(url) as later:
            assert (await decoded(later))["ETH"] == 3_001.0
            async with module.lifespan(module.app):
                (symbol,) = await decoded(later)
                assert symbol in module.prices


async def test_a_slow_reader_gets_the_newest_price_of_every_symbol(tmp_path: Path) -> None:
    module: Any = load("topics/slow-readers.md", "ticker.py", tmp_path)
    symbols = [f"{number}{'.' * 1000}" for number in range(10)]
    async with served(module) as url, raw_peer(f"{url}/", limit=1 << 12) as peer:
        await peer.frame()
        peer.writer.transport.pause_reading()
        (connection,) = module.hub.room_members("prices")
        for price in range(3_000):
            for symbol in symbols:
                module.show(symbol, price)
            assert connection.buffered <= 128 * 1024 + 2_000
        peer.writer.transport.resume_reading()
        draining = asyncio.create_task(connection.drain())
        draining.add_done_callback(lambda _: connection.send("end"))
        newest: dict[str, int] = {}
        received = 0
        while (text := (await peer.frame()).payload) != b"end":
            newest |= json.loads(text)
            received += 1
        assert newest == dict.fromkeys(symbols, 2_999)
        assert received < 30_000


def test_one_program_publishes_the_prices_to_all_workers(tmp_path: Path) -> None:
    port = free_port()
    ticker = program("topics/slow-readers.md", "ticker.py")
    (tmp_path / "ticker.py").write_text(replaced(ticker, {", lifespan=lifespan": ""}))

    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            url = f"ws://127.0.0.1:{port}/prices"
            clients = [await stack.enter_async_context(connected(url)) for _ in range(8)]
            for client in clients:
                assert len(await decoded(client)) == 3
                assert len(await decoded(client)) == 1

    with running_engine("redis") as engine:
        market = replaced(program("topics/slow-readers.md", "market.py"), {"redis://localhost": engine.url})
        (tmp_path / "market.py").write_text(market)
        server = ["-m", "wshub", "serve", "ticker:app", "--workers", "2", "--port", str(port), "--broker", engine.url]
        with (
            running_program([sys.executable, *server], port=port, env=environment(), cwd=tmp_path),
            running_program([sys.executable, "market.py"], port=engine.port, env=environment(), cwd=tmp_path),
        ):
            asyncio.run(asyncio.wait_for(scenario(), 30))


async def test_a_file_is_sent_no_faster_than_it_is_read(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(snippet("topics/slow-readers.md", "async def send_file"), namespace)
    content = bytes(range(256)) * 20_000
    (tmp_path / "file").write_bytes(content)
    module: Any = load("topics/lifecycle.md", "life.py", tmp_path)
    most = 0

    async def live(connection: Any) -> None:
        nonlocal most
        sending = asyncio.create_task(namespace["send_file"](connection, tmp_path / "file"))
        while not sending.done():
            most = max(most, connection.buffered)
            await asyncio.sleep(0)

    module.handler = live
    async with served(module) as url, connected(url) as client:
        received = b""
        async for piece in client:
            assert isinstance(piece, bytes)
            received += piece
    assert received == content
    assert most <= 128 * 1024 + 33 * 1024


# Compression


async def test_quotes_of_a_room_become_small(tmp_path: Path) -> None:
    module: Any = load("topics/compression.md", "quotes.py", tmp_path)
    hub = module.hub
    async with served(module) as url, raw_peer(f"{url}/", extensions=OFFER) as peer, connected(url) as plain:
        await until(lambda: hub.room_size("quotes:BTC") == 2)
        sizes = [0, 0]
        for index, sharing in enumerate(("shared", "message")):
            hub.configure_room("quotes:*", compression=sharing)
            for number in range(200):
                assert module.send_quote("BTC", 1000 + number % 7, number) == 2
                frame = await peer.frame()
                assert frame.rsv1 == (sharing == "shared")
                sizes[index] += len(frame.payload)
                assert json.loads(await plain.recv())["number"] == number
        assert sizes[0] < 0.35 * sizes[1]


# Errors


async def test_a_program_may_handle_every_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module: Any = load("topics/errors.md", "careful.py", tmp_path)
    engine = MemoryEngine()
    module.hub.broker = MemoryBroker(engine)
    module.handler = module.take_orders
    async with served(module) as url:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"{url}/?token=guessed", proxy=None)
        assert refused.value.response.status_code == 401
        assert refused.value.response.headers["WWW-Authenticate"] == "Bearer"
        assert refused.value.response.body == b"A valid token is needed."
        url += "/?token=a-token-of-ann"
        await module.hub.broker_started()
        async with connected(url) as client:
            for text in ("no JSON", b"1"):
                await client.send(text)
                assert await decoded(client) == {"error": "This is not JSON."}
            await client.send('"tea"')
            assert await decoded(client) == {"user": "ann", "order": "tea"}
            engine.stop()
            await until(lambda: not module.hub.health().ok)
            await client.send('"milk"')
            assert await decoded(client) == {"user": "ann", "order": "milk"}
            assert await decoded(client) == {"error": "Not everyone was told. Try again later."}
            engine.heal()
        module.PATIENCE = 0.01
        async with connected(url) as client:
            assert await end_of(client) == (4008, "nothing was ordered")
        module.PATIENCE = 10
        async with connected(url) as client:
            client.transport.abort()
        await until(lambda: module.hub.connection_count == 0)
    assert [record for record in caplog.records if record.name == "wshub.server"] == []


# Threads


async def test_threads_send_compute_and_wait(tmp_path: Path) -> None:
    module: Any = load("topics/threads.md", "thermometer.py", tmp_path)
    assert module.hub.broadcast("to nobody") == 0
    async with served(module) as url, connected(url) as client:
        await client.send("1 2 3")
        assert await client.recv() == "The sum is 6.0."
        await client.send("one")
        assert await client.recv() == "Send numbers."
        thread = threading.Thread(target=module.measure)
        thread.start()
        assert 0 < float(await client.recv()) < 40
        module.stopped.set()
        await asyncio.to_thread(thread.join)
        vars(module)["loop"] = asyncio.get_running_loop()
        announcing = snippet("topics/threads.md", "loop = asyncio.get_running_loop()").partition("\n")[2]
        exec(announcing, vars(module))
        assert await asyncio.to_thread(module.announce, "news")


async def test_another_thread_may_read_what_the_page_says(tmp_path: Path) -> None:
    module: Any = load("topics/threads.md", "thermometer.py", tmp_path)
    hub = module.hub
    async with served(module) as url, connected(url):
        await until(lambda: hub.room_size("temperatures"))

        def read() -> list[Any]:
            (connection,) = hub.room_members("temperatures")
            return [
                hub.room_size("temperatures"),
                hub.rooms,
                hub.connection_count,
                hub.get_connection(connection.id) is connection,
                hub.user_connections("ann"),
                hub.stats() is not None,
            ]

        assert await asyncio.to_thread(read) == [1, {"temperatures"}, 1, True, [], True]


def test_a_hub_that_was_not_used_may_be_inherited_by_forked_processes() -> None:
    source = """
import asyncio, os
from wshub import EventHandler, Hub

hub = Hub()


async def main():
    handler = EventHandler(on_message=lambda connection, message: connection.send(f"{os.getpid()} {message.data}"))
    async with hub.serve("127.0.0.1", 0, handler) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(REQUEST + TEXT)
        await reader.readuntil(b"\\r\\n\\r\\n")
        payload = await reader.readexactly(2)
        received = (await reader.readexactly(payload[1])).decode()
        assert received == f"{os.getpid()} hello", received
        assert hub.connection_count == 1
        writer.close()


children = [os.fork() for _ in range(2)]
asyncio.run(main())
if all(children):
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    print("fine")
"""
    from tests.support.raw_peers import REQUEST, masked

    names = f"REQUEST = {REQUEST!r}\nTEXT = {masked(Frame.text('hello'))!r}\n"
    result = subprocess.run(
        [sys.executable, "-c", names + source], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout == "fine\n", result.stderr


# Brokers


async def test_a_client_gets_what_it_missed_while_its_node_was_cut_off(tmp_path: Path) -> None:
    engine = MemoryEngine()
    one, two = modules = [load("topics/brokers.md", "history.py", tmp_path) for _ in range(2)]
    for module in modules:
        module.hub.broker = MemoryBroker(engine)
        module.handler = module.read
        module.entries = one.entries
    async with served(one) as first, served(two) as second:
        for module in modules:
            await module.hub.broker_started()
        async with connected(first) as near, connected(second) as far:
            for client in (near, far):
                await client.send("since 0")
                assert await decoded(client) == {"end": True}
            for number, text in enumerate(("one", "two"), 1):
                await near.send(f"say {text}")
                assert await decoded(far) == await decoded(near) == {"number": number, "text": text}
            engine.stop()
            await until(lambda: not one.hub.health().ok and not two.hub.health().ok)
            await near.send("say three")
            assert (await decoded(near))["number"] == 3
            engine.heal()
            async with asyncio.timeout(30):
                await until(lambda: one.hub.health().ok and two.hub.health().ok)
                await two.hub.subscribed("news")
            await near.send("say four")
            assert await decoded(far) == {"number": 4, "text": "four"}
            await far.send("since 2")
            assert [(await decoded(far))["text"] for _ in range(2)] == ["three", "four"]
            assert await decoded(far) == {"end": True}
            await far.send("since nothing")
            await far.send("since 4")
            assert await decoded(far) == {"end": True}


def test_the_reader_shows_each_entry_once_and_asks_for_those_it_misses(tmp_path: Path) -> None:
    script = (
        program("topics/brokers.md", "reader.js")
        + """
    const shown = [], asked = [];
    const reader = new Reader((text) => shown.push(text), (text) => asked.push(text));
    const send = (...numbers) => numbers.forEach((number) =>
      reader.received(JSON.stringify({ number, text: `entry ${number}` })));
    const end = () => reader.received(JSON.stringify({ end: true }));
    reader.opened();
    send(1, 2, 2, 1);
    end();
    send(5, 6);
    send(3, 4, 5, 6, 7);
    end();
    reader.opened();
    send(9, 8, 9);
    end();
    console.log(JSON.stringify([shown, asked]));
    """
    )
    try:
        result = subprocess.run(["node", "-e", script], capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        pytest.skip("there is no Node.js on this machine")
    shown, asked = json.loads(result.stdout)
    assert shown == [f"entry {number}" for number in range(1, 10)]
    assert asked == ["since 0", "since 2", "since 7"]
