"""The TLS extension of ASGI: what a scope says about the TLS of its connection."""

from __future__ import annotations

import ssl
from typing import Any

from wshub.asgi.subject_name import subject_name

__all__ = ["tls_extension"]

_VERSIONS = {"TLSv1": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}

# The numbers of the cipher suites that contexts have allowed, by OpenSSL's names.
_cipher_suites: dict[str, int] = {}


def tls_extension(tls: ssl.SSLObject) -> dict[str, Any]:
    """Return the value of the extension ``tls``. The handshake is over.

    ``ssl`` does not tell the certificate of the server. A client that sends a certificate which cannot be verified gets
    no connection, so there is never an error.
    """
    certificate = tls.getpeercert(True)
    return {
        "server_cert": None,
        "client_cert_chain": _chain(tls, certificate) if certificate is not None else [],
        "client_cert_name": _name(tls) if certificate is not None else None,
        "client_cert_error": None,
        "tls_version": _VERSIONS.get(tls.version() or ""),
        "cipher_suite": _cipher_suite(tls),
    }


def _chain(tls: Any, certificate: bytes) -> list[str]:
    """Return the certificates that the client has sent, in PEM.

    ``ssl`` tells more than the first from Python 3.13 on. A resumed session has no other.
    """
    sent: list[bytes] = tls.get_unverified_chain() if hasattr(tls, "get_unverified_chain") else []
    return [ssl.DER_cert_to_PEM_cert(each) for each in sent or [certificate]]


def _name(tls: ssl.SSLObject) -> str | None:
    certificate: dict[str, Any] | None = tls.getpeercert()
    return subject_name(certificate["subject"]) if certificate else None


def _cipher_suite(tls: ssl.SSLObject) -> int | None:
    cipher = tls.cipher()
    if cipher is None:
        return None
    if cipher[0] not in _cipher_suites:
        # OpenSSL's numbers have the version of the protocol in front.
        _cipher_suites.update({each["name"]: each["id"] & 0xFFFF for each in tls.context.get_ciphers()})
    return _cipher_suites.get(cipher[0])
