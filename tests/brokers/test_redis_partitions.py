"""Channels of a cluster lie in partitions, whose hash tags are spread over all slots."""

from __future__ import annotations

import zlib

import pytest

pytest.importorskip("hiredis")

from tests.support.redis_cluster import slot_of
from wshub.brokers.redis_partitions import SLOTS, Partitions, ShardedNames
from wshub.brokers.redis_topology import parse_view, redirection
from wshub.brokers.redis_url import RedisAddress
from wshub.errors import BrokerError

ASKED = RedisAddress(host="seed", port=7000)


def test_the_tags_are_the_same_for_ever() -> None:
    """Nodes of different versions must agree."""
    partitions = Partitions(128)
    assert partitions.tags[:4] == [b"14", b"10", b"100", b"18"]
    assert zlib.crc32(b",".join(partitions.tags)) == 2474682202
    assert [partitions.of(name) for name in ("all", "room:", "room:Zoë", "room:\udc80")] == [93, 34, 115, 87]


@pytest.mark.parametrize("number", [1, 2, 16, 128, 1000, 4096])
def test_engines_with_as_many_slots_have_as_many_partitions(number: int) -> None:
    partitions = Partitions(number)
    assert len(set(partitions.slots)) == number
    for engines in (1, 2, 3, 5, 6, 16):
        counts = [0] * engines
        for slot in partitions.slots:
            counts[slot * engines // SLOTS] += 1
        assert max(counts) - min(counts) <= 2
        assert sum(counts) == number


def test_names_are_spread_over_the_partitions() -> None:
    partitions = Partitions(128)
    counts = [0] * 128
    for number in range(12_800):
        counts[partitions.of(f"room:{number}")] += 1
    assert min(counts) > 50
    assert max(counts) < 150
    for partition in (0, 77, 127):
        assert partitions.of(partitions.name_in(partition, "probe:")) == partition


@pytest.mark.parametrize("prefix", ["wshub", "a:b", "Zoë"])
@pytest.mark.parametrize(
    "channel", ["all", "room:", "room:{a}", "room:}:hub:", "room:\0 *?[", "room:\udc80", "room:" + "x" * 70_000]
)
def test_the_name_of_a_channel_has_the_slot_of_its_partition_and_can_be_decoded(prefix: str, channel: str) -> None:
    partitions = Partitions(128)
    names = ShardedNames(prefix, "chat", partitions)
    name = names.encode(channel)
    assert slot_of(name) == partitions.slots[names.group(channel)]
    assert names.decode(name) == channel
    assert slot_of(names.tagged_key(b"wshub", channel)) == slot_of("{wshub}")


def test_a_name_of_another_table_is_none() -> None:
    names = ShardedNames("wshub", "chat", Partitions(128))
    tag = Partitions(64).tags[Partitions(64).of("room:a")]
    for name in (b"wshub:{%b}:chat:room:a" % tag, b"wshub:chat:room:a", b"wshub:{1", b"wshub:{1}:other:a", b"\xff"):
        assert names.decode(name) is None


SLOTS_ANSWER = [
    [0, 8191, [b"10.0.0.1", 7001, b"a" * 40, []], [b"10.0.0.3", 7003, b"c" * 40, []]],
    [8192, 16382, [None, 7002, b"b" * 40]],
]
NODES_ANSWER = (
    b"%b 10.0.0.1:7001@17001,one myself,master - 0 0 5 connected 0-8191\n"
    b"%b :7002@17002 master - 0 1 7 connected 8192-16382\n"
    b"%b 10.0.0.3:7003@17003 slave %b 0 1 5 connected\n" % (b"a" * 40, b"b" * 40, b"c" * 40, b"a" * 40)
)


def test_a_view_has_the_owner_of_each_slot() -> None:
    view = parse_view(SLOTS_ANSWER, NODES_ANSWER, ASKED, None)
    first, second = view.claim(0), view.claim(16_382)
    assert first is not None
    assert second is not None
    assert (first.host, first.port, first.epoch) == ("10.0.0.1", 7001, 5)
    assert view.claim(8191) is first
    # A node that does not know its own address has the one at which it was asked.
    assert (second.host, second.port, second.epoch) == ("seed", 7002, 7)
    assert view.claim(16_383) is None
    remapped = parse_view(SLOTS_ANSWER, NODES_ANSWER, ASKED, lambda host, port: ("localhost", port + 1)).claim(0)
    assert remapped is not None
    assert (remapped.host, remapped.port) == ("localhost", 7002)


@pytest.mark.parametrize(
    ("slots", "nodes"),
    [
        (BrokerError("NOPERM"), NODES_ANSWER),
        (SLOTS_ANSWER, BrokerError("ERR This instance has cluster support disabled")),
        (b"OK", NODES_ANSWER),
        ([[0, 1]], NODES_ANSWER),
        ([[0, 1, [b"\xff", 1, b"a"]]], NODES_ANSWER),
        (SLOTS_ANSWER, b"a b c"),
        (SLOTS_ANSWER, None),
    ],
)
def test_what_no_node_answers_is_an_error_that_may_pass(slots: object, nodes: object) -> None:
    with pytest.raises(OSError, match="slots"):
        parse_view(slots, nodes, ASKED, None)


def test_a_redirection_names_a_slot_and_an_engine() -> None:
    assert redirection("MOVED 3999 127.0.0.1:6381", ASKED, None) == (3999, "127.0.0.1", 6381)
    assert redirection("MOVED 1 ::1:6381", ASKED, None) == (1, "::1", 6381)
    assert redirection("MOVED 1 :6381", ASKED, None) == (1, "seed", 6381)
    assert redirection("MOVED 1 a:1", ASKED, lambda host, port: ("b", port + 1)) == (1, "b", 2)
    for text in ("MOVED", "MOVED 1", "MOVED x a:1", "MOVED 1 a", "MOVED 1 a:b", "MOVED 1 a:1 2"):
        assert redirection(text, ASKED, None) is None
