"""URLs of NATS servers, and the subjects of channels."""

from __future__ import annotations

import hashlib
import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshub import Hub
from wshub.brokers.choosing import broker_from_url
from wshub.brokers.interface import pattern_channel
from wshub.errors import ConfigurationError

pytest.importorskip("nats")

from wshub.brokers.nats import NatsBroker
from wshub.brokers.nats_subjects import SubjectNames
from wshub.brokers.nats_url import NatsAddress, NatsServer, parse_nats_url

LOCAL = (NatsServer("localhost"),)
AB = (NatsServer("a"), NatsServer("b"))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("nats://localhost", NatsAddress(LOCAL)),
        ("nats://localhost/", NatsAddress(LOCAL)),
        ("tls://localhost:1", NatsAddress((NatsServer("localhost", 1),), tls=True)),
        ("nats://[::1]:7000", NatsAddress((NatsServer("::1", 7000),))),
        ("nats://ann:s%40cr%2Ct@localhost", NatsAddress(LOCAL, username="ann", password="s@cr,t")),
        ("nats://t0ken@localhost", NatsAddress(LOCAL, token="t0ken")),
        ("nats://localhost?credentials=/run/a%20b", NatsAddress(LOCAL, credentials="/run/a b")),
        ("nats://localhost?replicas=3", NatsAddress(LOCAL, replicas=3)),
        ("tls://a,b?credentials=/c&replicas=5", NatsAddress(AB, credentials="/c", tls=True, replicas=5)),
        ("nats://a,b:1", NatsAddress((NatsServer("a"), NatsServer("b", 1)))),
        ("nats://u:p@a, nats://u:p@b", NatsAddress(AB, username="u", password="p")),
        ("tls://u:@a,b", NatsAddress(AB, username="u", tls=True)),
    ],
)
def test_a_url_names_servers(url: str, address: NatsAddress) -> None:
    assert parse_nats_url(url) == address
    broker = broker_from_url(url)
    assert isinstance(broker, NatsBroker)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "ws://localhost",
        "nats://",
        "nats://a,",
        "nats://a:port",
        "nats://a:99999",
        "nats://a/room",
        "nats://a?x=1",
        "nats://user:p#ss@a",
        "nats://a,tls://b",
        "nats://u:p@a,v:q@b",
        "nats://u:p@a?credentials=/run/c",
        "nats://[::1",
        "nats://a?replicas=",
        "nats://a?replicas=0",
        "nats://a?replicas=2",
        "nats://a?replicas=three",
        "nats://a?replicas=\u0663",
        "nats://a?replicas=-3",
    ],
)
def test_a_wrong_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError):
        NatsBroker(url)


@pytest.mark.parametrize("url", ["nats://ann:secret@host:port", "nats://ann:secret@a/x", "tls://ann:secret@a,nats://b"])
def test_an_error_does_not_show_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        NatsBroker(url)
    assert "secret" not in str(caught.value)


def test_a_repr_does_not_show_credentials() -> None:
    assert repr(NatsBroker("nats://ann:secret@a,b:1")) == "NatsBroker('nats://a:4222,b:1', prefix='wshub')"
    assert "secret" not in repr(NatsBroker("nats://secret@a"))
    assert "secret" not in repr(parse_nats_url("nats://ann:secret@a"))


def test_replicas_are_in_the_url_or_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    for broker, replicas in (
        (NatsBroker("nats://a"), 1),
        (NatsBroker("nats://a?replicas=3"), 3),
        (NatsBroker("nats://a", replicas=5), 5),
    ):
        assert broker._settings.replicas == replicas
    monkeypatch.setenv("WSHUB_BROKER", "nats://a?replicas=3")
    hub = Hub()
    assert isinstance(hub.broker, NatsBroker)
    assert hub.broker._settings.replicas == 3
    with pytest.raises(ConfigurationError, match="twice"):
        NatsBroker("nats://a?replicas=3", replicas=3)


@pytest.mark.parametrize("replicas", [0, 2, 4, 7, "3", True])
def test_replicas_are_1_3_or_5(replicas: object) -> None:
    with pytest.raises(ConfigurationError, match="replicas"):
        NatsBroker("nats://a", replicas=replicas)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["", "a.b", "a b", "*", ">", 5, "größe"])
def test_a_prefix_is_one_plain_token(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="prefix"):
        NatsBroker("nats://localhost", prefix=prefix)


def test_arguments_are_checked(certificate) -> None:
    with pytest.raises(ConfigurationError, match="tls://"):
        NatsBroker("nats://localhost", ssl=certificate.client_context())
    with pytest.raises(ConfigurationError, match="max_pending"):
        NatsBroker("nats://localhost", max_pending=0)


def hash_of(channel: str) -> str:
    return hashlib.sha256(channel.encode()).hexdigest()


@pytest.mark.parametrize(
    ("channel", "subject"),
    [
        ("all", "p.h.all"),
        ("room:lobby", "p.h.room.lobby"),
        ("room:chat.7", "p.h.room.chat.7"),
        ("room:", "p.h.room.="),
        ("room:.", "p.h.room.=.="),
        ("room:chat:7", "p.h.room.chat=3A.7"),
        ("room:eu/chat:7.1", "p.h.room.eu=2F.chat=3A.7.1"),
        ("room::", "p.h.room.=3A.="),
        ("user:ann:1", "p.h.user.ann=3A.1"),
        ("room:" + "tenant:" * 40, "p.h.room." + "tenant=3A." * 12 + "=sha256-" + hash_of("room:" + "tenant:" * 40)),
        ("room:a b", "p.h.room.a=20b"),
        ("room:=", "p.h.room.=3D"),
        ("room:*", "p.h.room.=2A"),
        ("room:ü", "p.h.room.=C3=BC"),
        ("room:\udc80", "p.h.room.=ED=B2=80"),
    ],
)
def test_a_channel_has_a_readable_subject(channel: str, subject: str) -> None:
    assert SubjectNames("p", "h").subject(channel) == subject


def test_a_long_name_has_a_hash() -> None:
    names = SubjectNames("p", "h" * 5000)
    subjects = {names.subject(f"room:{'x' * length}") for length in (250, 300, 301, 65_536)}
    assert len(subjects) == 4
    assert max(map(len, subjects)) < 400
    assert names.subject("room:" + "x" * 300) == names.start + "room.=sha256-" + hash_of("room:" + "x" * 300)
    # A pattern takes them too, as long as it is.
    assert len(names.subject(pattern_channel("a:" * 5000 + "*"))) < 400


@pytest.mark.parametrize(
    ("pattern", "subject", "test"),
    [
        ("*", "p.h.room.>", "p.h.room.=test"),
        ("chat:*", "p.h.room.chat=3A.>", "p.h.room.chat=3A.=test"),
        ("chat.eu.*", "p.h.room.chat.eu.>", "p.h.room.chat.eu.=test"),
        ("chat:a*", "p.h.room.chat=3A.>", "p.h.room.chat=3A.=test"),
        ("chat:*:1", "p.h.room.chat=3A.>", "p.h.room.chat=3A.=test"),
        ("chat*", "p.h.room.>", "p.h.room.=test"),
        ("chat:1", "p.h.room.chat=3A.1", "p.h.room.chat=3A.1"),
        ("tenant:" * 600 + "*", "p.h.room." + "tenant=3A." * 12 + ">", "p.h.room." + "tenant=3A." * 12 + "=test"),
    ],
)
def test_a_pattern_has_a_subject_with_a_wildcard(pattern: str, subject: str, test: str) -> None:
    names = SubjectNames("p", "h")
    assert names.subject(pattern_channel(pattern)) == subject
    assert names.test_subject(pattern_channel(pattern)) == test


def takes(subscription: str, subject: str) -> bool:
    """Return whether NATS gives a subscription the messages of a subject."""
    if subscription.endswith(".>"):
        return subject.startswith(subscription[:-1]) and len(subject) > len(subscription) - 1
    return subject == subscription


PART = st.sampled_from(["", "a", "a.", "b:", "/", "ü", "=3A", "long" * 20 + ":", "x" * 130, "::", ".b", "\udc80"])
NAME = st.lists(PART, max_size=6).map("".join)


@given(NAME, NAME, NAME)
def test_the_subscription_of_a_pattern_takes_all_rooms_that_match(before: str, between: str, behind: str) -> None:
    names = SubjectNames("p", "h")
    subscription = names.subject(pattern_channel(f"{before}*{behind}"))
    subject = names.subject(f"room:{before}{between}{behind}")
    assert takes(subscription, subject)
    assert not takes(subscription, names.subject(f"user:{before}{between}{behind}"))
    assert not takes(subscription, SubjectNames("p", "h2").subject(f"room:{before}{between}{behind}"))
    # The message that tests the subscription of a pattern is no room's.
    assert takes(subscription, names.test_subject(pattern_channel(f"{before}*{behind}")))
    assert names.test_subject(pattern_channel(f"{before}*{behind}")) != subject


ODD = st.text(alphabet="a.:/=*>2AF \0ü\udc80", max_size=6)


@given(st.lists(st.tuples(ODD, ODD), min_size=2, max_size=8, unique=True))
def test_no_two_channels_of_any_hubs_have_one_subject(pairs: list[tuple[str, str]]) -> None:
    subjects = {}
    for hub, channel in pairs:
        subject = SubjectNames("p", hub).subject(channel)
        # Tokens are not empty, and nothing in them is a wildcard, a space or a control character.
        assert re.fullmatch(r"[A-Za-z0-9_=-]+(\.[A-Za-z0-9_=-]+)+", subject)
        subjects[hub, channel] = subject
    for one, other in combinations(subjects, 2):
        assert subjects[one] != subjects[other]
