"""Envelopes of a cluster arrive once and in order, whatever its engines pass on again."""

from __future__ import annotations

import random
import struct

from wshub.brokers.sequence_numbers import InOrderReceiver, SequenceNumbers

HEAD = 20


class Hub:
    """Takes what passes."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.late: list[int] = []
        self.receiver = InOrderReceiver(self, self.late.append)  # type: ignore[arg-type]

    def receive(self, envelope: bytes) -> None:
        self.received.append(envelope)

    def take(self, *envelopes: bytes) -> list[bytes]:
        """Return those of the envelopes that pass."""
        count = len(self.received)
        for envelope in envelopes:
            self.receiver.receive(envelope)
        return self.received[count:]


def numbered(sender: SequenceNumbers, count: int, partition: int = 0) -> list[bytes]:
    return [sender.add_head(partition, b"%d" % number) for number in range(count)]


def test_what_is_in_order_passes_without_its_head() -> None:
    hub = Hub()
    assert hub.take(*numbered(SequenceNumbers(128), 3)) == [b"0", b"1", b"2"]
    assert hub.take(SequenceNumbers(1).add_head(0, b"")) == [b""]
    assert (hub.receiver.rejected, hub.late) == (0, [])


def test_a_duplicate_is_rejected_and_is_no_loss() -> None:
    hub, envelopes = Hub(), numbered(SequenceNumbers(128), 60)
    hub.take(*envelopes)
    assert hub.take(*envelopes) == []
    assert (hub.receiver.rejected, hub.late) == (60, [])


def test_what_was_overtaken_is_rejected_and_told_once() -> None:
    hub, envelopes = Hub(), numbered(SequenceNumbers(128), 10, partition=77)
    assert hub.take(envelopes[0], envelopes[3], envelopes[1], envelopes[2], envelopes[1]) == [b"0", b"3"]
    assert hub.late == [77, 77]
    assert hub.take(envelopes[4]) == [b"4"]


def test_what_was_overtaken_by_very_many_is_taken_for_lost() -> None:
    hub, envelopes = Hub(), numbered(SequenceNumbers(128), 1000)
    hub.take(envelopes[0], *envelopes[2:])
    assert hub.take(envelopes[1]) == []
    assert hub.late == [0]


def test_each_sender_and_each_partition_has_its_own_order() -> None:
    hub, first, second = Hub(), SequenceNumbers(4), SequenceNumbers(4)
    a, b, c = numbered(first, 3), numbered(first, 3, partition=3), numbered(second, 3)
    assert len(hub.take(a[2], b[1], c[0], b[2], c[1], c[2])) == 6
    assert hub.late == []


def test_what_has_no_head_passes_as_it_is() -> None:
    hub = Hub()
    for envelope in (b"", b"\xb1" * 40, b"\xa1" * (HEAD - 1), b"text", b"\xc1" + bytes(60)):
        assert hub.take(envelope, envelope) == [envelope, envelope]


def test_the_head_is_as_described() -> None:
    envelope = SequenceNumbers(300).add_head(258, b"x")
    mark, zero, partition, _, number = struct.unpack("<BBH8sQ", envelope[:HEAD])
    assert (mark, zero, partition, number, envelope[HEAD:]) == (0xA1, 0, 258, 1, b"x")


def test_it_agrees_with_a_model_of_sets() -> None:
    chance = random.Random(5)
    hub, senders = Hub(), [SequenceNumbers(2) for _ in range(3)]
    sent: list[tuple[tuple[int, int], int, bytes]] = []
    newest: dict[tuple[int, int], int] = {}
    for step in range(5000):
        if step % 2 == 0 or not sent:
            key = chance.randrange(3), chance.randrange(2)
            number = sum(other == key for other, _, _ in sent)
            sent.append((key, number, senders[key[0]].add_head(key[1], b"%d" % step)))
        key, number, envelope = chance.choice(sent[-30:])
        expected = number > newest.get(key, -1)
        newest[key] = max(number, newest.get(key, -1))
        assert bool(hub.take(envelope)) == expected


def test_very_many_senders_need_bounded_memory_and_those_in_use_stay() -> None:
    hub, kept = Hub(), SequenceNumbers(1)
    old = kept.add_head(0, b"old")
    hub.take(old)
    for number in range(60_000):
        hub.receiver.receive(b"\xa1\0\0\0" + struct.pack("<QQ", number, 1))
        if number % 10_000 == 0:
            assert hub.take(kept.add_head(0, b"new")) == [b"new"]
    assert hub.take(old) == []
