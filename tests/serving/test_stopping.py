"""A stopping hub ends handlers, connections and the program in an orderly way."""

from __future__ import annotations

import asyncio
import signal
import textwrap
from typing import Any

import pytest

from tests.support.programs import running_source
from tests.support.raw_peers import REQUEST, masked, raw_peer
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import connected, serving
from wshub import EventHandler, Frame, Hub, HubConfig, MisuseError

STOP_SIGNALS = [signal.SIGTERM, signal.SIGINT]


async def slowly(events: list[str], name: str) -> None:
    """Clean up over several iterations of the loop."""
    events.append(f"{name} begins")
    for _ in range(20):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    events.append(f"{name} ends")


async def whole_life(events: list[str], connection: Any) -> None:
    """An endpoint that cleans up at its end."""
    try:
        async for _ in connection:
            pass
    finally:
        await slowly(events, "finally")


def test_handlers_that_run_have_their_time_when_the_hub_closes(run) -> None:
    async def scenario(handler: Any, events: list[str], expected: list[str]) -> None:
        async with serving(handler) as (hub, url), connected(url) as client:
            await client.send("x")
            while not hub.stats().messages_received:
                await asyncio.sleep(0)
            await hub.close()
            assert events == expected

    events: list[str] = []

    async def on_message(connection, message) -> None:
        await slowly(events, "on_message")

    async def on_close(connection, code, reason) -> None:
        await slowly(events, "on_close")

    async def endpoint(connection) -> None:
        await whole_life(events, connection)

    run(scenario(EventHandler(on_close=on_close), events, ["on_close begins", "on_close ends"]))
    events.clear()
    both = ["on_message begins", "on_message ends", "on_close begins", "on_close ends"]
    run(scenario(EventHandler(on_message=on_message, on_close=on_close), events, both))
    events.clear()
    run(scenario(endpoint, events, ["finally begins", "finally ends"]))


async def test_a_handler_that_never_ends_is_cancelled_and_on_close_follows() -> None:
    events: list[str] = []

    async def on_message(connection, message) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    async def on_close(connection, code, reason) -> None:
        await slowly(events, "on_close")

    handler = EventHandler(on_message=on_message, on_close=on_close)
    async with serving(handler, close_timeout_ms=100) as (hub, url), raw_peer(url) as peer:
        peer.send(Frame.text("a"))
        while not hub.stats().messages_received:
            await asyncio.sleep(0)
        await hub.close()
        assert events == ["cancelled", "on_close begins", "on_close ends"]


async def in_a_task_group(close: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(close())


WAYS_TO_AWAIT = {
    "await": lambda close: close(),
    "wait_for": lambda close: asyncio.wait_for(close(), 3600),
    "shield": lambda close: asyncio.shield(close()),
    "task": lambda close: asyncio.create_task(close()),
    "gather": lambda close: asyncio.gather(close(), close()),
    "task group": in_a_task_group,
}


@pytest.mark.parametrize("way", WAYS_TO_AWAIT)
@pytest.mark.parametrize("event", ["on_open", "on_message", "endpoint"])
async def test_a_handler_may_await_the_end_of_its_hub(event, way) -> None:
    closed = asyncio.Event()

    async def close_all(connection, *_) -> None:
        await asyncio.sleep(0)
        await WAYS_TO_AWAIT[way](hub.close)
        assert not hub.connection_count
        closed.set()

    handler = close_all if event == "endpoint" else EventHandler(**{event: close_all})
    # If the hub waited for this handler, closing would take all of this time.
    async with serving(handler, close_timeout_ms=3_600_000) as (hub, url):
        async with connected(url) as client:
            if event == "on_message":
                await client.send("close")
            await client.wait_closed()
            assert client.close_code == 1001
        await closed.wait()


async def test_a_handler_may_close_its_hub_while_that_waits_for_the_handler() -> None:
    closing, done = asyncio.Event(), asyncio.Event()

    async def on_message(connection, message) -> None:
        await closing.wait()
        await connection.wait_closed()
        for _ in range(10):
            await asyncio.sleep(0)
        await hub.close()
        done.set()

    async with serving(EventHandler(on_message=on_message), close_timeout_ms=3_600_000) as (hub, url):
        async with connected(url) as client:
            await client.send("x")
            while not hub.stats().messages_received:
                await asyncio.sleep(0)
            closing.set()
            await hub.close()
        await done.wait()


async def test_serve_forever_ends_when_its_server_is_closed() -> None:
    hub = Hub()
    for handle_signals in (True, False):
        before = [signal.getsignal(number) for number in STOP_SIGNALS]
        async with hub.serve("127.0.0.1", 0, EventHandler()) as server:
            serving_forever = asyncio.create_task(server.serve_forever(handle_signals=handle_signals))
            await asyncio.sleep(0)
            handled = [signal.getsignal(number) for number in STOP_SIGNALS] != before
            assert handled == handle_signals
            await server.close()
            await serving_forever
        assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_serve_forever_works_in_a_thread_where_there_are_no_signals() -> None:
    async def main() -> None:
        async with Hub().serve("127.0.0.1", 0, EventHandler()) as server:
            serving_forever = asyncio.create_task(server.serve_forever())
            await asyncio.sleep(0)
            await server.close()
            await serving_forever

    async def scenario() -> None:
        await asyncio.to_thread(asyncio.run, main())

    asyncio.run(scenario())


SERVER = """
import asyncio, sys
from wshub import EventHandler, Hub

async def on_message(connection, message):
    {on_message}

async def on_close(connection, code, reason):
    await asyncio.sleep(0.01)
    print("on_close", flush=True)

async def main():
    try:
        handler = EventHandler(on_message=on_message, on_close=on_close)
        async with Hub().serve("127.0.0.1", 0, handler) as server:
            print(server.port, flush=True)
            await server.{wait}()
    finally:
        print("finally", flush=True)

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


async def stopped(loop: str, *, wait: str, on_message: str = "pass", stop: signal.Signals | None = None) -> Any:
    """Run a server with one client until it stops.

    Return its exit code, its output, its errors and the close code.
    """
    source = textwrap.dedent(SERVER).format(wait=wait, on_message=on_message)
    async with running_source(source, loop) as (process, port), raw_peer(f"ws://127.0.0.1:{port}/") as peer:
        if stop is not None:
            process.send_signal(stop)
        else:
            peer.write(masked(Frame.text("stop")))
        code = await peer.close_code()
        peer.write(masked(Frame.close(code)))
        peer.writer.write_eof()
        output, errors = await process.communicate()
    return process.returncode, output.decode().split("\n")[:-1], errors.decode(), code


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("stop", STOP_SIGNALS, ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_closes_every_connection_with_1001_and_leaves_no_traceback(loop, stop) -> None:
    result = asyncio.run(stopped(loop, wait="serve_forever", stop=stop))
    assert result == (0, ["on_close", "finally"], "", 1001)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("suspends", ["", "await asyncio.sleep(0.01); "], ids=["at once", "after an await"])
@pytest.mark.parametrize("wait", ["serve_forever", "wait_closed"])
def test_an_exit_out_of_a_handler_ends_the_program_once_and_in_order(loop, suspends, wait) -> None:
    result = asyncio.run(stopped(loop, wait=wait, on_message=f"{suspends}raise SystemExit(3)"))
    assert result == (3, ["on_close", "finally"], "", 1001)


UPGRADING = """
import asyncio, sys
from wshub import EventHandler, Hub, HubConfig

{hook}

async def main():
    try:
        hub = Hub(HubConfig(use_reactor={reactor}), on_upgrade=on_upgrade)
        async with hub.serve("127.0.0.1", 0, EventHandler()) as server:
            print(server.port, flush=True)
            await server.wait_closed()
    finally:
        print("finally", flush=True)
        await asyncio.sleep(0.01)
        print("finally has ended", flush=True)

if sys.argv[1] == "uvloop":
    import uvloop
    run = uvloop.run
else:
    run = asyncio.run
try:
    run(main())
except BaseException as error:
    print(repr(error), flush=True)
"""


@pytest.mark.one_loop
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("error", ["SystemExit(3)", "KeyboardInterrupt()"])
@pytest.mark.parametrize(
    "hook",
    [
        "def on_upgrade(request): raise {error}",
        "async def on_upgrade(request): raise {error}",
        "async def on_upgrade(request): await asyncio.sleep(0.01); raise {error}",
    ],
    ids=["function", "at once", "after an await"],
)
@pytest.mark.parametrize("reactor", [pytest.param(True, marks=needs_reactor), False], ids=["reactor", "transports"])
def test_an_exit_out_of_on_upgrade_refuses_and_ends_the_program_once_and_in_order(loop, error, hook, reactor) -> None:
    async def scenario() -> None:
        source = UPGRADING.format(hook=hook.format(error=error), reactor=reactor)
        async with asyncio.timeout(20), running_source(source, loop) as (process, port):
            async with raw_peer(f"ws://127.0.0.1:{port}/", handshake=False) as peer:
                peer.write(REQUEST)
                answer = await peer.reader.read()
            output, errors = await process.communicate()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert output.decode().splitlines() == ["finally", "finally has ended", error]
        assert errors == b""

    asyncio.run(scenario())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_second_ctrl_c_ends_what_the_first_waits_for(loop) -> None:
    async def scenario() -> None:
        never = "await asyncio.Event().wait()"
        source = textwrap.dedent(SERVER).format(wait="serve_forever", on_message=never)
        source = source.replace("Hub()", "Hub(HubConfig(close_timeout_ms=3_600_000))").replace(
            "Hub\n", "Hub, HubConfig\n"
        )
        async with running_source(source, loop) as (process, port), raw_peer(f"ws://127.0.0.1:{port}/") as peer:
            peer.send(Frame.text("hang"))
            peer.send(Frame.ping(b""))
            process.send_signal(signal.SIGINT)
            # The client does not answer the close, and its handler hangs.
            assert await peer.close_code() == 1001
            process.send_signal(signal.SIGINT)
            output, errors = await process.communicate()
        assert (process.returncode, output, errors) == (0, b"on_close\nfinally\n", b"")

    asyncio.run(scenario())


async def test_requests_that_come_while_a_hub_closes_are_refused() -> None:
    hub = Hub(HubConfig(close_timeout_ms=3_600_000))
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        async with raw_peer(url) as peer, raw_peer(url, handshake=False) as late:
            closing = asyncio.create_task(hub.close())
            assert await peer.close_code() == 1001
            late.write(REQUEST)
            assert (await late.reader.readline()).startswith(b"HTTP/1.1 503 ")
            with pytest.raises(MisuseError, match="is closing"):
                await hub.serve("127.0.0.1", 0, EventHandler()).__aenter__()
            peer.send(Frame.close(1001))
            peer.writer.write_eof()
            await closing


@pytest.mark.parametrize("reactor", [pytest.param(True, marks=needs_reactor), False], ids=["reactor", "transports"])
def test_an_exit_out_of_the_acceptance_of_a_connection_ends_the_program_in_order(run, reactor) -> None:
    ends: list[str] = []
    armed: list[bool] = []
    exits: list[BaseException] = [SystemExit(3)]

    def clock() -> float:
        # The connection reads the clock first, for its deadline; the hub's sweeps are seconds away.
        if armed and exits:
            raise exits.pop()
        return 0.0

    async def scenario() -> None:
        hub = Hub(HubConfig(use_reactor=reactor), clock=clock)
        try:
            async with hub.serve("127.0.0.1", 0, EventHandler()) as server:
                armed.append(True)
                async with raw_peer(f"ws://127.0.0.1:{server.port}/", handshake=False):
                    await server.wait_closed()
        finally:
            await asyncio.sleep(0)
            ends.append("finally")

    with pytest.raises(SystemExit):
        run(scenario())
    assert (ends, exits) == (["finally"], [])


TWO_EXITS = """
import asyncio, sys
from wshub import EventHandler, Hub

def stop(*_):
    raise {error}

async def main():
    try:
        async with Hub().serve("127.0.0.1", 0, EventHandler(**{{sys.argv[2]: stop}})) as server:
            print(server.port, flush=True)
            await server.{wait}()
    finally:
        print("finally begins", flush=True)
        await asyncio.sleep(0.05)
        print("finally ends", flush=True)

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("event", ["on_message", "on_close"])
@pytest.mark.parametrize("wait", ["serve_forever", "wait_closed"])
def test_exits_out_of_several_handlers_are_raised_once(loop, event, wait) -> None:
    async def scenario() -> None:
        source = TWO_EXITS.format(error="SystemExit(3)", wait=wait)
        async with running_source(source, loop, event) as (process, port):
            url = f"ws://127.0.0.1:{port}/"
            async with raw_peer(url) as first, raw_peer(url) as second:
                # For on_close, the first client closes its connection, and the hub closes the other one.
                first.send(Frame.close(1000) if event == "on_close" else Frame.text("stop"))
                if event == "on_message":
                    second.send(Frame.text("stop"))
                for peer in (first, second):
                    code = await peer.close_code()
                    peer.send(Frame.close(code))
                    peer.writer.write_eof()
                output, errors = await process.communicate()
        assert (process.returncode, output, errors) == (3, b"finally begins\nfinally ends\n", b"")

    asyncio.run(scenario())


@pytest.mark.parametrize("stop", STOP_SIGNALS, ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("hubs", [1, 2], ids=["one hub", "two hubs"])
async def test_a_signal_stops_every_server_of_the_program_and_restores_the_handlers(stop, hubs) -> None:
    async def serve(hub: Hub, entered: asyncio.Semaphore) -> None:
        async with hub.serve("127.0.0.1", 0, EventHandler()) as server:
            entered.release()
            await server.serve_forever()

    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    entered = asyncio.Semaphore(0)
    first = Hub()
    second = first if hubs == 1 else Hub()
    for _ in range(2):
        async with asyncio.TaskGroup() as group:
            for hub in (first, second):
                group.create_task(serve(hub, entered))
            for _ in range(2):
                await entered.acquire()
            signal.raise_signal(stop)
        assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


async def test_a_server_that_ends_leaves_the_signals_to_the_others() -> None:
    async with (
        Hub().serve("127.0.0.1", 0, EventHandler()) as first,
        Hub().serve("127.0.0.1", 0, EventHandler()) as second,
    ):
        tasks = [asyncio.create_task(server.serve_forever()) for server in (first, second)]
        await asyncio.sleep(0)
        await first.close()
        await tasks[0]
        assert not tasks[1].done()
        signal.raise_signal(signal.SIGTERM)
        await tasks[1]


@pytest.mark.parametrize(
    ("number", "default"), [(signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)]
)
def test_no_signal_is_swallowed_after_a_server_has_taken_it_over_from_the_loop(run, number, default) -> None:
    async def scenario() -> None:
        asyncio.get_running_loop().add_signal_handler(number, print)
        async with Hub().serve("127.0.0.1", 0, EventHandler()) as server:
            serving_forever = asyncio.create_task(server.serve_forever())
            await asyncio.sleep(0)
            await server.close()
            await serving_forever
        assert signal.getsignal(number) == default

    before = signal.getsignal(number)
    try:
        run(scenario())
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("closes", ["hub", "another server"])
async def test_every_server_of_a_hub_ends_when_the_hub_closes(certificate, closes, tls) -> None:
    hub = Hub(HubConfig(close_timeout_ms=100))
    context = certificate.server_context() if tls else None
    async with hub.serve("127.0.0.1", 0, EventHandler(), ssl=context) as server:
        waiting = [asyncio.create_task(wait()) for wait in (server.serve_forever, server.wait_closed)]
        await asyncio.sleep(0)
        if closes == "hub":
            await hub.close()
        else:
            async with hub.serve("127.0.0.1", 0, EventHandler(), close_hub=True):
                pass
        await asyncio.gather(*waiting)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)
        # Closing the server again does not affect the next server of the hub.
        async with hub.serve("127.0.0.1", 0, EventHandler()) as second:
            await server.close()
            async with connected(f"ws://127.0.0.1:{second.port}/"):
                assert hub.connection_count == 1


async def test_handshakes_that_are_not_complete_when_the_hub_closes_are_refused() -> None:
    asked = asyncio.Event()

    async def on_upgrade(request) -> None:
        asked.set()
        await asyncio.Event().wait()

    hub = Hub(on_upgrade=on_upgrade)
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        async with raw_peer(url, handshake=False) as incomplete, raw_peer(url, handshake=False) as undecided:
            incomplete.write(b"GET /")
            undecided.write(REQUEST)
            await asked.wait()
            await hub.close()
            for peer in (incomplete, undecided):
                assert (await peer.reader.readline()).startswith(b"HTTP/1.1 503 ")


async def test_a_server_cannot_be_entered_while_its_hub_closes() -> None:
    hub = Hub()
    await hub.__aenter__()
    server = hub.serve("localhost", 0, EventHandler())
    entering = asyncio.create_task(server.__aenter__())
    await asyncio.sleep(0)
    await hub.close()
    with pytest.raises(MisuseError, match="closed while"):
        await entering
    async with server:
        pass


async def test_shutdown_is_bounded_when_a_client_never_answers() -> None:
    async with serving(EventHandler(), close_timeout_ms=100) as (hub, url), raw_peer(url) as peer:
        async with asyncio.timeout(5):
            await hub.close()
        assert await peer.close_code() == 1001
