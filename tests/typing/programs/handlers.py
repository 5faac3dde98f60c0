"""Handlers as functions, coroutine functions, lambdas and methods."""

from types import MappingProxyType
from typing import Any

from wshub import Connection, EventHandler, Message


def greet(connection: Connection) -> None:
    connection.send("hello")


async def answer(connection: Connection, message: Message) -> None:
    await connection.send(message)


def say_goodbye(connection: Connection, code: int, reason: str) -> None:
    print(connection.id, code, reason)


async def report(connection: Connection, error: BaseException) -> None:
    print(connection.id, error)


def notice(connection: Connection, payload: bytes) -> None:
    print(connection.id, payload)


EventHandler()
EventHandler(on_open=greet, on_message=answer, on_close=say_goodbye, on_error=report)
EventHandler(on_ping=notice, on_pong=notice, on_drain=greet)
EventHandler(on_open=None, on_message=lambda connection, message: connection.send(message))
EventHandler(on_open=lambda connection: connection.join("room"))


class Chat(EventHandler):
    close_codes = MappingProxyType({1011: 4500})

    def __init__(self, room: str) -> None:
        super().__init__()
        self.room = room

    def on_open(self, connection: Connection) -> None:
        connection.join(self.room)

    async def on_message(self, connection: Connection, message: Message) -> None:
        connection.hub.broadcast(message, room=self.room)

    def on_close(self, connection: Connection, code: int, reason: str) -> None:
        print(connection.id, code, reason)


chat = Chat("lobby")


def make(**handlers: Any) -> EventHandler:
    return EventHandler(**handlers)


EventHandler(on_connect=greet)  # type: ignore[arg-type]
EventHandler(on_open=answer)  # type: ignore[arg-type]
EventHandler(on_message=greet)  # type: ignore[arg-type]
EventHandler(greet)  # type: ignore[call-arg]
