"""The SSL contexts of servers, and their certificates."""

from __future__ import annotations

import os
import ssl

from wshub.errors import ConfigurationError, MisuseError

__all__ = ["ServerTls"]

Path = str | os.PathLike[str]


class ServerTls:
    """The settings of a listening socket for TLS.

    A new connection uses the ``context`` that is there when its first byte arrives.

    Args:
        context: an SSLContext of the server's side.
        handshake_timeout: seconds that a handshake may take on a transport of the event loop. A receiver bounds the
            time itself in all other links.

    Raises:
        ConfigurationError: the context is no SSLContext.
    """

    def __init__(self, context: ssl.SSLContext, handshake_timeout: float = 10) -> None:
        if not isinstance(context, ssl.SSLContext):
            raise ConfigurationError(f"ssl must be an SSLContext, not {context!r}")
        self.context = context
        self.handshake_timeout = handshake_timeout
        self._files: tuple[Path, Path | None] | None = None

    @classmethod
    def from_files(cls, certfile: Path, keyfile: Path | None, handshake_timeout: float = 10) -> ServerTls:
        """Make it for a certificate chain and its key, in PEM files.

        Raises:
            OSError: a file cannot be read, or does not hold a certificate and its key.
        """
        tls = cls(_load(certfile, keyfile), handshake_timeout)
        tls._files = (certfile, keyfile)
        return tls

    def reload(self) -> None:
        """Read the files again. Connections that exist keep what they have.

        If this raises, nothing has changed.

        Raises:
            MisuseError: there are no files, since the context is the application's own.
            OSError: a file cannot be read, or does not hold a certificate and its key.
        """
        if self._files is None:
            raise MisuseError(
                "reload_certificate() reads ssl_certfile again: with ssl, call load_cert_chain() yourself"
            )
        self.context = _load(*self._files)


def _load(certfile: Path, keyfile: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certfile, keyfile)
    return context
