"""Each public object has a readable repr, without payloads, cookies, queries or tokens."""

from __future__ import annotations

import asyncio
import inspect

import pytest

import wshub
from tests.support.serving_hub import connected
from wshub import Connection, EventHandler, Frame, Headers, Hub, HubConfig, Message, Opcode
from wshub.app import App
from wshub.brokers.memory import MemoryBroker
from wshub.brokers.memory_engine import MemoryEngine
from wshub.brokers.workers import WorkersBroker
from wshub.publisher import AsyncPublisher, Publisher

SECRET = "s3cret"


class Chat(EventHandler):
    def on_open(self, connection: Connection) -> None:
        connection.join("lobby")


def greet(connection: Connection) -> None:
    connection.send(SECRET)


async def test_a_connection_shows_its_id_state_address_path_and_rooms() -> None:
    async with Hub() as hub, hub.serve("127.0.0.1", 0, Chat()) as server:
        headers = {"Cookie": f"session={SECRET}", "Authorization": f"Bearer {SECRET}"}
        url = f"ws://127.0.0.1:{server.port}/chat/%C3%A4%0Ax?token={SECRET}"
        async with connected(url, additional_headers=headers) as client:
            port = client.local_address[1]
            await client.send(SECRET)
            while not hub.stats().messages_received:
                await asyncio.sleep(0)
            (connection,) = hub.connections
            connection.metadata["token"] = SECRET
            shown = repr(connection)
            assert shown == f"<Connection 1 open 127.0.0.1:{port} '/chat/ä\\nx' rooms: 'lobby'>"
            for number in range(5):
                connection.join(f"room {number}")
            assert repr(connection).endswith(" rooms: 'lobby', 'room 0', 'room 1' and 3 more>")
            connection.leave("lobby")
            connection.join("x" * 500)
            assert len(repr(connection)) < 500
            assert SECRET not in repr(connection.request)
            assert SECRET not in repr(connection.headers)
        await connection.wait_closed()
        assert repr(connection).startswith(f"<Connection 1 closed 127.0.0.1:{port} '/chat/")
        assert repr(hub) == "<Hub 'hub' in use, 0 connections, 0 rooms>"
    assert repr(hub) == "<Hub 'hub' not in use>"


def test_handlers_show_the_events_that_they_handle() -> None:
    assert repr(EventHandler()) == "<EventHandler>"
    handler = EventHandler(on_open=greet, on_message=lambda connection, message: None)
    assert repr(handler).startswith("<EventHandler on_open=greet on_message=")
    assert repr(Chat()) == "<Chat on_open=Chat.on_open>"


def test_messages_and_frames_hide_their_payloads() -> None:
    assert repr(Message(SECRET)) == "<Message text, 6 bytes>"
    assert repr(Frame.text(SECRET)) == "<Frame text, 6 bytes>"
    frame = Frame(Opcode.BINARY, b"abc", fin=False, rsv1=True, masked=True, mask_key=b"KEY!")
    assert repr(frame) == "<Frame binary, 3 bytes, rsv1, masked, more to come>"


def test_applications_and_their_parts() -> None:
    app = App()
    assert repr(app) == "<App 0 routes, no hub>"
    hub = app.enable_websocket(name="prices")
    app.websocket("/ws")(endpoint)
    assert repr(app) == "<App 1 routes, <Hub 'prices' not in use>>"
    assert repr(app.router) == "<Router 1 routes>"
    assert repr(hub.asgi(Chat())) == "<HubApplication of <Hub 'prices' not in use>>"


async def endpoint(connection: Connection) -> None:
    await connection.receive()


def test_brokers_and_publishers_hide_their_passwords(tmp_path) -> None:
    url = f"redis://user:{SECRET}@localhost:6379"
    for publisher in (Publisher(url), AsyncPublisher(url)):
        assert "redis://localhost:6379" in repr(publisher)
        assert SECRET not in repr(publisher)
    assert SECRET not in repr(Publisher(f"nats://user:{SECRET}@localhost"))
    assert repr(WorkersBroker(tmp_path)) == f"WorkersBroker({str(tmp_path)!r})"
    assert repr(MemoryBroker(MemoryEngine())) == "<MemoryBroker starting, 0 channels>"
    assert SECRET not in repr(Hub(broker=url))


@pytest.mark.parametrize("name", wshub.__all__)
def test_no_public_class_has_the_repr_of_object(name: str) -> None:
    value = getattr(wshub, name)
    # A namespace of functions, and dicts, have no instances of their own.
    if isinstance(value, type) and name != "Handshake" and not issubclass(value, dict):
        found = inspect.getattr_static(value, "__repr__")
        assert found is not object.__repr__


def test_settings_show_their_values() -> None:
    assert "max_connections=5" in repr(HubConfig(max_connections=5))
    assert repr(Headers([(b"host", b"a")])) == "<Headers host: 'a'>"
