"""Reading, parsing and refusing the head of a request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cpu_time import least_seconds
from wshub.errors import HandshakeError, MisuseError
from wshub.protocol.http.headers import TOKEN_CHARACTERS, Headers
from wshub.protocol.http.request import MAX_HEADERS, RequestHead, RequestReader, parse_request_head

FIELDS = [
    b"Host: server.example.com",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Origin: http://example.com",
    b"Sec-WebSocket-Protocol: chat, superchat",
    b"Sec-WebSocket-Version: 13",
]


def head_of(*fields: bytes, line: bytes = b"GET /chat HTTP/1.1", host: bytes | None = b"Host: a") -> bytes:
    lines = [line, *([] if host is None else [host]), *fields]
    return b"".join(part + b"\r\n" for part in lines) + b"\r\n"


def status_of(head: bytes) -> int:
    with pytest.raises(HandshakeError) as caught:
        parse_request_head(head)
    return caught.value.status


def read(data: bytes, size: int, **options: int) -> tuple[bytes, bytes] | None:
    """Feed ``data`` to a reader, ``size`` bytes at a time. Add bytes that were not fed to the rest."""
    reader = RequestReader(**options)
    for start in range(0, len(data), size):
        result = reader.feed(data[start : start + size])
        if result is not None:
            return result[0], result[1] + data[start + size :]
    return None


def seconds(work) -> float:
    """Return the shortest time of three runs."""
    return least_seconds(lambda _: work(), range(3))


def assert_linear(make_work) -> None:
    """Check that four times the input takes less than ten times as long. Quadratic work takes sixteen times as long."""
    small = max(seconds(make_work(1)), 0.0005)
    assert seconds(make_work(4)) < 10 * small


def test_the_example_of_the_rfc_is_parsed():
    request = parse_request_head(head_of(*FIELDS, host=None))
    assert (request.method, request.target, request.http_version) == ("GET", "/chat", "1.1")
    assert request.headers.raw[0] == (b"host", b"server.example.com")
    assert request.get_header("sec-websocket-protocol") == "chat, superchat"
    assert request.get_header("x") is None
    assert len(request.headers) == 7


def test_a_target_is_seen_as_path_and_query_in_each_spelling():
    request = parse_request_head(head_of(line=b"GET /a%20b/%C3%A9%2F?x=1&y=%26&x=2&z&=?q HTTP/1.1"))
    assert request.target == "/a%20b/%C3%A9%2F?x=1&y=%26&x=2&z&=?q"
    assert request.path == "/a b/é/"
    assert request.raw_path == b"/a%20b/%C3%A9%2F"
    assert request.query_string == "x=1&y=%26&x=2&z&=?q"
    assert request.raw_query_string == b"x=1&y=%26&x=2&z&=?q"
    assert dict(request.query_params) == {"x": "2", "y": "&", "z": "", "": "?q"}
    assert request.query_params is request.query_params
    with pytest.raises(TypeError):
        request.query_params["x"] = "3"


def test_a_target_without_a_query_has_an_empty_one():
    request = parse_request_head(head_of())
    assert (request.query_string, request.raw_query_string, dict(request.query_params)) == ("", b"", {})


def test_bytes_of_a_path_that_are_not_utf_8_become_replacement_characters():
    assert parse_request_head(head_of(line=b"GET /%FF%zz HTTP/1.1")).path == "/\ufffd%zz"


def test_repr_shows_no_query_and_no_header():
    shown = repr(parse_request_head(head_of(b"Cookie: s3cret", line=b"GET /a?token=s3cret HTTP/1.1")))
    assert shown == "<RequestHead GET /a?... HTTP/1.1>"


def test_a_request_has_no_dict():
    assert not hasattr(RequestHead("GET", "/", "1.1", Headers()), "__dict__")


@pytest.mark.parametrize("method", [b"POST", b"HEAD", b"OPTIONS", b"get", b"X-!#$%&'*+.^_`|~1"])
def test_any_method_that_is_a_token_is_parsed(method):
    assert parse_request_head(head_of(line=method + b" / HTTP/1.1")).method == method.decode()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"", 400),
        (b"GET", 400),
        (b"GET /", 400),
        (b"GET / ", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET /  HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET /a b HTTP/1.1", 400),
        (b"GET\t/\tHTTP/1.1", 400),
        (b"G(T / HTTP/1.1", 400),
        (b"G\xc9T / HTTP/1.1", 400),
        (b"M" * 33 + b" / HTTP/1.1", 501),
        (b"GET a:80 HTTP/1.1", 400),
        (b"GET * HTTP/1.1", 400),
        (b"GET /a#b HTTP/1.1", 400),
        (b"GET /\xc3\xa9 HTTP/1.1", 400),
        (b"GET /\x85 HTTP/1.1", 400),
        (b"GET /\x7f HTTP/1.1", 400),
        (b"GET /" + b"a" * 8192 + b" HTTP/1.1", 414),
        (b"GET /" + b"a " * 8192 + b" HTTP/1.1", 414),
        (b"GET / http/1.1", 400),
        (b"GET / HTTP/1", 400),
        (b"GET / HTTP/1.", 400),
        (b"GET / HTTP/1.10", 400),
        (b"GET / HTTP/+.1", 400),
        (b"GET / HTTP/1.\xb2", 400),
        (b"GET / HTTP/1,1", 400),
        (b"GET / HTTP/0.9", 505),
        (b"GET / HTTP/2.0", 505),
        (b"PRI * HTTP/2.0", 505),
    ],
)
def test_a_request_line_that_is_wrong_has_its_status(line, status):
    assert status_of(head_of(line=line)) == status


@pytest.mark.parametrize(
    ("target", "host", "kept"),
    [
        (b"http://example.com/a%20b?c=d", b"example.com", "/a%20b?c=d"),
        (b"HTTP://EXAMPLE.com/A", b"example.COM", "/A"),
        (b"ws://example.com/a", b"example.com", "/a"),
        (b"wss://example.com:443/a", b"example.com", "/a"),
        (b"https://example.com/a", b"example.com:443", "/a"),
        (b"http://example.com:80/a", b"example.com:80", "/a"),
        (b"http://example.com:/a", b"example.com", "/a"),
        (b"http://example.com:8080/a", b"example.com:8080", "/a"),
        (b"http://[::1]:8080/a", b"[::1]:8080", "/a"),
        (b"http://[2001:DB8::1]/a", b"[2001:db8::1]:80", "/a"),
        (b"http://example.com", b"example.com", "/"),
        (b"http://example.com?c=d", b"example.com", "/?c=d"),
        (b"http://example.com?c=/d", b"example.com", "/?c=/d"),
        (b"http://example.com//a", b"example.com", "//a"),
        (b"http://example.com/a://b", b"example.com", "/a://b"),
    ],
)
def test_a_target_in_absolute_form_is_the_path_and_query_of_its_host(target, host, kept):
    request = parse_request_head(head_of(host=b"Host: " + host, line=b"GET " + target + b" HTTP/1.1"))
    assert request.target == kept
    assert request.path == kept.partition("?")[0].replace("%20", " ")
    assert request.headers["host"] == host.decode()


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (b"http://example.com/", b"other.example"),
        (b"http://example.com/", b"example.com.evil.example"),
        (b"http://example.com/", b"example.com:8080"),
        (b"http://example.com/", b"example.com:443"),
        (b"https://example.com/", b"example.com:80"),
        (b"http://example.com:8080/", b"example.com"),
        (b"http://user@example.com/", b"example.com"),
        (b"http://user@example.com/", b"user@example.com"),
        (b"http://example.com\\/", b"example.com"),
        (b"http:///a", b"example.com"),
        (b"http://", b"example.com"),
        (b"http:/a", b"example.com"),
        (b"http:example.com/", b"example.com"),
        (b"ftp://example.com/", b"example.com"),
        (b"://example.com/", b"example.com"),
        (b"example.com/", b"example.com"),
        (b"http://example.com/#a", b"example.com"),
        (b"http://example.com/\xe9", b"example.com"),
        (b"http://[::1]/", b"[::2]"),
    ],
)
def test_a_target_in_absolute_form_of_another_host_is_refused(target, host):
    assert status_of(head_of(host=b"Host: " + host, line=b"GET " + target + b" HTTP/1.1")) == 400


@pytest.mark.parametrize("version", ["1.0", "1.2", "1.9"])
def test_other_minor_versions_are_parsed_and_left_to_the_handshake(version):
    assert parse_request_head(head_of(line=b"GET / HTTP/" + version.encode())).http_version == version


@pytest.mark.parametrize(
    "field",
    [
        b"no colon",
        b"token",
        b": value",
        b" : value",
        b"x : value",
        b"x\t: value",
        b" x: folded",
        b"\tx: folded",
        b" folded",
        b"a b: value",
        b"(x): value",
        b"x\xe9: value",
        b"x\x85: value",
        b'"x": value',
        b"x,y: value",
    ],
)
def test_a_field_that_is_malformed_is_refused(field):
    assert status_of(head_of(field)) == 400
    assert status_of(head_of(field, *FIELDS[1:])) == 400
    assert status_of(head_of(*FIELDS[1:], field)) == 400


def test_exactly_the_characters_of_tokens_are_taken_in_names():
    for byte in range(256):
        head = head_of(b"x" + bytes([byte]) + b"y: 1")
        if byte in TOKEN_CHARACTERS or byte == ord(":"):
            parse_request_head(head)
        else:
            assert status_of(head) == 400


@pytest.mark.parametrize(
    "name", [b"Sec-WebSocket-Key", b"Sec-WebSocket-Protocol", b"Sec-WebSocket-Extensions", b"Sec-Other", b"Cookie"]
)
def test_every_byte_in_a_value_is_kept_or_refused_and_splits_nothing(name):
    for byte in range(256):
        value = b"a" + bytes([byte]) + b"b"
        head = head_of(name + b": " + value, b"x-last: 1")
        if (byte < 0x20 and byte != 9) or byte == 0x7F:
            assert status_of(head) == 400
        else:
            assert list(parse_request_head(head).headers.raw) == [
                (b"host", b"a"),
                (name.lower(), value),
                (b"x-last", b"1"),
            ]


@pytest.mark.parametrize("ending", [b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n\n", b"\r\n\r", b"\x0b", b"\x00"])
def test_lines_end_in_cr_lf_and_nothing_else(ending):
    assert status_of(b"GET / HTTP/1.1" + ending + b"Host: a\r\n\r\n") == 400
    assert status_of(b"GET / HTTP/1.1\r\nHost: a" + ending + b"X: b\r\n\r\n") == 400
    assert status_of(b"GET / HTTP/1.1\r\nX: \rb\nHost: a" + ending + b"\r\n\r\n") == 400


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\nHost: a",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nX: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_what_is_not_one_complete_head_is_refused(head):
    assert status_of(head) == 400


@pytest.mark.parametrize("host", [b"a", b"a:80", b"[::1]:80", b"xn--e1afmkfd.example", b"1.2.3.4", b"a%20b"])
def test_a_host_is_taken(host):
    assert parse_request_head(head_of(host=b"Host: " + host)).get_header("host") == host.decode()


@pytest.mark.parametrize("host", [b"", b" ", b"a/b", b"a?b", b"a#b", b"u@a", b"a b", b"a\tb", b"\xe9", b'"', b"a\\b"])
def test_a_host_that_would_be_another_url_is_refused(host):
    assert status_of(head_of(host=b"Host: " + host)) == 400


def test_a_request_has_exactly_one_host():
    assert status_of(head_of(host=None)) == 400
    assert status_of(head_of(b"Host: a")) == 400
    assert status_of(head_of(b"hOST: b")) == 400


@pytest.mark.parametrize(
    "field",
    [
        b"Content-Length: 1",
        b"Content-Length: 00",
        b"Content-Length: -0",
        b"Content-Length:",
        b"Content-Length: 0, 0",
        b"Content-Length: 0\r\nContent-Length: 0",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding:",
    ],
)
def test_a_body_is_refused(field):
    assert status_of(head_of(field)) == 400


def test_a_content_length_of_0_is_no_body():
    assert parse_request_head(head_of(b"Content-Length: 0")).get_header("content-length") == "0"


def test_the_number_of_fields_is_bounded():
    fields = [b"X-%d: 1" % index for index in range(MAX_HEADERS)]
    assert len(parse_request_head(head_of(*fields[1:])).headers) == MAX_HEADERS
    assert status_of(head_of(*fields)) == 431
    assert status_of(head_of(*[b"X: 1"] * MAX_HEADERS)) == 431


def test_no_error_repeats_what_was_sent():
    for head in (head_of(b"s3cret"), head_of(line=b"s3cret"), head_of(b"s3cret(: 1"), head_of(host=b"Host: s3cret/")):
        with pytest.raises(HandshakeError) as caught:
            parse_request_head(head)
        assert "s3cret" not in str(caught.value)


@given(st.binary(max_size=60), st.integers(0, 200))
def test_any_bytes_in_a_head_are_parsed_or_refused(junk, position):
    head = head_of(*FIELDS, host=None)
    for data in (junk, junk + b"\r\n\r\n", head[:position] + junk + head[position:]):
        try:
            request = parse_request_head(data)
        except HandshakeError as error:
            status = error.status
        else:
            status = 400
            assert data.startswith(f"{request.method} {request.target} HTTP/1.".encode())
            assert len(request.headers.raw) == data.count(b"\r\n") - 2
        assert status in (400, 414, 431, 501, 505)


def test_parsing_is_linear_in_the_number_of_fields_and_in_their_length():
    def fields(factor):
        head = head_of(*[b"X: 1"] * (MAX_HEADERS // 4 * factor - 1))
        return lambda: [parse_request_head(head) for _ in range(20)]

    def value(factor):
        head = head_of(b"X: " + b"\t ,a" * 50_000 * factor)
        return lambda: parse_request_head(head)

    def spaces(factor):
        head = head_of(b"X: " + b" " * 200_000 * factor + b"x")
        return lambda: parse_request_head(head)

    for work in (fields, value, spaces):
        assert_linear(work)


@pytest.mark.parametrize("rest", [b"", b"\x81\x85", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_head_is_read_in_pieces_of_any_size(rest):
    head = head_of(*FIELDS, host=None)
    for size in range(1, len(head + rest) + 1):
        assert read(head + rest, size) == (head, rest)


@given(st.data())
def test_a_head_is_read_whatever_the_pieces(data):
    sent = head_of(*FIELDS, host=None) + b"rest"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    reader = RequestReader()
    fed = 0
    result = None
    for cut in [*cuts, len(sent)]:
        result = reader.feed(sent[fed:cut])
        fed = cut
        if result is not None:
            break
    assert result is not None
    assert result[0] + result[1] == sent[:fed]
    assert result[0] == sent[:-4]


def test_a_head_may_have_exactly_the_maximal_size():
    head = head_of(*FIELDS, host=None)
    for size in (1, 7, len(head), len(head) + 100):
        assert read(head + b"x" * 100, size, max_size=len(head)) == (head, b"x" * 100)
        with pytest.raises(HandshakeError) as caught:
            read(head + b"x" * 100, size, max_size=len(head) - 1)
        assert caught.value.status == 431


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_a_head_without_an_end_is_refused_at_the_bound(size):
    reader = RequestReader()
    sent = (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 200_000)[: 1 << 20]
    full = (16 * 1024 - 1) // size * size
    for start in range(0, full, size):
        assert reader.feed(sent[start : start + size]) is None
    with pytest.raises(HandshakeError) as caught:
        reader.feed(sent[full : full + size])
    assert caught.value.status == 431


@pytest.mark.parametrize(
    "start",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x80\x2e\x01",
        b"\r\nGET / HTTP/1.1",
        b"\nGET",
        b" GET",
        b"\x00",
        b"\xff",
        b"G\x00",
        b"GE\r",
        b"G(",
        b'{"json": 1}',
        b"<policy",
    ],
)
@pytest.mark.parametrize("size", [1, 100])
def test_what_is_not_http_is_refused_at_its_first_bytes(start, size):
    with pytest.raises(HandshakeError) as caught:
        read(start, size)
    assert caught.value.status == 400


@pytest.mark.parametrize("size", [1, 100])
def test_a_method_without_an_end_is_refused(size):
    assert read(b"M" * 32, size) is None
    with pytest.raises(HandshakeError) as caught:
        read(b"M" * 33, size)
    assert caught.value.status == 501
    assert read(b"M" * 32 + b" \r\n\r\n", size) == (b"M" * 32 + b" \r\n\r\n", b"")


def test_a_reader_that_refused_refuses_all_that_follows():
    reader = RequestReader()
    for data in (b"\x16\x03\x01", b"", b"GET / HTTP/1.1\r\n\r\n"):
        with pytest.raises(HandshakeError) as caught:
            reader.feed(data)
        assert caught.value.status == 400


@pytest.mark.parametrize("size", [1, 100])
def test_a_reader_reads_one_head(size):
    reader = RequestReader()
    head = b"GET / HTTP/1.1\r\n\r\n"
    for start in range(0, len(head), size):
        reader.feed(head[start : start + size])
    with pytest.raises(MisuseError):
        reader.feed(b"")


def test_reading_is_linear_when_fed_a_byte_at_a_time():
    def single_bytes(factor):
        data = b"GET / HTTP/1.1\r\nX: " + b"\r" * 50_000 * factor
        return lambda: read(data, 1, max_size=1 << 20)

    def pieces(factor):
        data = b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 20_000 * factor
        return lambda: read(data, 6, max_size=1 << 20)

    for work in (single_bytes, pieces):
        assert_linear(work)
