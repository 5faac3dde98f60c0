"""The opening handshake: the requests that get a 101, and the responses to all others."""

from __future__ import annotations

import base64
import hashlib
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshub.errors import HandshakeError, InvalidMessageError
from wshub.protocol.handshake.origin import check_origin
from wshub.protocol.handshake.server import Handshake
from wshub.protocol.http.headers import TOKEN_CHARACTERS, Headers
from wshub.protocol.http.request import parse_request_head

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
GOOD = {
    "Host": "server.example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def headers_of(changes: dict[str, str | bytes | None] | None = None, *more: tuple[str, str]) -> Headers:
    fields = {**GOOD, **(changes or {})}
    pairs = [(name, value) for name, value in fields.items() if value is not None]
    return Headers(
        (name.encode(), value if isinstance(value, bytes) else value.encode("latin-1"))
        for name, value in [*pairs, *more]
    )


def refusal(headers: Headers, method: str = "GET", http_version: str = "1.1") -> HandshakeError:
    with pytest.raises(HandshakeError) as caught:
        Handshake.check_request(method, http_version, headers)
    return caught.value


def parsed_response(response: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
    head, _, body = response.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return first, [tuple(line.split(": ", 1)) for line in lines], body


class Request:
    """A request with only the attributes that the handshake needs."""

    def __init__(self, fields: dict[str, str]) -> None:
        self._fields = {name.lower(): value for name, value in fields.items()}

    def get_header(self, name: str) -> str | None:
        return self._fields.get(name.lower())


def test_the_accept_key_of_the_rfc():
    assert Handshake.generate_accept_key(KEY) == ACCEPT
    assert Handshake.generate_accept_key(KEY.encode()) == ACCEPT


@given(st.binary(min_size=16, max_size=16))
def test_an_accept_key_has_28_characters_and_is_the_hash_of_the_rfc(nonce):
    key = base64.b64encode(nonce).decode()
    accept = Handshake.generate_accept_key(key)
    assert len(accept) == 28
    digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    assert accept == base64.b64encode(digest).decode()
    assert Handshake.check_request("GET", "1.1", headers_of({"Sec-WebSocket-Key": key})) == key


def test_a_key_that_is_not_latin_1_has_no_accept_key():
    with pytest.raises(InvalidMessageError):
        Handshake.generate_accept_key("\u20ac")


def test_a_good_request_gives_its_key():
    assert Handshake.check_request("GET", "1.1", headers_of()) == KEY


@pytest.mark.parametrize("name", ["Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version"])
@pytest.mark.parametrize("value", [None, "", " ", "x", "\xe9", ",", "\x00", "a" * 10_000])
def test_without_any_of_its_fields_it_is_refused(name, value):
    error = refusal(headers_of({name: value}))
    assert error.status in (400, 426)
    assert not Handshake.validate_request(Request({**GOOD, name: value} if value is not None else without(name)))


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "CONNECT", "get", ""])
def test_another_method_is_told_which_is_allowed(method):
    error = refusal(headers_of(), method=method)
    assert (error.status, error.headers) == (405, (("Allow", "GET"),))


@pytest.mark.parametrize("version", ["1.1", "1.2", "1.9"])
def test_http_1_1_and_later_minor_versions_pass(version):
    assert Handshake.check_request("GET", version, headers_of()) == KEY


@pytest.mark.parametrize("version", ["1.0", "0.9", "", "1", "1.", "1.x", "11.1", "2.0", "1.10"])
def test_other_versions_of_http_are_refused(version):
    assert refusal(headers_of(), http_version=version).status == 400


@pytest.mark.parametrize("value", [None, "h2c", "websockets", "websocket/13", "web socket", "websocket;q=1"])
def test_a_request_that_asks_for_no_websocket_is_told_what_is_served(value):
    error = refusal(headers_of({"Upgrade": value}))
    assert error.status == 426
    assert ("Upgrade", "websocket") in error.headers
    assert ("Connection", "Upgrade") in error.headers


@pytest.mark.parametrize(
    "value",
    ["Upgrade", "upgrade", "UPGRADE", "keep-alive, Upgrade", "Upgrade,keep-alive", "a,\tuPgRaDe ,b", ",,upgrade,"],
)
def test_the_connection_may_be_a_list_in_any_case_and_order(value):
    assert Handshake.check_request("GET", "1.1", headers_of({"Connection": value})) == KEY


@pytest.mark.parametrize(
    "value", ["keep-alive", "close", "Upgrades", "Up grade", "Upgrade;", "notupgrade", '"Upgrade"']
)
def test_a_connection_without_the_token_upgrade_is_refused(value):
    # A token must match as a whole: a substring is not enough.
    assert refusal(headers_of({"Connection": value})).status == 400


@pytest.mark.parametrize("value", ["WebSocket", "WEBSOCKET", "h2c, websocket", "websocket, h2c"])
def test_the_upgrade_may_be_a_list_in_any_case_and_order(value):
    assert Handshake.check_request("GET", "1.1", headers_of({"Upgrade": value})) == KEY


def test_lists_may_be_spread_over_several_fields():
    headers = headers_of(
        {"Connection": "keep-alive", "Upgrade": "h2c"}, ("connection", "x, UPGRADE"), ("upgrade", "websocket")
    )
    assert Handshake.check_request("GET", "1.1", headers) == KEY


@pytest.mark.parametrize("name", ["Sec-WebSocket-Key", "Sec-WebSocket-Version"])
def test_a_repeated_field_is_refused_even_if_equal(name):
    assert refusal(headers_of(None, (name, GOOD[name]))).status == 400


@pytest.mark.parametrize("version", ["8", "0", "14", "013", "13.0", "13, 8", "1 3", "abc", "\xb9\xb3", "9" * 1000])
def test_another_version_is_told_the_one_that_is_spoken(version):
    error = refusal(headers_of({"Sec-WebSocket-Version": version}))
    assert error.status == 426
    assert ("Sec-WebSocket-Version", "13") in error.headers
    assert ("Upgrade", "websocket") in error.headers


@pytest.mark.parametrize(
    "key",
    [
        "dGhlIHNhbXBsZSBub25jZQ",
        "dGhlIHNhbXBsZSBub25jZQ=",
        "dGhlIHNhbXBsZSBub25jZQ===",
        "dGhlIHNhbXBsZSBub25jZ===",
        "dGhlIHNhbXBsZSBub25jZQQ=",
        "dGhlIHNhbXBsZSBub25jZQQQ",
        "=GhlIHNhbXBsZSBub25jZQ==",
        "dGhlIHNhbXBs ZSBub25jZQ=",
        "dGhlIHNhbXBsZSBub25j-_==",
        "dGhlIHNhbXBsZSBub25jZQ==, x",
        "====" * 6,
        "\xe9" * 24,
        "A" * 4096,
    ],
)
def test_a_key_that_is_not_16_bytes_in_base64_is_refused(key):
    assert refusal(headers_of({"Sec-WebSocket-Key": key})).status == 400


@pytest.mark.parametrize("position", [0, 11, 21, 22, 23])
def test_every_byte_in_a_key_is_a_byte_of_base64_or_refused(position):
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for byte in range(256):
        key = bytearray(KEY.encode())
        key[position] = byte
        headers = headers_of({"Sec-WebSocket-Key": b"x" + bytes(key)})
        assert refusal(headers).status == 400
        headers = headers_of({"Sec-WebSocket-Key": bytes(key)})
        if byte in (b"=" if position >= 22 else alphabet):
            assert Handshake.check_request("GET", "1.1", headers) == key.decode()
        else:
            assert refusal(headers).status == 400


@pytest.mark.parametrize("name", ["Upgrade", "Connection", "Sec-WebSocket-Version"])
def test_every_byte_beside_a_token_makes_it_another_or_is_white_space_or_a_comma(name):
    for byte in range(256):
        headers = headers_of({name: GOOD[name].encode() + bytes([byte])})
        if byte in b" \t" or (byte in b"," and name != "Sec-WebSocket-Version"):
            assert Handshake.check_request("GET", "1.1", headers) == KEY
        else:
            assert refusal(headers).status in (400, 426)


@pytest.mark.parametrize("name", ["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Sec-WebSocket-Accept"])
def test_other_fields_of_any_bytes_do_not_disturb_the_check(name):
    for byte in range(256):
        assert Handshake.check_request("GET", "1.1", headers_of({name: bytes([byte])})) == KEY
    assert Handshake.check_request("GET", "1.1", headers_of({name: b"\xe9," * 5000})) == KEY


def test_validate_request_takes_a_request_and_a_context_of_one():
    request = Request(GOOD)
    assert Handshake.validate_request(request)
    assert Handshake.validate_request(SimpleNamespace(request=request))
    assert not Handshake.validate_request(Request({}))
    assert not Handshake.validate_request(SimpleNamespace(request=Request({})))


def test_validate_request_judges_method_version_and_repetitions_where_it_sees_them():
    lines = [f"{name}: {value}" for name, value in GOOD.items()]

    def judged(line: str, *more: str) -> bool:
        head = "\r\n".join([line, *lines, *more, "", ""]).encode()
        return Handshake.validate_request(parse_request_head(head))

    assert judged("GET / HTTP/1.1")
    assert not judged("POST / HTTP/1.1")
    assert not judged("GET / HTTP/1.0")
    assert not judged("GET / HTTP/1.1", f"Sec-WebSocket-Key: {KEY}")


def test_validate_request_refuses_what_latin_1_cannot_express():
    assert not Handshake.validate_request(Request({**GOOD, "Upgrade": "web\u20acsocket"}))
    assert not Handshake.validate_request(Request({**GOOD, "Upgrade": "websoc\u212aet"}))


def test_the_response_of_the_rfc():
    assert Handshake.create_response(KEY, subprotocol="chat") == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"Sec-WebSocket-Protocol: chat\r\n"
        b"\r\n"
    )


def test_a_response_has_all_that_it_is_given_in_order():
    response = Handshake.create_response(
        KEY.encode(),
        subprotocol="chat",
        extensions="permessage-deflate; server_no_context_takeover",
        headers=iter([("Set-Cookie", "a=1"), (b"Set-Cookie", b"b=2"), ("X", "é")]),
    )
    assert parsed_response(response) == (
        "HTTP/1.1 101 Switching Protocols",
        [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", ACCEPT),
            ("Sec-WebSocket-Protocol", "chat"),
            ("Sec-WebSocket-Extensions", "permessage-deflate; server_no_context_takeover"),
            ("Set-Cookie", "a=1"),
            ("Set-Cookie", "b=2"),
            ("X", "é"),
        ],
        b"",
    )


def test_no_byte_in_a_response_can_split_it():
    for byte in range(256):
        value = "a" + chr(byte) + "b"
        control = byte < 0x20 or byte == 0x7F
        attempts = [
            ({"subprotocol": value}, byte not in TOKEN_CHARACTERS),
            ({"extensions": value}, control),
            ({"headers": [("X", value)]}, control),
            ({"headers": [("X", value.encode("latin-1"))]}, control),
            ({"headers": [(value, "x")]}, byte not in TOKEN_CHARACTERS),
            ({"headers": [(value.encode("latin-1"), b"x")]}, byte not in TOKEN_CHARACTERS),
        ]
        for arguments, refused in attempts:
            if refused:
                with pytest.raises(InvalidMessageError):
                    Handshake.create_response(KEY, **arguments)
            else:
                assert Handshake.create_response(KEY, **arguments).count(b"\r\n") == 6


@pytest.mark.parametrize(
    "arguments",
    [
        {"subprotocol": ""},
        {"subprotocol": "a, b"},
        {"subprotocol": "\u20ac"},
        {"extensions": "\u20ac"},
        {"headers": [("X", "\u560a")]},
        {"headers": [("\u20ac", "x")]},
        {"headers": [("", "x")]},
    ],
)
def test_what_is_no_token_or_not_latin_1_is_refused(arguments):
    with pytest.raises(InvalidMessageError):
        Handshake.create_response(KEY, **arguments)


@pytest.mark.parametrize(
    "name",
    [
        "Upgrade",
        "CONNECTION",
        "sec-websocket-accept",
        "Sec-WebSocket-Protocol",
        "Sec-WebSocket-Extensions",
        b"Content-Length",
        b"transfer-encoding",
    ],
)
def test_an_application_cannot_overwrite_the_handshake(name):
    with pytest.raises(InvalidMessageError):
        Handshake.create_response(KEY, headers=[(name, "x")])


def subprotocol_of(*values: str | bytes, supported: list[str]) -> str | None:
    fields = [(b"Sec-WebSocket-Protocol", value if isinstance(value, bytes) else value.encode()) for value in values]
    return Handshake.choose_subprotocol(Headers(fields), supported)


def test_the_first_subprotocol_of_the_client_that_is_supported_is_chosen():
    assert subprotocol_of("b, a", supported=["a", "b"]) == "b"
    assert subprotocol_of("x,a", "b", supported=["b", "a"]) == "a"
    assert subprotocol_of("x", "b", supported=["b", "a"]) == "b"


def test_no_subprotocol_in_common_is_none():
    assert subprotocol_of(supported=["a"]) is None
    assert subprotocol_of("b", supported=["a"]) is None
    assert subprotocol_of("A", supported=["a"]) is None
    assert subprotocol_of("a", supported=[]) is None


def test_an_empty_list_of_subprotocols_is_none():
    for values in ([""], [" "], ["", ""]):
        assert subprotocol_of(*values, supported=["a"]) is None
    assert subprotocol_of("", "a", supported=["a"]) == "a"


@pytest.mark.parametrize(
    "value", [",", " , ,", "a b", "a;b", '"a"', "a/b", "a, a", "é", b"\xff", b"a\x00", "a," * 5000]
)
@pytest.mark.parametrize("supported", [[], ["a"]])
def test_a_malformed_list_of_subprotocols_is_refused(value, supported):
    with pytest.raises(HandshakeError) as caught:
        subprotocol_of(value, supported=supported)
    assert caught.value.status == 400


def test_every_byte_in_a_subprotocol_is_of_a_token_or_refused():
    for byte in range(256):
        value = b"a" + bytes([byte]) + b"b"
        if byte in TOKEN_CHARACTERS:
            assert subprotocol_of(value, supported=[value.decode()]) == value.decode()
        elif byte == ord(","):
            assert subprotocol_of(value, supported=["b"]) == "b"
        else:
            with pytest.raises(HandshakeError):
                subprotocol_of(value, supported=["a", "b", value.decode("latin-1")])


def origin_passes(origin: str | bytes | None, *allowed: str) -> bool:
    try:
        check_origin(headers_of({"Origin": origin, "Cookie": "session=1"}), allowed)
    except HandshakeError as error:
        status = error.status
    else:
        return True
    assert status == 403
    return False


@pytest.mark.parametrize("origin", [None, "null", "https://evil.example", "", b"\xff"])
def test_without_a_list_every_origin_passes(origin):
    assert origin_passes(origin)


@pytest.mark.parametrize("origin", ["https://example.com", "HTTPS://EXAMPLE.com", "http://localhost:8080"])
def test_a_listed_origin_passes_in_any_case(origin):
    assert origin_passes(origin, "https://Example.com", "http://localhost:8080")


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "",
        "null",
        "NULL",
        "*",
        "example.com",
        "http://example.com",
        "https://example.com:443",
        "https://example.com:8443",
        "https://example.com/",
        "https://example.com.evil.example",
        "https://evilexample.com",
        "https://evil.example?https://example.com",
        "https://sub.example.com",
        "https://example.co",
        "https://example.com https://evil.example",
        "https://user@example.com",
        b"https://example.com\x00",
        b"https://ex\xe2mple.com",
        "https://example.com" * 1000,
    ],
)
def test_any_other_origin_is_forbidden(origin):
    assert not origin_passes(origin, "https://example.com", "null", "")


@pytest.mark.parametrize(
    ("origin", "passes"),
    [
        ("https://a.example.com", True),
        ("https://a.b.EXAMPLE.com", True),
        ("https://example.com", False),
        ("https://.example.com", False),
        ("https://aexample.com", False),
        ("http://a.example.com", False),
        ("https://a.example.com:8443", False),
        ("https://a.example.com.evil.example", False),
        ("https://evil.example?.example.com", False),
        ("https://evil.example/.example.com", False),
        ("https://evil.example#.example.com", False),
        ("https://evil.example:1.example.com", False),
        ("https://user@a.example.com", False),
        ("https", False),
        ("null", False),
        (None, False),
    ],
)
def test_a_pattern_stands_for_every_host_below_one(origin, passes):
    assert origin_passes(origin, "https://*.example.com") is passes


@pytest.mark.parametrize("origin", [None, "null", "https://evil.example"])
def test_an_asterisk_alone_stands_for_any_origin(origin):
    assert origin_passes(origin, "https://example.com", "*")


def test_a_missing_origin_passes_where_that_is_allowed_and_no_other():
    for origin in (None, ""):
        headers = headers_of({"Origin": origin})
        check_origin(headers, ["https://a"], allow_missing=True)
    for origin in ("null", "https://b"):
        with pytest.raises(HandshakeError):
            check_origin(headers_of({"Origin": origin}), ["https://a"], allow_missing=True)


def test_a_refusal_says_whether_the_origin_is_missing_null_or_another():
    reasons = []
    for origin in (None, "null", "https://secret.example"):
        with pytest.raises(HandshakeError) as caught:
            check_origin(headers_of({"Origin": origin}), ["https://a"])
        reasons.append(caught.value.reason)
    assert "missing" in reasons[0]
    assert "null" in reasons[1]
    assert len(set(reasons)) == 3
    assert all("origin" in reason and "secret" not in reason for reason in reasons)


def test_two_origins_are_refused_even_if_both_are_allowed():
    headers = headers_of({"Origin": "https://a"}, ("Origin", "https://a"))
    with pytest.raises(HandshakeError) as caught:
        check_origin(headers, ["https://a"])
    assert caught.value.status == 400


def test_an_error_response_is_complete_and_closes_the_connection():
    response = Handshake.create_error_response(HandshakeError(405, "Not so: ü.", [("Allow", "GET")]))
    first, fields, body = parsed_response(response)
    assert first == "HTTP/1.1 405 Method Not Allowed"
    assert dict(fields) == {
        "Connection": "close",
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len("Not so: ü.".encode())),
        "Allow": "GET",
    }
    assert body.decode() == "Not so: ü."


def test_a_426_asks_for_the_upgrade_and_closes_in_one_connection_field():
    response = Handshake.create_error_response(refusal(headers_of({"Sec-WebSocket-Version": "8"})))
    first, fields, _ = parsed_response(response)
    assert first == "HTTP/1.1 426 Upgrade Required"
    assert sorted(fields)[:1] == [("Connection", "Upgrade, close")]
    assert [name for name, _ in fields].count("Connection") == 1
    assert ("Upgrade", "websocket") in fields
    assert ("Sec-WebSocket-Version", "13") in fields


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 414, 431, 499, 501, 503, 505])
def test_any_final_status_with_a_body_can_refuse(status):
    response = Handshake.create_error_response(HandshakeError(status, "No."))
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert response.endswith(b"Content-Length: 3\r\n\r\nNo.")


@pytest.mark.parametrize("status", [0, 99, 100, 101, 204, 304, 600, 1000])
def test_a_status_that_is_not_final_or_has_no_body_cannot_refuse(status):
    with pytest.raises(InvalidMessageError):
        Handshake.create_error_response(HandshakeError(status, "No."))


@pytest.mark.parametrize(
    "field", [("X", "a\r\nb"), ("X", "\x00"), ("X\n", "a"), ("Content-Length", "1"), ("transfer-encoding", "chunked")]
)
def test_the_fields_of_a_refusal_cannot_split_it(field):
    with pytest.raises(InvalidMessageError):
        Handshake.create_error_response(HandshakeError(400, "No.", [field]))


def test_no_refusal_repeats_anything_of_the_request():
    for name in GOOD:
        if name == "Host":
            continue
        response = Handshake.create_error_response(refusal(headers_of({name: "s3cret\r\n\x1b"})))
        assert b"s3cret" not in response
        assert b"\x1b" not in response


@given(
    st.dictionaries(
        st.sampled_from([*GOOD, "Origin", "Sec-WebSocket-Protocol"]), st.none() | st.binary(max_size=30), max_size=5
    )
)
def test_any_fields_are_accepted_or_refused_with_a_response(changes):
    headers = headers_of(changes)
    try:
        key = Handshake.check_request("GET", "1.1", headers)
        subprotocol = Handshake.choose_subprotocol(headers, ["chat"])
        check_origin(headers, ["https://a"])
        response = Handshake.create_response(key, subprotocol=subprotocol)
    except HandshakeError as error:
        response = Handshake.create_error_response(error)
    assert response.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 400 ", b"HTTP/1.1 403 ", b"HTTP/1.1 426 "))
