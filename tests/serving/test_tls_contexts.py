"""The settings of an SSLContext hold for the connections of ``Hub.serve``, in the reactor and over transports."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificate import Certificate
from tests.support.tls_peers import TlsPeer
from wshub import ConfigurationError, EventHandler, Hub, HubConfig, MisuseError
from wshub.serving.server import Server


@pytest.fixture(params=[True, False], ids=["reactor", "transports"])
def native(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="session")
def other_certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("other"))


@contextlib.asynccontextmanager
async def serving(native: bool, **options: Any) -> AsyncIterator[Server]:
    handler = EventHandler(on_message=lambda connection, message: connection.send(message))
    async with Hub(HubConfig(use_reactor=native)).serve("127.0.0.1", 0, handler, **options) as server:
        yield server


async def is_served(server: Server, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> TlsPeer:
    """Have a message echoed, and return the peer, whose connection has ended."""
    async with TlsPeer(server.port, context, session) as peer:
        await peer.open()
        await peer.echo()
        return peer


async def is_refused(server: Server, context: ssl.SSLContext) -> BaseException:
    """Return the error that a client gets during the handshake, or with the first bytes behind it."""
    with pytest.raises((ssl.SSLError, ConnectionError)) as refused:
        await is_served(server, context)
    return refused.value


async def test_an_sni_callback_chooses_the_certificate(native, certificate, other_certificate) -> None:
    names: list[Any] = []

    def choose(connection: Any, name: str, _context: ssl.SSLContext) -> None:
        names.append(name)
        connection.context = other

    other = other_certificate.server_context()
    context = certificate.server_context()
    context.sni_callback = choose
    async with serving(native, ssl=context) as server:
        await is_served(server, other_certificate.client_context())
        await is_refused(server, certificate.client_context())
    assert names == ["localhost", "localhost"]


async def test_an_sni_callback_may_use_the_hub(native, certificate) -> None:
    def announce(*_: Any) -> None:
        server.hub.broadcast("a client is coming", room="all")

    context = certificate.server_context()
    async with serving(native, ssl=context) as server:
        context.sni_callback = announce
        async with TlsPeer(server.port, certificate.client_context()) as first:
            await first.open()
            (connection,) = server.hub.connections
            connection.join("all")
            async with TlsPeer(server.port, certificate.client_context()) as second:
                await second.open()
                assert await first.message() == b"a client is coming"
                await second.echo()


async def test_a_protocol_is_negotiated(native, certificate) -> None:
    context, client = certificate.server_context(), certificate.client_context()
    context.set_alpn_protocols(["http/1.1"])
    client.set_alpn_protocols(["h2", "http/1.1"])
    async with serving(native, ssl=context) as server:
        assert (await is_served(server, client)).tls.selected_alpn_protocol() == "http/1.1"


async def test_a_client_without_a_certificate_is_refused(native, certificate, other_certificate) -> None:
    context = certificate.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificate.chain)
    async with serving(native, ssl=context) as server:
        client = certificate.client_context()
        await is_refused(server, client)
        client.load_cert_chain(other_certificate.chain, other_certificate.key)
        await is_refused(server, client)
        client = certificate.client_context()
        client.load_cert_chain(certificate.chain, certificate.key)
        await is_served(server, client)


async def test_keys_are_logged_where_the_context_says_so(native, certificate, tmp_path: Path) -> None:
    context = certificate.server_context()
    context.keylog_filename = str(tmp_path / "keys")
    async with serving(native, ssl=context) as server:
        await is_served(server, certificate.client_context())
    assert "CLIENT_TRAFFIC_SECRET_0" in (tmp_path / "keys").read_text()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_versions_that_the_context_leaves_out_are_refused(native, certificate, version) -> None:
    context, client = certificate.server_context(), certificate.client_context()
    context.minimum_version = context.maximum_version = version
    async with serving(native, ssl=context) as server:
        assert (await is_served(server, client)).tls.version() == version.name.replace("_", ".")
        client.minimum_version = ssl.TLSVersion.TLSv1_2
        other = {ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3} - {version}
        client.maximum_version = client.minimum_version = other.pop()
        await is_refused(server, client)


async def test_ciphers_that_the_context_leaves_out_are_refused(native, certificate) -> None:
    context, client = certificate.server_context(), certificate.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-RSA-AES256-GCM-SHA384")
    async with serving(native, ssl=context) as server:
        cipher = (await is_served(server, client)).tls.cipher()
        assert cipher is not None
        assert cipher[0] == "ECDHE-RSA-AES256-GCM-SHA384"
        client.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
        await is_refused(server, client)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_is_resumed_with_its_ticket(native, certificate, version) -> None:
    context, client = certificate.server_context(), certificate.client_context()
    client.maximum_version = version
    async with serving(native, ssl=context) as server:
        first = await is_served(server, client)
        assert not first.tls.session_reused
        second = await is_served(server, client, first.tls.session)
        assert second.tls.session_reused
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        third = await is_served(server, client)
        assert not third.tls.session or not third.tls.session.has_ticket


async def test_a_class_of_the_applications_own_keeps_its_methods(native, certificate) -> None:
    seen: list[str] = []

    class OwnObject(ssl.SSLObject):
        def read(self, *arguments: Any) -> Any:
            seen.append("read")
            return super().read(*arguments)

    context = certificate.server_context()
    context.sslobject_class = OwnObject
    async with serving(native, ssl=context) as server:
        await is_served(server, certificate.client_context())
    assert "read" in seen


# Reloading


async def test_a_new_certificate_is_served_without_a_restart(native, certificate, other_certificate, tmp_path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"

    def install(installed: Certificate) -> None:
        chain.write_bytes(Path(installed.chain).read_bytes())
        key.write_bytes(Path(installed.key).read_bytes())

    install(certificate)
    async with (
        serving(native, ssl_certfile=chain, ssl_keyfile=key) as server,
        TlsPeer(server.port, certificate.client_context()) as before,
    ):
        await before.open()
        install(other_certificate)
        await is_served(server, certificate.client_context())
        server.reload_certificate()
        await is_served(server, other_certificate.client_context())
        await is_refused(server, certificate.client_context())
        await before.echo()
        chain.write_text("no certificate")
        with pytest.raises(ssl.SSLError):
            server.reload_certificate()
        chain.unlink()
        with pytest.raises(FileNotFoundError) as missing:
            server.reload_certificate()
        assert str(chain) in missing.value.__notes__[0]
        await is_served(server, other_certificate.client_context())


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(certificate, encrypted_key) -> None:
    with pytest.raises(OSError, match="encrypted: decrypt the file"):
        Hub().serve("127.0.0.1", 0, EventHandler(), ssl_certfile=certificate.chain, ssl_keyfile=encrypted_key)


async def test_a_renewed_key_that_is_encrypted_changes_nothing(native, certificate, encrypted_key, tmp_path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(Path(certificate.key).read_bytes())
    async with serving(native, ssl_certfile=certificate.chain, ssl_keyfile=key) as server:
        key.write_bytes(Path(encrypted_key).read_bytes())
        with pytest.raises(OSError, match="encrypted"):
            server.reload_certificate()
        await is_served(server, certificate.client_context())


async def test_a_context_of_the_application_is_the_applications_to_reload(native, certificate, other_certificate):
    context = certificate.server_context()
    async with serving(native, ssl=context) as server:
        with pytest.raises(MisuseError, match="load_cert_chain"):
            server.reload_certificate()
        context.load_cert_chain(other_certificate.chain, other_certificate.key)
        await is_served(server, other_certificate.client_context())
    async with serving(native) as plain:
        with pytest.raises(MisuseError, match="no certificate"):
            plain.reload_certificate()


def test_a_context_must_be_a_context() -> None:
    with pytest.raises(ConfigurationError, match="SSLContext"):
        Hub().serve("127.0.0.1", 0, EventHandler(), ssl="certificate.pem")  # type: ignore[arg-type]


def test_a_context_of_the_clients_side_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="server's side"):
        Hub().serve("127.0.0.1", 0, EventHandler(), ssl=ssl.create_default_context())


async def test_secrets_are_not_logged(native, certificate, caplog) -> None:
    caplog.set_level(1)
    async with serving(native, ssl=certificate.server_context()) as server:
        await is_served(server, certificate.client_context())
        peer = TlsPeer(server.port, certificate.client_context())
        await peer.send_raw(b"\x16\x03\x01\x00\x05secret-of-a-client")
        await peer.reads_to_end()
        peer.socket.close()
        await asyncio.sleep(0)
    text = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("wshub"))
    assert "secret-of" not in text
    assert "hello" not in text
    assert "PRIVATE" not in text
