"""Messages and commands of programs without a hub: what arrives, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from enum import StrEnum
from typing import Any

import pytest
import websockets

from tests.publisher.hub_with_member import Member
from wshub import ConfigurationError, InvalidMessageError, MisuseError
from wshub.publisher import AsyncPublisher, Publisher


async def test_a_coroutine_publishes_to_rooms_users_and_all(directory) -> None:
    member = Member(directory)
    async for client in member.clients():
        async with AsyncPublisher(member.url) as publisher:
            await publisher.publish("room", room="lobby")
            await publisher.publish(b"user", user="ann")
            await publisher.publish("all")
        assert [await client.recv(), await client.recv(), await client.recv()] == ["room", b"user", "all"]


async def test_a_program_without_asyncio_publishes_from_any_thread(directory) -> None:
    member = Member(directory)

    def publish_all() -> None:
        with Publisher(member.url) as publisher:
            threads = [
                threading.Thread(target=publisher.publish, args=(str(number),), kwargs={"room": "lobby"})
                for number in range(10)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    async for client in member.clients():
        await asyncio.to_thread(publish_all)
        assert {await client.recv() for _ in range(10)} == {str(number) for number in range(10)}


async def test_a_publisher_closes_the_connections_of_a_user(directory) -> None:
    member = Member(directory)
    async for client in member.clients():
        async with AsyncPublisher(member.url) as publisher:
            await publisher.disconnect_user("ben", 4001, "not this one")
            await publisher.publish("still there", room="lobby")
            assert await client.recv() == "still there"
            assert (await publisher.disconnect_user("ann", 4000, "bye")).receivers == 1
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await client.recv()
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "bye")


async def test_a_program_without_asyncio_closes_the_connections_of_a_user(directory) -> None:
    member = Member(directory)
    async for client in member.clients():
        with Publisher(member.url) as publisher:
            await asyncio.to_thread(publisher.disconnect_user, "ann")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd.code == 1008


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("",), MisuseError),
        ((7,), TypeError),
        (("ann", 1006), InvalidMessageError),
        (("ann", 4000, "x" * 124), InvalidMessageError),
        (("ann", 4000, 7), TypeError),
    ],
)
async def test_a_command_that_cannot_be_sent_is_refused(directory, arguments: Any, error: type[Exception]) -> None:
    async with AsyncPublisher(f"workers:{directory}") as publisher:
        with pytest.raises(error):
            await publisher.disconnect_user(*arguments)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"room": "a", "user": "b"}, MisuseError),
        ({"user": ""}, MisuseError),
        ({"room": 7}, TypeError),
        ({"user": 7}, TypeError),
        ({"slow_consumer": 7}, MisuseError),
        ({"compress": "yes"}, MisuseError),
        ({"key": 7}, MisuseError),
    ],
)
async def test_what_cannot_be_sent_is_refused(directory, options: Any, error: type[Exception]) -> None:
    async with AsyncPublisher(f"workers:{directory}") as publisher:
        with pytest.raises(error):
            await publisher.publish("message", **options)


async def test_an_unknown_policy_is_refused_with_the_choices(directory) -> None:
    async with AsyncPublisher(f"workers:{directory}") as publisher:
        with pytest.raises(MisuseError, match='"close", "drop_newest", "drop_oldest" or "latest", not \'bogus\''):
            await publisher.publish("message", slow_consumer="bogus")


class Name(StrEnum):
    ROOM = "lobby"
    USER = "ann"
    TEXT = "text"
    POLICY = "latest"

    def __str__(self) -> str:
        return "another text"

    def encode(self, *arguments: Any) -> bytes:
        return b"another text"


async def test_a_str_of_a_subclass_counts_as_what_it_holds(directory) -> None:
    member = Member(directory)
    async for client in member.clients():
        async with AsyncPublisher(member.url) as publisher:
            options: dict[str, Any] = {"slow_consumer": Name.POLICY, "key": Name.TEXT}
            assert (await publisher.publish(Name.TEXT, room=Name.ROOM, **options)).receivers == 1
            assert await client.recv() == "text"
            assert (await publisher.publish("to the user", user=Name.USER)).receivers == 1
            assert await client.recv() == "to the user"


@pytest.mark.parametrize("url", ["none", "", "http://localhost"])
def test_a_url_that_names_no_broker_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Publisher(url)
