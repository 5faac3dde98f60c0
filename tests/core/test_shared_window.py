"""A room with a shared window against a model: whatever happens, each member decompresses its messages correctly."""

from __future__ import annotations

import asyncio
import functools
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.deflated import TAIL
from wshub import CompressionConfig, Connection, EventHandler, Frame, Hub, HubConfig, MisuseError, Opcode
from wshub.core.event_handler import handler_table_of
from wshub.links.link_probe import LinkProbe
from wshub.links.memory_link import MemoryLink, create_memory_links, deliver_all
from wshub.protocol.http.headers import Headers
from wshub.protocol.http.request import RequestHead

OFFERS = [
    # This offer lets a member get in sync, so it comes often.
    *[b"permessage-deflate"] * 6,
    b"",
    b"permessage-deflate; server_no_context_takeover",
    *(b"permessage-deflate; server_max_window_bits=%d" % bits for bits in range(8, 16)),
    *(b"permessage-deflate; server_no_context_takeover; server_max_window_bits=%d" % bits for bits in (8, 10, 13)),
]
ROOMS = ["shared", "also shared", "ordinary"]
TABLE = handler_table_of(EventHandler())


class Window:
    """A decompressor that refuses references further back than 2**bits bytes."""

    def __init__(self, bits: int) -> None:
        self.size = 1 << bits
        self.kept = 0
        # zlib also accepts references into its output buffer. Byte by byte, it detects every reference that is too far
        # back. This is needed only once the window is full, and only for windows smaller than deflate's largest
        # distance.
        self.step_when_full = 1 if bits < 15 else 4096
        self.inflater = zlib.decompressobj(-bits)

    def decompress(self, payload: bytes) -> bytes:
        payload += TAIL
        found = bytearray()
        # Feed little data at a time: zlib copies the rest of its input at every step.
        for start in range(0, len(payload), 64):
            rest = payload[start : start + 64]
            while piece := self.inflater.decompress(rest, self.size - self.kept or self.step_when_full):
                rest = self.inflater.unconsumed_tail
                found += piece
                if self.kept < self.size:
                    self.kept += len(piece)
            assert not self.inflater.unconsumed_tail
            assert not self.inflater.unused_data
        return bytes(found)


def test_the_window_of_the_model_refuses_what_is_one_byte_too_far_back() -> None:
    # One block with the fixed codes of RFC 1951 section 3.2.6. It holds literals, then three bytes copied from
    # `distance` bytes back. The start of an empty block follows; the tail completes it.
    def message(literals: int, distance: int) -> bytes:
        bits = "010" + format(0x30 + ord("x"), "08b") * literals + "0000001"  # written from the left, as the codes are
        code = max(code for code in range(4, 30) if 1 + ((2 + code % 2) << (code // 2 - 1)) <= distance)
        extra = distance - (1 + ((2 + code % 2) << (code // 2 - 1)))
        bits += format(code, "05b") + format(extra, f"0{code // 2 - 1}b")[::-1] + "0000000" + "000"
        bits += "0" * (-len(bits) % 8)
        return bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))

    for bits in range(8, 15):
        size = 1 << bits
        for literals in (size + 1, size + 100, 2 * size + 50):
            assert Window(bits).decompress(message(literals, size)) == b"x" * (literals + 3)
            with pytest.raises(zlib.error, match="too far back"):
                Window(bits).decompress(message(literals, size + 1))


@dataclass
class Member:
    """A connection, the messages that its peer must receive, and the peer's window."""

    connection: Connection
    link: MemoryLink
    peer: LinkProbe
    rooms: set[str] = field(default_factory=set)
    expected: list[str | bytes] = field(default_factory=list)

    def received(self) -> list[str | bytes]:
        """Decompress everything that was written, with a window of the agreed size."""
        agreed = self.connection.compression
        deliver_all(self.link)
        assert self.peer.count("eof") == 0, "the hub closed a connection"
        data, messages = self.peer.received, []
        window = None
        while (decoded := Frame.decode(data)) is not None:
            frame, length = decoded
            data = data[length:]
            payload = frame.payload
            if frame.rsv1:
                assert agreed is not None
                if window is None or agreed.server_no_context_takeover:
                    window = Window(agreed.server_max_window_bits)
                payload = window.decompress(payload)
            assert frame.opcode in (Opcode.TEXT, Opcode.BINARY)
            messages.append(payload.decode() if frame.opcode is Opcode.TEXT else payload)
        assert not data
        return messages


class Model:
    """A hub, and the messages that each of its connections must receive."""

    def __init__(self, config: CompressionConfig, restart_interval: int) -> None:
        self.hub = Hub(HubConfig(compression=config, max_send_buffer=1 << 30))
        self.hub.bind()
        for room in ROOMS[:2]:
            self.hub.configure_room(room, compression="shared", restart_interval=restart_interval)
        self.members: list[Member] = []
        self.number = 0

    def connect(self, offer: bytes) -> None:
        fields = [(b"sec-websocket-extensions", offer)] if offer else []
        connection = self.hub.register_connection(TABLE, RequestHead("GET", "/", "1.1", Headers(fields)))
        link, other = create_memory_links()
        peer = LinkProbe(other)
        self.hub.open_on_link(connection, link, b"", b"")
        self.members.append(Member(connection, link, peer))

    def disconnect(self, member: Member) -> None:
        self.members.remove(member)
        member.link.cut(0)
        deliver_all(member.link)

    def join(self, member: Member, room: str) -> None:
        member.connection.join(room)
        member.rooms.add(room)

    def leave(self, member: Member, room: str) -> None:
        member.connection.leave(room)
        member.rooms.discard(room)

    def come_back(self, member: Member, room: str, missed: str | bytes) -> None:
        self.ticks(3)
        self.leave(member, room)
        self.broadcast(room, missed, None, None)
        self.join(member, room)
        self.ticks(2)

    def leave_out(self, member: Member, room: str, missed: str | bytes) -> None:
        self.ticks(3)
        self.broadcast(room, missed, member, None)
        self.ticks(2)

    def interrupt(self, member: Member, message: str | bytes, compress: bool | None) -> None:
        self.ticks(3)
        self.send(member, message, compress)
        self.ticks(2)
        for _ in range(2):
            self.send(member, message, compress)

    def insist(self, member: Member, message: str | bytes) -> None:
        # The first message desyncs the member.
        for each in (message_of(1), message, message):
            self.send(member, each, True)

    def ticks(self, count: int) -> None:
        for _ in range(count):
            self.number = (self.number + 1) % 60
            self.broadcast(ROOMS[0], message_of(8 * self.number + 3), None, None)

    def send(self, member: Member, message: str | bytes, compress: bool | None) -> None:
        member.connection.send(message, compress=compress)
        member.expected.append(message)

    def broadcast(self, room: str | None, message: str | bytes, exclude: Member | None, compress: bool | None) -> None:
        excluded = exclude.connection if exclude is not None else None
        receivers = [one for one in self.members if one is not exclude and (room is None or room in one.rooms)]
        assert self.hub.broadcast(message, room=room, exclude=excluded, compress=compress) == len(receivers)
        for member in receivers:
            member.expected.append(message)


async def test_a_broadcast_that_is_refused_leaves_a_shared_window_as_it_was() -> None:
    model = Model(CompressionConfig(threshold=0), restart_interval=100)
    for _ in range(2):
        model.connect(OFFERS[0])
        model.join(model.members[-1], ROOMS[0])
    model.ticks(3)
    for exclude in ([model.members[0].connection], {}, "1", 1.0):
        with pytest.raises(MisuseError, match="exclude"):
            model.hub.broadcast("never sent", room=ROOMS[0], exclude=exclude)  # type: ignore[arg-type]
        model.broadcast(ROOMS[0], "never sent", None, None)
    await asyncio.sleep(0)
    for member in model.members:
        assert member.received() == member.expected
        member.link.cut(0)
        deliver_all(member.link)
    await model.hub.close()


async def test_a_connection_of_another_hub_is_nobody_to_exclude() -> None:
    """It may have the id of a connection of this hub."""

    one, other = (Model(CompressionConfig(), restart_interval=1) for _ in range(2))
    for model in (one, other):
        model.connect(b"")
    stranger = other.members[0].connection
    assert one.members[0].connection.id == stranger.id
    assert one.hub.broadcast("hello", exclude=stranger) == 1
    assert one.hub.broadcast("hello", exclude=stranger.id) == 0
    for model in (one, other):
        model.members[0].link.cut(0)
        deliver_all(model.members[0].link)
        await model.hub.close()


@functools.cache
def message_of(number: int) -> str | bytes:
    """Return mostly similar ticks, and sometimes a message that is short, long or not to be compressed."""
    source = random.Random(number)
    kind = number % 8
    if kind == 0:
        return ""
    if kind in (1, 4):
        return json.dumps([{"row": i, "value": source.random()} for i in range(source.randrange(1, 900))])
    if kind == 2:
        return source.randbytes(source.randrange(1, 12_000))
    return json.dumps({"type": "tick", "symbol": source.choice("ABC"), "bid": source.random(), "seq": number})


messages = st.integers(0, 500).map(message_of)
# JSON of up to 30 KB. For the longest, the hub compresses independently and gives up the member's sync.
rows = st.integers(0, 60).map(lambda number: message_of(8 * number + 1))
noise = st.integers(0, 60).map(lambda number: message_of(8 * number + 2))
compress = st.sampled_from([None, None, None, True, False])
configs = st.builds(
    CompressionConfig,
    threshold=st.sampled_from([0, 100, 256]),
    server_context_takeover=st.booleans(),
    server_max_window_bits=st.sampled_from([15, 12, 9, 8]),
    level=st.sampled_from([2, 9]),
)


@given(configs, st.integers(1, 8), st.data())
@settings(max_examples=300)
def test_every_member_can_decompress_whatever_happens(config: CompressionConfig, restart_interval: int, data) -> None:
    def choice(options: list, label: str):
        return data.draw(st.sampled_from(options), label=label)

    async def scenario() -> None:
        model = Model(config, restart_interval)
        all_members = []
        for offer in data.draw(st.lists(st.sampled_from(OFFERS), min_size=1, max_size=6), label="offers"):
            model.connect(offer)
            for room in ROOMS[: data.draw(st.sampled_from([1, 1, 2, 3]), label="rooms")]:
                model.join(model.members[-1], room)
        all_members += model.members
        steps: dict[str, Callable[[], None]] = {
            "connect": lambda: model.connect(choice(OFFERS, "offer")),
            "disconnect": lambda: model.disconnect(choice(model.members, "who")),
            "join": lambda: model.join(choice(model.members, "who"), choice(ROOMS, "room")),
            "leave": lambda: model.leave(choice(model.members, "who"), choice(ROOMS, "room")),
            "send": lambda: model.send(choice(model.members, "who"), data.draw(messages), data.draw(compress)),
            "broadcast": lambda: model.broadcast(
                choice([*ROOMS, ROOMS[0], ROOMS[0], None], "room"),
                data.draw(messages),
                choice([*model.members, None, None], "exclude"),
                data.draw(compress),
            ),
            "many": lambda: model.ticks(9),
            "come back": lambda: model.come_back(choice(model.members, "who"), ROOMS[0], data.draw(messages)),
            "leave out": lambda: model.leave_out(choice(model.members, "who"), ROOMS[0], data.draw(messages)),
            "interrupt": lambda: model.interrupt(
                choice(model.members, "who"), data.draw(messages | rows), data.draw(compress)
            ),
            "insist": lambda: model.insist(choice(model.members, "who"), data.draw(noise)),
            "configure": lambda: model.hub.configure_room(
                choice(ROOMS, "room"), compression=choice(["shared", "message"], "compression"), restart_interval=3
            ),
            "flush": lambda: None,
        }
        names = ["broadcast"] * 4 + [*steps]
        for name in data.draw(st.lists(st.sampled_from(names), max_size=30), label="steps"):
            if not model.members and name != "connect":
                continue
            steps[name]()
            all_members += [member for member in model.members if member not in all_members]
            if name == "flush" or name == "disconnect":
                await asyncio.sleep(0)
                for member in model.members:
                    deliver_all(member.link)
        await asyncio.sleep(0)
        for member in all_members:
            received = member.received()
            if member in model.members:
                assert received == member.expected
            else:
                # Messages that were queued at the close may be missing.
                assert received == member.expected[: len(received)]
        for member in model.members:
            member.link.cut(0)
            deliver_all(member.link)
        await model.hub.close()

    asyncio.run(scenario())
