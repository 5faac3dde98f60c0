"""The frame queue against a list. After each operation both have the same frames, order and counts."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wshub.links.queue_probe import FrameProbe, QueueProbe

LEAST_CHARGE = 64
COPY_LIMIT = 2048
CHUNK = 47
PING, BINARY, RAW = 0x9, 0x2, 0xFF


@dataclass(eq=False, kw_only=True)
class Frame:
    """A frame and its expected outcome."""

    wire: bytes
    opcode: int
    key: int = 0
    droppable: bool = False
    uses_context: bool = False
    window_bits: int = 0
    outcome: str = "pending"
    accepted: bool = False

    @property
    def charge(self) -> int:
        return max(len(self.wire), LEAST_CHARGE)


@dataclass(eq=False, kw_only=True)
class ProbedFrame(Frame):
    """A frame that the test holds too."""

    probe: FrameProbe


@dataclass(eq=False, kw_only=True)
class RawFrame(Frame):
    """A frame that only the queue holds, and its space."""

    capacity: int


@dataclass(eq=False)
class Entry:
    """A place in the list. It is pinned if its frame is partly written, or came before all droppable ones."""

    frame: Frame
    droppable: bool
    uses_context: bool


class Model:
    """A list of frames that behaves as the queue should."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.sent = 0
        # From the first droppable frame on, the queue marks frames until it is empty.
        self.marks = False

    def append(self, frame: Frame) -> None:
        if not self.entries:
            self.marks = False
        self.marks = self.marks or frame.droppable
        droppable = frame.droppable and not frame.uses_context
        self.entries.append(Entry(frame, droppable, self.marks and frame.uses_context))

    def push(self, frame: Frame) -> None:
        self.append(frame)
        frame.accepted = True

    def extend(self, data: bytes) -> bool:
        last = self.entries[-1].frame if self.entries else None
        if not isinstance(last, RawFrame) or len(last.wire) + len(data) > last.capacity:
            return False
        last.wire += data
        return True

    def leave(self, index: int, outcome: str) -> Frame:
        frame = self.entries.pop(index).frame
        frame.outcome = outcome
        if index == 0:
            self.sent = 0
        return frame

    def advance(self, length: int) -> int:
        gone = 0
        while length:
            rest = len(self.entries[0].frame.wire) - self.sent
            if length < rest:
                self.sent += length
                self.entries[0].droppable = self.entries[0].uses_context = False
                break
            length -= rest
            gone += self.leave(0, "delivered").opcode < 8
        return gone

    def make_space(self, bound: int) -> int:
        if self.charge - sum(entry.frame.charge for entry in self.entries if entry.droppable) >= bound:
            return 0
        dropped = 0
        while self.charge >= bound:
            self.leave(next(i for i, entry in enumerate(self.entries) if entry.droppable), "oldest")
            dropped += 1
        return dropped

    def replace(self, frame: Frame) -> bool:
        places = [i for i, entry in enumerate(self.entries) if entry.droppable and entry.frame.key == frame.key != 0]
        if not places:
            return False
        place = places[-1]
        former = self.entries[place].frame
        compressed_over_plain = frame.window_bits != 0 and former.window_bits == 0
        if frame.uses_context or (compressed_over_plain and any(entry.uses_context for entry in self.entries)):
            self.append(frame)
            self.leave(place, "replaced")
        else:
            former.outcome = "replaced"
            self.entries[place] = Entry(frame, frame.droppable, False)
        frame.accepted = True
        return True

    def discard_unsent(self) -> int:
        kept = 1 if self.sent else 0
        gone = sum(entry.frame.opcode < 8 for entry in self.entries[kept:])
        for entry in self.entries[kept:]:
            entry.frame.outcome = "slow"
        del self.entries[kept:]
        self.marks = bool(kept) and self.entries[0].frame.droppable
        return gone

    def covering(self, length: int) -> int:
        """Return how many entries the first bytes belong to."""
        count, covered = 0, -self.sent
        while covered < length:
            covered += len(self.entries[count].frame.wire)
            count += 1
        return count

    def pin(self, length: int) -> None:
        for entry in self.entries[: self.covering(length)]:
            entry.droppable = entry.uses_context = False

    def discard_after(self, kept: int) -> int:
        rest = self.entries[self.covering(kept) :]
        for entry in rest:
            entry.frame.outcome = "slow"
        del self.entries[self.covering(kept) :]
        return sum(entry.frame.opcode < 8 for entry in rest)

    @property
    def length(self) -> int:
        return sum(len(entry.frame.wire) for entry in self.entries) - self.sent

    @property
    def charge(self) -> int:
        return sum(entry.frame.charge for entry in self.entries) - self.sent

    @property
    def messages(self) -> int:
        return sum(entry.frame.opcode < 8 for entry in self.entries)

    @property
    def stream(self) -> bytes:
        return b"".join(entry.frame.wire for entry in self.entries)[self.sent :]


SIZES = st.one_of(st.integers(0, 80), st.integers(120, 130), st.integers(COPY_LIMIT - 8, COPY_LIMIT + 8))
KEYS = st.integers(1, 2)
KINDS = st.sampled_from(["plain", "ping", "droppable", "keyed", "keyed", "compressed", "in context", "kept in context"])


class QueueAgainstList(RuleBasedStateMachine):
    """Takes the same steps with the queue and the list."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = QueueProbe()
        self.model = Model()
        self.frames: list[ProbedFrame] = []

    def frame(self, kind: str, size: int, key: int) -> ProbedFrame:
        number = len(self.frames)
        payload = (number.to_bytes(4, "big") * (size // 4 + 1))[:size]
        opcode = PING if kind == "ping" else BINARY
        droppable = kind not in ("plain", "ping", "kept in context")
        key = key if kind in ("keyed", "compressed", "in context") else 0
        uses_context = "in context" in kind
        window_bits = 15 if uses_context or kind == "compressed" else 0
        probe = FrameProbe(
            payload, opcode, key, droppable=droppable, uses_context=uses_context, window_bits=window_bits
        )
        frame = ProbedFrame(
            wire=probe.wire,
            opcode=opcode,
            key=key,
            droppable=droppable,
            uses_context=uses_context,
            window_bits=window_bits,
            probe=probe,
        )
        self.frames.append(frame)
        return frame

    @rule(kind=KINDS, size=SIZES, key=KEYS, count=st.sampled_from([1, 1, 1, 2, CHUNK - 1, CHUNK + 1]))
    def push(self, kind: str, size: int, key: int, count: int) -> None:
        for _ in range(count):
            frame = self.frame(kind, size, key)
            self.queue.push(frame.probe)
            self.model.push(frame)

    @rule(data=st.binary(min_size=1, max_size=100), capacity=st.sampled_from([1, 100, COPY_LIMIT + 8]))
    def push_raw(self, data: bytes, capacity: int) -> None:
        self.queue.push_raw(data, capacity)
        self.model.push(RawFrame(wire=data, opcode=RAW, capacity=max(len(data), capacity)))

    @rule(data=st.binary(max_size=COPY_LIMIT))
    def extend(self, data: bytes) -> None:
        assert self.queue.extend(data) == self.model.extend(data)

    @rule(kind=st.sampled_from(["keyed", "keyed", "compressed", "in context"]), size=SIZES, key=KEYS)
    def replace(self, kind: str, size: int, key: int) -> None:
        frame = self.frame(kind, size, key)
        assert self.queue.replace(frame.probe) == self.model.replace(frame)

    @precondition(lambda self: self.model.entries)
    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        most = self.model.length if data.draw(st.booleans()) else min(self.model.length, 200)
        length = data.draw(st.integers(0, most))
        assert self.queue.advance(length) == self.model.advance(length)

    @precondition(lambda self: self.model.entries)
    @rule()
    def pop(self) -> None:
        assert self.queue.pop() == self.model.leave(0, "delivered").wire

    @rule(data=st.data())
    def make_space(self, data: st.DataObject) -> None:
        bound = data.draw(st.integers(0, self.model.charge + 1))
        assert self.queue.make_space(bound) == self.model.make_space(bound)

    @precondition(lambda self: len(self.model.entries) > 5)
    @rule()
    def discard_unsent(self) -> None:
        assert self.queue.discard_unsent() == self.model.discard_unsent()

    @precondition(lambda self: self.model.entries)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        length = data.draw(st.integers(1, self.model.length))
        self.queue.pin(length)
        self.model.pin(length)

    @precondition(lambda self: len(self.model.entries) > 5)
    @rule(data=st.data())
    def discard_after(self, data: st.DataObject) -> None:
        kept = data.draw(st.integers(1, self.model.length))
        assert self.queue.discard_after(kept) == self.model.discard_after(kept)

    @rule(size=st.sampled_from([0, 1, 100, 16384, 65536]))
    def copy(self, size: int) -> None:
        assert self.queue.copy(size) == self.model.stream[:size]

    @rule(count=st.integers(1, 8), scratch=st.sampled_from([COPY_LIMIT, 4096, 65536]))
    def gather(self, count: int, scratch: int) -> None:
        pieces = self.queue.gather(count, scratch)
        assert self.model.stream.startswith(b"".join(pieces))
        assert len(pieces) <= count
        assert bool(pieces) == bool(self.model.entries)

    @invariant()
    def they_are_equal(self) -> None:
        assert self.queue.is_empty == (not self.model.entries)
        assert self.queue.length == self.model.length
        assert self.queue.charge == self.model.charge
        assert self.queue.messages == self.model.messages
        assert self.queue.sent == self.model.sent
        self.check_frames()

    def check_frames(self) -> None:
        queued = {id(entry.frame) for entry in self.model.entries}
        for frame in self.frames:
            counts = frame.probe.counts
            assert frame.probe.references == (id(frame) in queued)
            assert counts["messages_accepted"] == frame.accepted
            assert counts["messages_pending"] == (id(frame) in queued)
            assert counts["messages_delivered"] == (frame.outcome == "delivered")
            assert {name for name, count in counts["dropped"].items() if count} == {frame.outcome} - {
                "pending",
                "delivered",
            }
        # Frames that have left the queue do not change again.
        self.frames = [frame for frame in self.frames if id(frame) in queued]

    def teardown(self) -> None:
        left = b""
        while not self.queue.is_empty:
            piece = self.queue.gather(1, 4096)[0]
            left += piece
            self.queue.advance(len(piece))
        assert left == self.model.stream


QueueAgainstList.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestQueueAgainstList = QueueAgainstList.TestCase


def test_a_queue_that_is_given_up_releases_its_frames() -> None:
    queue = QueueProbe()
    frames = [FrameProbe(bytes(size)) for size in range(200)]
    for frame in frames:
        queue.push(frame)
    queue.advance(len(frames[0].wire) + 1)
    assert [frame.references for frame in frames] == [0] + [1] * 199
    del queue
    assert not any(frame.references for frame in frames)
    assert frames[0].counts["messages_delivered"] == 1
    assert all(frame.counts["dropped"]["closed"] == 1 for frame in frames[1:])


def test_a_cleared_queue_says_how_many_messages_it_had() -> None:
    queue = QueueProbe()
    for opcode in (BINARY, PING, BINARY):
        queue.push(FrameProbe(b"x", opcode))
    assert queue.clear() == 2
    assert queue.is_empty
    assert (queue.length, queue.charge, queue.messages) == (0, 0, 0)


def pushed(queue: QueueProbe, *frames: FrameProbe) -> None:
    for frame in frames:
        queue.push(frame)


def test_a_compressed_message_goes_behind_one_in_context_rather_than_in_front_of_it() -> None:
    queue = QueueProbe()
    plain = FrameProbe(b"plain", conflation_key=1, droppable=True)
    in_context = FrameProbe(b"in context", droppable=True, uses_context=True, window_bits=15)
    compressed = FrameProbe(b"compressed", conflation_key=1, droppable=True, window_bits=15)
    pushed(queue, plain, in_context)
    assert queue.replace(compressed)
    assert [queue.pop(), queue.pop()] == [in_context.wire, compressed.wire]


def test_a_compressed_message_takes_the_place_of_a_plain_one_if_none_is_in_context() -> None:
    queue = QueueProbe()
    plain, other = FrameProbe(b"plain", conflation_key=1, droppable=True), FrameProbe(b"other", droppable=True)
    compressed = FrameProbe(b"compressed", conflation_key=1, droppable=True, window_bits=15)
    pushed(queue, plain, other)
    assert queue.replace(compressed)
    assert [queue.pop(), queue.pop()] == [compressed.wire, other.wire]


def test_a_frame_that_has_begun_to_leave_is_neither_dropped_nor_replaced() -> None:
    queue = QueueProbe()
    first = FrameProbe(bytes(100), conflation_key=1, droppable=True)
    pushed(queue, first, FrameProbe(bytes(100), conflation_key=2, droppable=True))
    queue.advance(1)
    assert not queue.replace(FrameProbe(b"newer", conflation_key=1, droppable=True))
    assert queue.make_space(102) == 1
    assert queue.discard_unsent() == 0
    assert queue.length == len(first.wire) - 1
