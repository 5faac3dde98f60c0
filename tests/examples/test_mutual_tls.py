"""The program about client certificates on the page on proxies."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import sys
from pathlib import Path

import pytest
import websockets

from tests.support.certificate import Certificate
from tests.support.free_ports import free_port
from tests.support.pages import program
from tests.support.programs import environment, running_program
from tests.support.replacing import replaced


def test_the_program_knows_who_has_which_certificate(
    tmp_path: Path, certificate: Certificate, alice: Certificate
) -> None:
    port = free_port()
    text = replaced(program("proxies.md", "mutual_tls.py"), {'"0.0.0.0", 8443': f'"127.0.0.1", {port}'})
    (tmp_path / "mutual_tls.py").write_text(text)
    shutil.copy(certificate.chain, tmp_path / "chain.pem")
    shutil.copy(certificate.key, tmp_path / "key.pem")
    shutil.copy(alice.chain, tmp_path / "clients.pem")

    async def first_message(context: ssl.SSLContext) -> str | bytes:
        async with websockets.connect(f"wss://localhost:{port}/", ssl=context, proxy=None) as client:
            return await client.recv()

    with running_program([sys.executable, "mutual_tls.py"], port=port, env=environment(), cwd=tmp_path):
        assert asyncio.run(first_message(certificate.client_context(alice))) == "Hello, alice."
        with pytest.raises(websockets.InvalidStatus) as refused:
            asyncio.run(first_message(certificate.client_context()))
        assert refused.value.response.status_code == 403
