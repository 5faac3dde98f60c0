"""The parser of what a Redis engine sends."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from typing import Any

import hiredis
import pytest

from tests.support.programs import environment
from wshub.brokers.redis_reader import RedisReader
from wshub.errors import BrokerError, BrokerUncertain

ENVELOPE = b">3\r\n$7\r\nmessage\r\n$6\r\nroom:a\r\n$5\r\nhel\r\n\r\n"
PROBE = b">3\r\n$7\r\nmessage\r\n$7\r\nprobe:x\r\n$1\r\n7\r\n"
ACKNOWLEDGEMENT = b">3\r\n$9\r\nsubscribe\r\n$6\r\nroom:a\r\n:1\r\n"


class Parsed:
    """A parser, and all calls that it has made."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.reader = RedisReader(
            self,  # type: ignore[arg-type]
            b"probe:x",
            lambda items: self.log.append(("push", items)),
            lambda: self.log.append("settled"),
            lambda error: self.log.append(("refused", str(error))),
            lambda head, envelope, error: self.log.append((head, envelope, str(error))),
        )

    def receive(self, envelope: bytes) -> None:
        self.log.append(envelope)


def test_bytes_may_come_in_any_pieces() -> None:
    stream = ACKNOWLEDGEMENT + ENVELOPE + PROBE + ENVELOPE * 2
    expected = [
        *(("push", [b"subscribe", b"room:a", 1]), "settled", b"hel\r\n"),
        *(("push", [b"message", b"probe:x", b"7"]), "settled", b"hel\r\n", b"hel\r\n"),
    ]
    for size in (1, 2, 7, 50, 1000):
        parsed = Parsed()
        for start in range(0, len(stream), size):
            parsed.reader.feed(stream[start : start + size])
        # In pieces, the end of a piece settles too.
        assert [event for event in parsed.log if event != "settled"] == [one for one in expected if one != "settled"]
        assert parsed.log.index("settled") < parsed.log.index(b"hel\r\n")
        assert parsed.reader.envelopes_received == 3
    assert parsed.log == expected


def test_a_large_envelope_and_many_small_ones_arrive_whole() -> None:
    large = random.Random(1).randbytes(3_000_000)
    parsed = Parsed()
    stream = ENVELOPE * 5000 + b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$%d\r\n%b\r\n" % (len(large), large) + ENVELOPE
    for start in range(0, len(stream), 65_536):
        parsed.reader.feed(stream[start : start + 65_536])
    assert parsed.log == [b"hel\r\n"] * 5000 + [large, b"hel\r\n"]


def test_replies_go_to_what_waits_for_them_in_order() -> None:
    parsed = Parsed()
    for waiting in (None, lambda reply: parsed.log.append(("reply", reply)), None, parsed.log.append):
        parsed.reader.expect(waiting)
    assert parsed.reader.replies_due == 4
    assert parsed.reader.envelopes_sent == 2
    parsed.reader.feed(b":1\r\n-NOPERM no\r\n-ERR bad\r\n" + ENVELOPE + b"*2\r\n+a\r\n_\r\n")
    error = parsed.log[0][1]
    assert isinstance(error, BrokerError)
    assert str(error) == "NOPERM no"
    assert parsed.log[1:] == [("refused", "ERR bad"), b"hel\r\n", [b"a", None]]
    # An error that nothing waits for is that of a command which is answered by pushes.
    parsed.reader.feed(b"-LOADING later\r\n")
    assert parsed.log[-1] == ("refused", "LOADING later")
    with pytest.raises(BrokerError, match="without a command"):
        parsed.reader.feed(b":1\r\n")


SHORT_REPLIES = (
    *(b":0\r\n", b":123456\r\n", b"$8\r\nabcdefgh\r\n", b"$2\r\n\r\n\r\n", b"$0\r\n\r\n", b"*0\r\n"),
    b"*4\r\n:7\r\n$8\r\nabcdefgh\r\n:0\r\n:3\r\n",
)
OTHER_REPLIES = (
    *(b":-1\r\n", b":%d\r\n" % 2**62, b"$-1\r\n", b"+OK\r\n", b"_\r\n", b"$65\r\n%b\r\n" % bytes(65)),
    *(b"*9\r\n%b" % (b":1\r\n" * 9), b"*2\r\n*1\r\n:1\r\n:2\r\n", b"*-1\r\n", b"%1\r\n+a\r\n:1\r\n"),
)
ERROR_REPLY = b"-ERR bad\r\n"


@pytest.mark.parametrize("size", [1, 3, 17, 8192])
def test_replies_that_are_skipped_and_replies_that_are_waited_for_keep_their_order(size: int) -> None:
    chance = random.Random(size)
    parsed, stream, expected = Parsed(), [], []
    for number in range(500):
        reply = chance.choice((*SHORT_REPLIES, *OTHER_REPLIES, ERROR_REPLY))
        stream.append(reply)
        kind = chance.randrange(4)
        if kind == 0:
            parsed.reader.expect(lambda found, number=number: parsed.log.append((number, repr(found))))
            parser = hiredis.Reader(replyError=BrokerError)
            parser.feed(reply)
            expected.append((number, repr(parser.gets())))
        elif kind == 1:
            parsed.reader.expect(None)
            expected += [("refused", "ERR bad")] * (reply == ERROR_REPLY)
        elif kind == 2:
            parsed.reader.expect((lambda kept, error: parsed.log.append((kept[1], str(error))), number))
            expected += [(number, "ERR bad")] * (reply == ERROR_REPLY)
        else:
            head, envelope = b"head %d" % number, b"envelope %d" % number
            parsed.reader.expect_stored(head, envelope)
            expected += [(head, envelope, "ERR bad")] * (reply == ERROR_REPLY)
        if chance.randrange(20) == 0:
            stream.append(ENVELOPE)
            expected.append(b"hel\r\n")
    sent = b"".join(stream)
    for start in range(0, len(sent), size):
        parsed.reader.feed(sent[start : start + size])
    assert parsed.log == expected
    assert parsed.reader.replies_due == 0


def test_many_replies_may_be_due_at_any_time() -> None:
    chance = random.Random(3)
    parsed, expected, due = Parsed(), [], 0
    for number in range(3000):
        # Now and then few are due, now and then many more than before.
        if due and chance.randrange(1000) < number % 1000:
            parsed.reader.feed(b":1\r\n" if due % 2 else ERROR_REPLY)
            due -= 1
            continue
        due += 1
        parsed.reader.expect_stored(b"head", b"%d" % number)
        expected.append(number)
    del expected[: len(expected) - due]
    assert parsed.reader.replies_due == due
    parsed.log.clear()
    for _ in range(due):
        parsed.reader.feed(ERROR_REPLY)
    assert parsed.log == [(b"head", b"%d" % number, "ERR bad") for number in expected]


def test_calls_that_were_stored_are_released() -> None:
    parsed = Parsed()
    envelope = bytes(100)
    before = sys.getrefcount(envelope)
    for _ in range(100):
        parsed.reader.expect_stored(b"head", envelope)
    for _ in range(70):
        parsed.reader.feed(b":1\r\n")
    assert sys.getrefcount(envelope) == before + 30
    parsed.reader.feed(ERROR_REPLY)
    parsed.log.clear()
    assert sys.getrefcount(envelope) == before + 29
    assert parsed.reader.end(BrokerUncertain("lost")) == 29
    assert sys.getrefcount(envelope) == before
    another = Parsed()
    another.reader.expect_stored(b"head", envelope)
    del another
    gc.collect()
    assert sys.getrefcount(envelope) == before


@pytest.mark.parametrize("damaged", [b":x\r\n", b":\r\n", b"*1\r\n:1\n\n", b"*x\r\n", b"$x\r\n"])
def test_a_reply_that_is_only_counted_and_is_damaged_is_an_error(damaged: bytes) -> None:
    parsed = Parsed()
    for _ in range(3):
        parsed.reader.expect(None)
    with pytest.raises(BrokerError):
        for piece in (b":1\r\n", damaged, b":1\r\n"):
            parsed.reader.feed(piece)


def test_the_end_answers_everything_and_is_the_end() -> None:
    parsed = Parsed()
    for waiting in (None, parsed.log.append, None, parsed.log.append):
        parsed.reader.expect(waiting)
    parsed.reader.expect_stored(b"head", b"envelope")
    parsed.reader.expect((parsed.log.append, "kept"))
    lost = BrokerUncertain("lost")
    assert parsed.reader.end(lost) == 4
    assert parsed.log == [lost, lost]
    parsed.reader.feed(ENVELOPE + ACKNOWLEDGEMENT + b":1\r\n")
    assert parsed.log == [lost, lost]
    assert parsed.reader.end(lost) == 0


def test_an_end_in_the_middle_of_a_read_stops_it() -> None:
    parsed = Parsed()
    parsed.reader.expect(lambda reply: parsed.reader.end(BrokerUncertain("closed")))
    parsed.reader.feed(ENVELOPE + b":1\r\n" + ENVELOPE)
    assert parsed.log == [b"hel\r\n"]


def test_a_reply_that_is_too_large_is_an_error() -> None:
    parsed = Parsed()
    parsed.reader.feed(b"$500000000\r\n")
    with pytest.raises(BrokerError, match="bytes"):
        for _ in range(100):
            parsed.reader.feed(bytes(1 << 20))


def test_damaged_bytes_are_errors_or_other_values_and_nothing_else() -> None:
    chance = random.Random(7)
    stream = (ACKNOWLEDGEMENT + ENVELOPE + PROBE + b"%1\r\n+a\r\n#t\r\n,1.5\r\n:1\r\n-ERR\r\n~1\r\n_\r\n") * 3
    for _ in range(3000):
        damaged = bytearray(stream)
        for _ in range(chance.randrange(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        parsed = Parsed()
        for _ in range(chance.randrange(30)):
            parsed.reader.expect(chance.choice((None, parsed.log.append)))
        try:
            for start in range(0, len(damaged), 40):
                parsed.reader.feed(bytes(damaged[start : start + 40]))
        except BrokerError:
            pass
        parsed.reader.end(BrokerUncertain("the end"))
        assert parsed.reader.replies_due == 0


WITHOUT_HIREDIS = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "hiredis":
            raise ModuleNotFoundError("No module named 'hiredis'", name=name)

sys.meta_path.insert(0, Finder())
import wshub.brokers.redis
"""


def test_without_hiredis_the_error_says_what_to_install() -> None:
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_HIREDIS], env=environment(), capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert "pip install wshub[redis]" in found.stderr
