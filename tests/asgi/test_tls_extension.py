"""The TLS extension of ASGI, and the names of RFC 4514 in it."""

from __future__ import annotations

import contextlib
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.certificate import Certificate
from wshub.asgi.subject_name import subject_name
from wshub.asgi.tls_extension import tls_extension


def named(directory: Path, subject: str) -> bytes:
    return Certificate(directory, "ECDSA", subject=subject).der()


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("/C=GB/ST=Oxfordshire/L=Oxford/O=Tea/OU=Hats/CN=alice", "CN=alice,OU=Hats,O=Tea,L=Oxford,ST=Oxfordshire,C=GB"),
        ("/DC=com/DC=example/UID=alice/CN=Alice Liddell", "CN=Alice Liddell,UID=alice,DC=example,DC=com"),
        ("/O=Tea+OU=Hats/CN=alice", "CN=alice,O=Tea+OU=Hats"),
        ("/CN=alice/serialNumber=42/SN=Liddell/GN=Alice", "givenName=Alice,sn=Liddell,serialNumber=42,CN=alice"),
        ("/CN=alice/emailAddress=alice@example.com", "emailAddress=alice@example.com,CN=alice"),
        ("/CN=Älice \U0001f600", "CN=Älice \U0001f600"),
        ('/CN=a,b;c<d>e"f=g', 'CN=a\\,b\\;c\\<d\\>e\\"f=g'),
        ("/CN=a\\\\b\\+c", "CN=a\\\\b\\+c"),
        ("/CN= #alice ", "CN=\\ #alice\\ "),
        ("/CN=#alice", "CN=\\#alice"),
        ("/CN= ", "CN=\\ "),
        ("/CN=alice\nCN=root", "CN=alice\\0aCN=root"),
        ("/CN=alice/pseudonym=al", "2.5.4.65=#0c02616c,CN=alice"),
        ("/CN=alice/msUPN=al", "1.3.6.1.4.1.311.20.2.3=#0c02616c,CN=alice"),
        ("/", ""),
    ],
)
def test_a_subject_is_written_as_rfc_4514_says(tmp_path, subject, expected) -> None:
    assert subject_name(named(tmp_path, subject)) == expected


def element(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else bytes([0x82]) + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


COMMON_NAME = element(0x06, b"\x55\x04\x03")


def with_value(value: bytes, kind: bytes = COMMON_NAME, version: bytes = element(0xA0, b"\x02\x01\x02")) -> bytes:
    """Return as much of a certificate as is read, with one attribute in its subject."""
    subject = element(0x30, element(0x31, element(0x30, kind + value)))
    fields = version + element(0x02, b"\x01") + element(0x30, b"") * 3
    return element(0x30, element(0x30, fields + subject))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (element(0x0C, "é".encode()), "CN=é"),
        (element(0x13, b"alice"), "CN=alice"),
        (element(0x14, b"\xe9"), "CN=é"),
        (element(0x1E, "é".encode("utf-16-be")), "CN=é"),
        (element(0x1C, "\U0001f600".encode("utf-32-be")), "CN=\U0001f600"),
        (element(0x0C, b"a\0b"), "CN=a\\00b"),
        (element(0x0C, b"x" * 300), f"CN={'x' * 300}"),
        (element(0x0C, b"\xff"), "CN=#0c01ff"),
        (element(0x1E, b"\xd8\x00"), "CN=#1e02d800"),
        (element(0x03, b"\x00\x01"), "CN=#03020001"),
    ],
)
def test_text_of_every_kind_is_read_and_all_else_is_written_in_hex(value, expected) -> None:
    assert subject_name(with_value(value)) == expected
    assert subject_name(with_value(value, version=b"")) == expected


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", "1.2.840.113549.1.1.1"),
        (b"\x88\x37\x03", "2.999.3"),
        (b"\x27", "0.39"),
    ],
)
def test_a_type_without_a_name_is_written_in_numbers(encoded, expected) -> None:
    assert subject_name(with_value(element(0x0C, b"a"), kind=element(0x06, encoded))) == f"{expected}=#0c0161"


def test_a_certificate_that_ends_early_is_no_certificate(alice) -> None:
    whole = alice.der()
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"early|DER"):
            subject_name(whole[:length])
    with pytest.raises(ValueError, match="not one of DER"):
        subject_name(b"\x30\x80" + whole)


@given(st.binary(max_size=200), st.integers(0, 100), st.integers(0, 255))
def test_what_is_no_certificate_raises_nothing_else(data: bytes, place: int, byte: int) -> None:
    damaged = bytearray(with_value(element(0x0C, b"alice")))
    damaged[place % len(damaged)] = byte
    for each in (data, bytes(damaged)):
        with contextlib.suppress(ValueError):
            subject_name(each)


def shaken_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Return the server's side of a connection through memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(3):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends[1]


SUITES = {
    "ECDHE-RSA-AES128-GCM-SHA256": 0xC02F,
    "ECDHE-RSA-AES256-GCM-SHA384": 0xC030,
    "ECDHE-RSA-CHACHA20-POLY1305": 0xCCA8,
}
NEW_SUITES = {
    "TLS_AES_128_GCM_SHA256": 0x1301,
    "TLS_AES_256_GCM_SHA384": 0x1302,
    "TLS_CHACHA20_POLY1305_SHA256": 0x1303,
}


@pytest.mark.parametrize("name", SUITES)
def test_a_cipher_suite_has_the_number_that_iana_gave_it(certificate, name) -> None:
    client = certificate.client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(name)
    extension = tls_extension(shaken_hands(certificate.server_context(), client))
    assert (extension["tls_version"], extension["cipher_suite"]) == (0x0303, SUITES[name])


def test_tls_1_3_has_numbers_of_its_own(certificate) -> None:
    tls = shaken_hands(certificate.server_context(), certificate.client_context())
    cipher = tls.cipher()
    assert cipher is not None
    extension = tls_extension(tls)
    assert (extension["tls_version"], extension["cipher_suite"]) == (0x0304, NEW_SUITES[cipher[0]])


def test_the_chain_begins_with_the_client_and_goes_on_where_python_tells_it(certificate, tmp_path) -> None:
    for name in ("root", "office", "alice"):
        (tmp_path / name).mkdir()
    root = Certificate(tmp_path / "root", "ECDSA", subject="/CN=root")
    office = Certificate(tmp_path / "office", "ECDSA", subject="/CN=office", issuer=root)
    alice = Certificate(tmp_path / "alice", "ECDSA", subject="/CN=alice", issuer=office)
    chain = tmp_path / "chain.pem"
    chain.write_text(Path(alice.chain).read_text() + Path(office.chain).read_text())
    server, client = certificate.server_context(), certificate.client_context()
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(root.chain)
    # Python 3.13 asks for more extensions than these authorities have.
    server.verify_flags &= ~ssl.VERIFY_X509_STRICT
    client.load_cert_chain(chain, alice.key)
    extension: dict[str, Any] = tls_extension(shaken_hands(server, client))
    sent = [ssl.PEM_cert_to_DER_cert(each) for each in extension["client_cert_chain"]]
    assert sent == [alice.der(), office.der()][: 2 if sys.version_info >= (3, 13) else 1]
    assert extension["client_cert_name"] == "CN=alice"
