"""A certificate for localhost that the test clients trust."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path


class Certificate:
    """A certificate and its key, of RSA or of ECDSA. openssl makes them in a directory.

    Args:
        directory: for the files.
        kind: of the key.
        subject: the name, as ``openssl req -subj`` takes it.
        issuer: signs the certificate; None has it sign itself.
    """

    def __init__(
        self, directory: Path, kind: str = "RSA", *, subject: str = "/CN=localhost", issuer: Certificate | None = None
    ) -> None:
        key = ["rsa:2048"] if kind == "RSA" else ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        self.chain = str(directory / "certificate.pem")
        self.key = str(directory / "key.pem")
        signed_by = ["-CA", issuer.chain, "-CAkey", issuer.key] if issuer is not None else []
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", *key, "-nodes", "-days", "2", "-utf8", "-subj", subject),
                *signed_by,
                *("-keyout", self.key, "-out", self.chain),
                *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"),
            ],
            check=True,
            capture_output=True,
        )

    def server_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.chain, self.key)
        return context

    def client_context(self, own: Certificate | None = None) -> ssl.SSLContext:
        """Return the context of a client that trusts this certificate, and may have one of its own."""
        context = ssl.create_default_context(cafile=self.chain)
        if own is not None:
            context.load_cert_chain(own.chain, own.key)
        return context

    def der(self) -> bytes:
        """Return the certificate in DER."""
        return ssl.PEM_cert_to_DER_cert(Path(self.chain).read_text())

    def encrypt_key(self, path: Path, password: str) -> str:
        """Write the key to a file, encrypted with the password. Return the file's name."""
        command = ["openssl", "pkey", "-aes128", "-passout", f"pass:{password}", "-in", self.key, "-out", str(path)]
        subprocess.run(command, check=True, capture_output=True)
        return str(path)
