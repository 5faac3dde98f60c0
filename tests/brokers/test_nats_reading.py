"""Reading many messages of a JetStream stream while others are stored."""

from __future__ import annotations

import json
import secrets

import pytest

from tests.support.broker_node import joined
from tests.support.nats_engine import NatsEngine, running_jetstream
from wshub.brokers.nats import NatsBroker
from wshub.brokers.nats_reading import BATCH, Page, StreamReader

ON_BOTH = pytest.mark.parametrize(("kind", "run"), [("2.9", "asyncio"), ("current", "uvloop")], indirect=["run"])


def make(engine: NatsEngine, count: int) -> str:
    """Make a stream that keeps the newest message of each subject, and store some. Return its name."""
    name = f"reading-{secrets.token_hex(4)}"
    settings = {"name": name, "subjects": [f"{name}.>"], "max_msgs_per_subject": 1, "allow_direct": True}
    engine.ask(f"$JS.API.STREAM.CREATE.{name}", json.dumps(settings).encode())
    for number in range(count):
        engine.ask(f"{name}.{number}", b"%d" % number)
    return name


@ON_BOTH
@pytest.mark.parametrize("count", [10, BATCH + 10])
@pytest.mark.parametrize("question", [1, 2])
async def test_a_message_that_is_replaced_while_others_are_read_is_found(
    kind: str, count: int, question: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_jetstream(kind) as engine:
        name = make(engine, count)
        async with joined(NatsBroker(engine.url)) as one:
            requests = one.broker._session._requests  # type: ignore[attr-defined]
            reader = StreamReader(requests, 1)
            several = requests.several
            asked = 0

            def replace_before(subject: str, asks: dict[str, object]) -> object:
                nonlocal asked
                asked += 1
                if asked == question:
                    # Others are behind the end of what was there, and one moves there.
                    for number in range(3):
                        engine.ask(f"{name}.new-{number}", b"new")
                    engine.ask(f"{name}.{count - 1}", b"replaced")
                return several(subject, asks)

            monkeypatch.setattr(requests, "several", replace_before)
            found = await read_all(reader, name)
            assert {f"{name}.{number}" for number in range(count)} <= found


@ON_BOTH
async def test_a_reading_ends_although_a_message_is_replaced_again_and_again(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_jetstream(kind) as engine:
        name = make(engine, 4)
        async with joined(NatsBroker(engine.url)) as one:
            requests = one.broker._session._requests  # type: ignore[attr-defined]
            several = requests.several
            asked = 0

            def replace_before(subject: str, asks: dict[str, object]) -> object:
                nonlocal asked
                asked += 1
                engine.ask(f"{name}.0", b"replaced")
                return several(subject, asks)

            monkeypatch.setattr(requests, "several", replace_before)
            page = await StreamReader(requests, 1).read(name, f"{name}.>", 1, 100, 1 << 20)
            assert sorted(message.subject for message in page.messages) == [f"{name}.{number}" for number in range(4)]
            assert asked == 1


async def read_all(reader: StreamReader, name: str) -> set[str]:
    """Return the subjects of all messages, read in pages of 100."""
    found: set[str] = set()
    start = 1
    while True:
        page: Page = await reader.read(name, f"{name}.>", start, 100, 1 << 20)
        found |= {message.subject for message in page.messages}
        if not page.messages or page.available <= len(page.messages):
            return found
        start = page.messages[-1].sequence + 1
