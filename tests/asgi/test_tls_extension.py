"""The TLS extension of ASGI: names as in RFC 4514, chains and cipher suites."""

from __future__ import annotations

import contextlib
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificate import Certificate
from wshub.asgi.tls_extension import tls_extension


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("/C=GB/ST=Oxfordshire/L=Oxford/O=Tea/OU=Hats/CN=alice", "CN=alice,OU=Hats,O=Tea,L=Oxford,ST=Oxfordshire,C=GB"),
        ("/DC=com/DC=example/UID=alice/CN=Alice Liddell", "CN=Alice Liddell,UID=alice,DC=example,DC=com"),
        ("/O=Tea+OU=Hats/CN=alice", "CN=alice,O=Tea+OU=Hats"),
        ("/CN=alice/serialNumber=42/SN=Liddell/GN=Alice", "givenName=Alice,sn=Liddell,serialNumber=42,CN=alice"),
        ("/CN=alice/emailAddress=alice@example.com", "emailAddress=alice@example.com,CN=alice"),
        ("/CN=alice/pseudonym=al", "pseudonym=al,CN=alice"),
        ("/CN=Älice \U0001f600", "CN=Älice \U0001f600"),
        ('/CN=a,b;c<d>e"f=g', 'CN=a\\,b\\;c\\<d\\>e\\"f=g'),
        ("/CN=a\\\\b\\+c", "CN=a\\\\b\\+c"),
        ("/CN= #alice ", "CN=\\ #alice\\ "),
        ("/CN=#alice", "CN=\\#alice"),
        ("/CN= ", "CN=\\ "),
        ("/CN=alice\nCN=root", "CN=alice\\0aCN=root"),
    ],
)
def test_a_subject_is_written_as_rfc_4514_says(certificate, tmp_path, subject, expected) -> None:
    extension = tls_extension(mutual(certificate, Certificate(tmp_path, "ECDSA", subject=subject)))
    assert extension["client_cert_name"] == expected


def test_without_a_certificate_the_client_has_no_name(certificate) -> None:
    extension = tls_extension(shaken_hands(certificate.server_context(), certificate.client_context()))
    assert (extension["client_cert_name"], extension["client_cert_chain"]) == (None, [])


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


def mutual(certificate: Certificate, own: Certificate) -> ssl.SSLObject:
    """Return the server's side of a connection whose client has a certificate of its own."""
    server, client = certificate.server_context(), certificate.client_context()
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(own.chain)
    # Python 3.13 asks for more extensions than these authorities have.
    server.verify_flags &= ~ssl.VERIFY_X509_STRICT
    client.load_cert_chain(own.chain, own.key)
    return shaken_hands(server, client)


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
