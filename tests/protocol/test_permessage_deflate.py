"""The negotiation of permessage-deflate, with the offers of RFC 7692 section 7.1 and those of browsers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cpu_time import least_seconds
from wshub.errors import ConfigurationError
from wshub.protocol.compression.config import CompressionConfig
from wshub.protocol.compression.negotiation import PermessageDeflate, negotiate

DEFAULT = CompressionConfig()
TAKEOVER = CompressionConfig(client_context_takeover=True, server_context_takeover=True)


def response(*values: bytes, config: CompressionConfig = TAKEOVER) -> str | None:
    agreed = negotiate(config, values)
    return agreed.response if agreed is not None else None


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        (b"permessage-deflate", "permessage-deflate"),
        (b"permessage-deflate; server_no_context_takeover", "permessage-deflate; server_no_context_takeover"),
        (b"permessage-deflate;client_no_context_takeover", "permessage-deflate; client_no_context_takeover"),
        (b"permessage-deflate; server_max_window_bits=8", "permessage-deflate; server_max_window_bits=8"),
        (b"permessage-deflate; server_max_window_bits=15", "permessage-deflate; server_max_window_bits=15"),
        (b"permessage-deflate; client_max_window_bits=9", "permessage-deflate; client_max_window_bits=9"),
        (b"permessage-deflate; client_max_window_bits=15", "permessage-deflate"),
        (b'permessage-deflate; server_max_window_bits="10"', "permessage-deflate; server_max_window_bits=10"),
        (b"permessage-deflate ;\tserver_max_window_bits = 10 ", "permessage-deflate; server_max_window_bits=10"),
    ],
)
def test_each_parameter_is_agreed_as_offered(offer: bytes, answer: str) -> None:
    assert response(offer) == answer


@pytest.mark.parametrize(
    "offer",
    [
        b"permessage-deflate; client_max_window_bits",  # Chromium, Firefox
        b"permessage-deflate",  # Safari
        b"permessage-deflate; client_max_window_bits, x-webkit-deflate-frame",
        b"x-webkit-deflate-frame, permessage-deflate; client_max_window_bits",
    ],
)
def test_by_default_clients_are_told_to_forget_and_the_hub_promises_nothing(offer: bytes) -> None:
    assert response(offer, config=DEFAULT) == "permessage-deflate; client_no_context_takeover"


def test_the_smaller_window_of_both_sides_is_agreed() -> None:
    config = CompressionConfig(server_max_window_bits=11, client_max_window_bits=12, client_context_takeover=True)
    offer = b"permessage-deflate; server_max_window_bits=%d; client_max_window_bits=%d"
    for offered in range(8, 16):
        agreed = negotiate(config, [offer % (offered, offered)])
        assert agreed is not None
        assert (agreed.server_max_window_bits, agreed.client_max_window_bits) == (min(offered, 11), min(offered, 12))


def test_a_client_that_names_no_window_is_not_told_to_use_a_smaller_one() -> None:
    config = CompressionConfig(server_max_window_bits=10, client_max_window_bits=10)
    agreed = negotiate(config, [b"permessage-deflate"])
    assert agreed is not None
    assert agreed.client_max_window_bits == 15
    assert "client_max_window_bits" not in agreed.response
    assert "server_max_window_bits=10" in agreed.response


def test_an_offer_without_a_value_takes_the_window_of_the_config() -> None:
    agreed = negotiate(CompressionConfig(client_max_window_bits=10), [b"permessage-deflate; client_max_window_bits"])
    assert agreed is not None
    assert agreed.client_max_window_bits == 10
    assert agreed.response.endswith("client_max_window_bits=10")


@pytest.mark.parametrize(
    "parameters",
    [
        b"unknown",
        b"unknown=1",
        b"server_no_context_takeover=1",
        b"server_no_context_takeover=",
        b'client_no_context_takeover=""',
        b"server_no_context_takeover; server_no_context_takeover",
        b"server_max_window_bits",
        b"server_max_window_bits=",
        b'server_max_window_bits=""',
        b"server_max_window_bits=7",
        b"server_max_window_bits=16",
        b"server_max_window_bits=010",
        b"server_max_window_bits=+9",
        b"server_max_window_bits=1 0",
        b"server_max_window_bits='10'",
        b"server_max_window_bits=10; server_max_window_bits=10",
        b"client_max_window_bits; client_max_window_bits=10",
        b"client_max_window_bits=0",
        b"Server_max_window_bits=10",
        b"",
        b"=",
    ],
)
def test_a_parameter_that_cannot_be_declines_its_offer_and_no_other(parameters: bytes) -> None:
    assert response(b"permessage-deflate; " + parameters) is None
    offers = b"permessage-deflate; " + parameters + b", permessage-deflate; server_max_window_bits=9"
    assert response(offers) == "permessage-deflate; server_max_window_bits=9"


def test_the_first_acceptable_offer_is_taken_over_all_the_fields() -> None:
    fields = (
        b"foo, permessage-deflate; server_max_window_bits=99",
        b" , permessage-deflate; server_max_window_bits=12, permessage-deflate",
        b"permessage-deflate; server_max_window_bits=9",
    )
    assert response(*fields) == "permessage-deflate; server_max_window_bits=12"


def test_separators_within_quotes_are_part_of_the_value() -> None:
    assert response(b'foo; a="x, permessage-deflate; y=", bar') is None
    assert response(b'foo; a="x;,", permessage-deflate') == "permessage-deflate"


def test_no_extension_that_is_known_means_none() -> None:
    assert negotiate(DEFAULT, ()) is None
    assert response(b"") is None
    assert response(b"permessage-bzip2, permessage-deflate-not") is None


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_no_field_makes_a_handshake_fail(values: list[bytes]) -> None:
    negotiate(DEFAULT, values)


parameters_of_offers = st.lists(
    st.sampled_from(
        ["server_no_context_takeover", "client_no_context_takeover", "client_max_window_bits"]
        + [f"{side}_max_window_bits={bits}" for side in ("server", "client") for bits in range(7, 17)]
    ),
    max_size=4,
)


@given(parameters_of_offers, st.integers(8, 15), st.integers(8, 15), st.booleans())
def test_what_is_agreed_is_within_the_offer_and_the_config(parameters, server_bits, client_bits, takeover) -> None:
    config = CompressionConfig(
        server_max_window_bits=server_bits, client_max_window_bits=client_bits, client_context_takeover=takeover
    )
    agreed = negotiate(config, ["; ".join(["permessage-deflate", *parameters]).encode()])
    names = [parameter.partition("=")[0] for parameter in parameters]
    values = dict(parameter.partition("=")[::2] for parameter in parameters)
    valid = len(set(names)) == len(names) and not {"7", "16"} & set(values.values())
    assert (agreed is not None) == valid
    if agreed is not None:
        assert agreed.server_max_window_bits <= min(server_bits, int(values.get("server_max_window_bits") or 15))
        assert agreed.client_max_window_bits <= int(values.get("client_max_window_bits") or 15)
        assert agreed.server_no_context_takeover == ("server_no_context_takeover" in names)
        assert agreed.client_no_context_takeover or (takeover and "client_no_context_takeover" not in names)
        assert ("client_max_window_bits" in agreed.response) <= ("client_max_window_bits" in names)
        assert ("server_max_window_bits" in names) <= ("server_max_window_bits" in agreed.response)


@pytest.mark.parametrize("unit", [b'\\",;"', b",", b";", b"permessage-deflate;a,"])
@pytest.mark.parametrize("start", [b"", b'"', b'permessage-deflate;a="'])
def test_a_field_of_many_quotes_and_separators_is_read_in_linear_time(start: bytes, unit: bytes) -> None:
    def seconds(size: int) -> float:
        # Earlier offers are cached.
        fields = [b"%s%d%s" % (start, attempt, unit * (size // len(unit))) for attempt in range(2)]
        return least_seconds(lambda field: negotiate(DEFAULT, [field]), fields)

    # For 32 times the bytes, quadratic work takes 1,024 times as long.
    assert seconds(512_000) < 160 * max(seconds(16_000), 0.0002)


@pytest.mark.parametrize(
    "settings",
    [
        {"level": 0},
        {"level": 10},
        {"memory_level": 0},
        {"memory_level": True},
        {"server_max_window_bits": 7},
        {"client_max_window_bits": 16},
        {"server_context_takeover": 1},
        {"client_context_takeover": None},
        {"threshold": -1},
        {"threshold": "1"},
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings: dict) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        CompressionConfig(**settings)


def test_what_was_agreed_is_a_value() -> None:
    assert negotiate(DEFAULT, [b"permessage-deflate"]) == PermessageDeflate(
        client_no_context_takeover=True, response="permessage-deflate; client_no_context_takeover"
    )
