"""The TLS settings of a uvicorn server. SIGHUP has their files read again."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import ssl
import threading
from weakref import WeakKeyDictionary, WeakSet

from uvicorn.config import Config, create_ssl_context

from wshub.links.tls.contexts import ServerTls, load_plain_chain

__all__ = ["ConfiguredTls", "reload_on_hangup"]

logger = logging.getLogger("uvicorn.error")


class ConfiguredTls(ServerTls):
    """The TLS of a uvicorn configuration, which has been loaded.

    Args:
        config: says what the context is made of.
        context: the one that the server was given.
        handshake_timeout: seconds that a handshake may take on a transport of the event loop.
    """

    def __init__(self, config: Config, context: ssl.SSLContext, handshake_timeout: float) -> None:
        super().__init__(context, handshake_timeout)
        self._config = config

    def reload(self) -> None:
        """Make the context anew, as uvicorn made it. If this raises, nothing has changed.

        Raises:
            OSError: a file cannot be read, or does not hold what it should.
            Exception: whatever ``ssl_context_factory`` raises.
        """
        config = self._config
        factory = getattr(config, "ssl_context_factory", None)
        if factory is None:
            self.context = _create_context(config)
        else:
            # The constructor checks what the factory returns.
            self.context = ServerTls(factory(config, lambda: _create_context(config))).context


def _create_context(config: Config) -> ssl.SSLContext:
    if config.ssl_certfile and not config.ssl_keyfile_password:
        # Without this, OpenSSL would ask for the password at the terminal, and the server would wait for it.
        check = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_plain_chain(check, config.ssl_certfile, config.ssl_keyfile, "give uvicorn the ssl_keyfile_password")
    return create_ssl_context(
        certfile=config.ssl_certfile,  # type: ignore[arg-type]
        keyfile=config.ssl_keyfile,
        password=config.ssl_keyfile_password,
        ssl_version=config.ssl_version,
        cert_reqs=config.ssl_cert_reqs,
        ca_certs=config.ssl_ca_certs,
        ciphers=config.ssl_ciphers,
        alpn_protocols=getattr(config.http_protocol_class, "alpn_protocols", None),
    )


class _Hangups:
    """Handles SIGHUP on a loop, from the first server with TLS until the loop closes."""

    def __init__(self) -> None:
        self.served: WeakSet[ConfiguredTls] = WeakSet()

    def arrived(self) -> None:
        for tls in tuple(self.served):
            try:
                tls.reload()
            except Exception as error:
                notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
                logger.error(
                    "SIGHUP: the certificate cannot be read, the server goes on with the old one: %s%s", error, notes
                )
            else:
                logger.info("SIGHUP: the certificate has been read again, and new connections get it")


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Hangups] = WeakKeyDictionary()


def reload_on_hangup(loop: asyncio.AbstractEventLoop, tls: ConfiguredTls) -> None:
    """Have SIGHUP reload the settings as long as they are in use.

    If the process has a handler of its own, or ignores the signal, nothing changes. The same holds for a worker: the
    process that started it handles SIGHUP, and replaces its workers.
    """
    hangups = _of_loops.get(loop)
    if hangups is None:
        if not _is_free():
            return
        hangups = _Hangups()
        try:
            loop.add_signal_handler(signal.SIGHUP, hangups.arrived)
        except (NotImplementedError, RuntimeError):
            # A loop without signals.
            return
        _of_loops[loop] = hangups
    hangups.served.add(tls)


def _is_free() -> bool:
    """Return whether SIGHUP may be handled here."""
    return (
        hasattr(signal, "SIGHUP")
        and threading.current_thread() is threading.main_thread()
        and multiprocessing.parent_process() is None
        and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    )
