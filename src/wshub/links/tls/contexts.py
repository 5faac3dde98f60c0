"""The SSL contexts of servers, and their certificates."""

from __future__ import annotations

import os
import ssl

from wshub.errors import ConfigurationError, MisuseError

__all__ = ["ServerTls", "load_plain_chain"]

Path = str | os.PathLike[str]


class ServerTls:
    """The settings of a listening socket for TLS.

    A connection uses the ``context`` that is set when its first byte arrives.

    Args:
        context: an SSLContext of the server's side.
        handshake_timeout: seconds that a handshake may take on a transport of the event loop. A receiver bounds the
            time itself in all other links.

    Raises:
        ConfigurationError: the context is no SSLContext, or is one of the client's side.
    """

    def __init__(self, context: ssl.SSLContext, handshake_timeout: float = 10) -> None:
        if not isinstance(context, ssl.SSLContext):
            raise ConfigurationError(f"ssl must be an SSLContext, not {context!r}")
        if context.protocol is ssl.PROTOCOL_TLS_CLIENT:
            raise ConfigurationError(
                "ssl must be an SSLContext of the server's side: make it with ssl.PROTOCOL_TLS_SERVER, or with "
                "ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)"
            )
        self.context = context
        self.handshake_timeout = handshake_timeout
        self._files: tuple[Path, Path | None] | None = None

    @classmethod
    def from_files(cls, certfile: Path, keyfile: Path | None, handshake_timeout: float = 10) -> ServerTls:
        """Make it for a certificate chain and its key, in PEM files.

        Raises:
            OSError: a file cannot be read, does not hold a certificate and its key, or has an encrypted key.
        """
        tls = cls(_load(certfile, keyfile), handshake_timeout)
        tls._files = (certfile, keyfile)
        return tls

    def reload(self) -> None:
        """Read the files again. Connections that exist keep what they have.

        If this raises, nothing has changed.

        Raises:
            MisuseError: there are no files, since the context is the application's own.
            OSError: as ``from_files``.
        """
        if self._files is None:
            raise MisuseError(
                "reload_certificate() reads ssl_certfile again: with ssl, call load_cert_chain() yourself"
            )
        self.context = _load(*self._files)


def _load(certfile: Path, keyfile: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_plain_chain(context, certfile, keyfile, "decrypt the file, or load it into an SSLContext and pass that as ssl")
    return context


def load_plain_chain(context: ssl.SSLContext, certfile: Path, keyfile: Path | None, advice: str) -> None:
    """Load a certificate chain, and its key, which must not be encrypted.

    By itself, OpenSSL would ask for a password at the terminal, and the event loop would wait for it.

    Args:
        context: the context that gets them.
        certfile: the file of the chain.
        keyfile: the file of the key; None if the chain's file has it.
        advice: what to do about an encrypted key, for the error message.

    Raises:
        OSError: a file cannot be read, does not hold a certificate and its key, or has an encrypted key.
    """

    def refuse() -> str:
        raise OSError(f"the private key of {os.fspath(certfile)} is encrypted: {advice}")

    try:
        context.load_cert_chain(certfile, keyfile, refuse)
    except OSError as error:
        # The errors of ssl do not say which file is wrong.
        error.add_note(f"the certificate is in {certfile}, and its key in {keyfile or certfile}")
        raise
