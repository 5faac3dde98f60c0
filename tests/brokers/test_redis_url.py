"""URLs of Redis engines, and the names of channels."""

from __future__ import annotations

import pytest

from wshub.errors import ConfigurationError

pytest.importorskip("hiredis")

from wshub.brokers.redis import RedisBroker
from wshub.brokers.redis_commands import ChannelNames
from wshub.brokers.redis_url import ClusterAddress, RedisAddress, SentinelAddress, parse_redis_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", RedisAddress(host="localhost")),
        ("redis://localhost/", RedisAddress(host="localhost")),
        ("valkey://10.0.0.1:7000/3", RedisAddress(host="10.0.0.1", port=7000, database=3)),
        ("redis://[::1]:7000", RedisAddress(host="::1", port=7000)),
        ("redis://localhost?db=2", RedisAddress(host="localhost", database=2)),
        ("rediss://ann:s%40crt@host", RedisAddress(host="host", username="ann", password="s@crt", tls=True)),
        ("valkeys://:secret@host:1", RedisAddress(host="host", port=1, password="secret", tls=True)),
        ("unix:///run/redis.sock", RedisAddress(path="/run/redis.sock")),
        (
            "unix://ann:pw@/run/a%20b.sock?db=4",
            RedisAddress(path="/run/a b.sock", username="ann", password="pw", database=4),
        ),
    ],
)
def test_a_url_names_an_engine(url: str, address: RedisAddress) -> None:
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (
            "redis+sentinel://a/main",
            SentinelAddress((RedisAddress(host="a", port=26379),), "main", RedisAddress(port=0)),
        ),
        (
            "valkeys+sentinel://ann:p%2Cw@a:1,[::1]:2/my%20main/3?sentinel_username=s&sentinel_password=t",
            SentinelAddress(
                (
                    RedisAddress(host="a", port=1, username="s", password="t", tls=True),
                    RedisAddress(host="::1", port=2, username="s", password="t", tls=True),
                ),
                "my main",
                RedisAddress(port=0, username="ann", password="p,w", tls=True, database=3),
            ),
        ),
        ("redis+cluster://a,b:7000", ClusterAddress((RedisAddress(host="a"), RedisAddress(host="b", port=7000)))),
        (
            "rediss+cluster://:pw@a?partitions=16",
            ClusterAddress((RedisAddress(host="a", password="pw", tls=True),), partitions=16),
        ),
    ],
)
def test_a_url_names_sentinels_or_a_cluster(url: str, address: SentinelAddress | ClusterAddress) -> None:
    found = parse_redis_url(url)
    assert found == address
    assert "pw" not in f"{found!r} {found}"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://a,b",
        "redis+other://a",
        "redis+sentinel://a",
        "redis+sentinel://a,/main",
        "redis+sentinel://a:b/main",
        "redis+sentinel://a/main/x",
        "redis+sentinel://a/main?partitions=3",
        "redis+cluster://",
        "redis+cluster://a/1",
        "redis+cluster://a?partitions=0",
        "redis+cluster://a?partitions=4097",
        "redis+cluster://a?partitions=٣",
        "unix+cluster:///run/redis.sock",
        "localhost",
        "http://localhost",
        "redis://",
        "redis://host:port",
        "redis://host:99999",
        "redis://host/first",
        "redis://host/-1",
        "redis://host/٣",
        "redis://host?database=1",
        "redis://user:p#ss@host",
        "unix://relative/path",
        "unix://",
        "redis://[::1",
    ],
)
def test_a_wrong_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError):
        RedisBroker(url)


def test_the_password_is_in_no_message() -> None:
    for url in (
        "redis://ann:secret@host:port",
        "redis://ann:secret@/",
        "http://ann:secret@host",
        "rediss://a:secret@h",
    ):
        try:
            text = repr(RedisBroker(url))
        except ConfigurationError as error:
            text = f"{error!r} {error.__cause__!r}"
        assert "secret" not in text
    assert "secret" not in repr(parse_redis_url("redis://ann:secret@host"))


def test_other_arguments_are_checked() -> None:
    import ssl

    for arguments in ({"prefix": ""}, {"prefix": b"a"}, {"max_pending": 0}, {"ssl": ssl.create_default_context()}):
        with pytest.raises(ConfigurationError):
            RedisBroker("redis://localhost", **arguments)
    with pytest.raises(ConfigurationError):
        RedisBroker(b"redis://localhost")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "channel", ["all", "room:", "room:a:b", "room:\0 *?[", "user:Zoë", "room:\udc80", "room:" + "x" * 70_000]
)
def test_the_name_of_a_channel_can_be_decoded(channel: str) -> None:
    names = ChannelNames("wshub", 0, "chat")
    assert names.decode(names.encode(channel)) == channel
    assert names.encode(channel).startswith(b"wshub:chat:")


def test_different_hubs_and_databases_never_share_a_name() -> None:
    kinds = [
        ChannelNames("p", 0, "a"),
        ChannelNames("p", 1, "a"),
        ChannelNames("p", 0, "a:room"),
        ChannelNames("p", 0, "a%3Aroom"),
    ]
    channels = ["all", "room:all", "room:room:all", "user:all"]
    found = [names.encode(channel) for names in kinds for channel in channels]
    assert len(set(found)) == len(found)


def test_the_heads_of_many_channels_stay_bounded() -> None:
    names = ChannelNames("p", 0, "a")
    for number in range(20_000):
        assert names.publish_head(f"room:{number}").endswith(b":room:%d\r\n" % number)
    assert len(names.heads) <= 4096
    names.publish_head("room:" + "x" * 1000)
    assert max(map(len, names.heads)) < 300
