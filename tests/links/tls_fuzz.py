"""Random bytes in place of TLS records: ``python -m tests.links.tls_fuzz SECONDS SEED``.

Hostile clients replace, cut, repeat and swap what they send, during the handshake and after it. Beside them one
connection sends good messages, and each must come back as it was. ``scripts/with-sanitizers`` runs it under the
sanitizers, with a build that checks the shared pair after each use.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import sys
import tempfile
import time
from pathlib import Path

from tests.support.certificate import Certificate
from tests.support.raw_peers import REQUEST, masked
from tests.support.tls_peers import TlsPeer, records_of
from wshub import EventHandler, Frame, Hub, HubConfig

HEADERS = [b"\x16\x03\x01", b"\x17\x03\x03", b"\x14\x03\x03", b"\x15\x03\x03", b"\x18\x03\x03", b"\x80\x2e\x01"]


def damage(chance: random.Random, records: list[bytes]) -> bytes:
    """Return the records with random changes."""
    changed = [bytearray(record) for record in records]
    for _ in range(chance.randrange(4)):
        kind = chance.randrange(7)
        index = chance.randrange(len(changed))
        if not changed[index]:
            continue
        if kind == 0:
            changed[index][chance.randrange(len(changed[index]))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed.insert(index, bytearray(chance.choice(HEADERS) + chance.randbytes(chance.randrange(40))))
        elif kind == 2:
            changed.append(changed[index])
        elif kind == 3:
            changed[index], changed[-1] = changed[-1], changed[index]
        elif kind == 4:
            del changed[index][chance.randrange(len(changed[index])) :]
        elif kind == 5:
            changed.insert(index, bytearray(chance.randbytes(chance.randrange(1, 70_000))))
        else:
            changed[index][3:5] = chance.randbytes(2)
    return b"".join(changed)


async def send_in_pieces(chance: random.Random, peer: TlsPeer, data: bytes) -> None:
    while data:
        length = len(data) if chance.randrange(3) else chance.randrange(1, len(data) + 1)
        await peer.send_raw(data[:length])
        data = data[length:]
        await asyncio.sleep(0)


async def attack(chance: random.Random, port: int, context: ssl.SSLContext) -> None:
    """Connect, go wrong at a random moment, and leave."""
    peer = TlsPeer(port, context)
    try:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            async with asyncio.timeout(0.5):
                if chance.randrange(3) == 0:
                    with contextlib.suppress(ssl.SSLWantReadError):
                        peer.tls.do_handshake()
                    await send_in_pieces(chance, peer, damage(chance, records_of(peer.outgoing.read())))
                else:
                    await peer.shake_hands()
                    if chance.randrange(2):
                        await peer.send(REQUEST)
                    messages = [masked(Frame.binary(bytes(chance.randrange(2000)))) for _ in range(8)]
                    records = [peer.seal(message) for message in messages]
                    await send_in_pieces(chance, peer, damage(chance, records))
                if chance.randrange(2):
                    await peer.reads_to_end() if chance.randrange(4) == 0 else await asyncio.sleep(0)
    finally:
        peer.socket.close()


async def fuzz(seconds: float, seed: int, certificate: Certificate) -> int:
    """Attack for some time. Return how many attacks there were."""
    chance = random.Random(seed)
    contexts = [certificate.client_context() for _ in range(2)]
    contexts[0].maximum_version = ssl.TLSVersion.TLSv1_2
    handler = EventHandler(on_message=lambda connection, message: connection.send(message))
    hub = Hub(HubConfig(handshake_timeout_ms=2000, max_pending_handshakes=20))
    end = time.monotonic() + seconds
    attacks = 0
    async with (
        hub.serve("127.0.0.1", 0, handler, ssl=certificate.server_context(), close_hub=True) as server,
        TlsPeer(server.port, chance.choice(contexts)) as good,
    ):
        await good.open()
        while time.monotonic() < end or attacks == 0:
            wrong = [attack(chance, server.port, chance.choice(contexts)) for _ in range(8)]
            running = asyncio.gather(*wrong)
            for _ in range(4):
                await good.echo(chance.randbytes(chance.randrange(3000)))
            await running
            attacks += len(wrong)
        await good.echo(b"the end")
    return attacks


def main() -> None:
    """Fuzz with the arguments of the command line."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        attacks = asyncio.run(fuzz(seconds, seed, Certificate(Path(directory))))
    print(f"{attacks} attacks")


if __name__ == "__main__":
    main()
