"""A round of the torture test, drawn at random: the server, the transports and the settings."""

from __future__ import annotations

import random
from typing import Any

from wshub import CompressionConfig, HubConfig, RateLimits

__all__ = ["SLOW_CONSUMERS", "config_of", "draw_plan"]

SLOW_CONSUMERS = ("close", "drop_newest", "drop_oldest", "latest")
SERVERS = ("hub", "hub", "fastapi", "app")
TRANSPORTS = ("tcp", "tcp", "unix", "tls")
HANDLERS = ("events", "coroutine_events", "endpoint", "receiver")


def _draw_compression(chance: random.Random) -> dict[str, Any] | None:
    if chance.random() < 0.3:
        return None
    return {
        "engine": chance.choice(("auto", "zlib")),
        "level": chance.choice((1, 2, 6)),
        "memory_level": chance.choice((1, 5, 9)),
        "server_max_window_bits": chance.choice((9, 10, 15)),
        "client_max_window_bits": chance.choice((9, 15)),
        "server_context_takeover": chance.random() < 0.5,
        "client_context_takeover": chance.random() < 0.5,
        "threshold": chance.choice((0, 64, 256)),
    }


def _draw_hub(chance: random.Random) -> dict[str, Any]:
    """Draw a hub's settings. Timeouts that clients must keep are long, because the machine may be busy."""
    settings: dict[str, Any] = {
        "slow_consumer": chance.choice(SLOW_CONSUMERS),
        "max_send_buffer": chance.choice((5_000, 20_000, 100_000)),
        "ping_interval_ms": chance.choice((500, 2_000, 30_000)),
        "pong_timeout_ms": 20_000,
        "close_timeout_ms": chance.choice((5_000, 10_000)),
        "handshake_timeout_ms": chance.choice((500, 1_000)),
        "send_timeout_ms": chance.choice((1_000, 10_000, 10_000)),
        "max_lifetime_ms": chance.choice((0, 4_000)),
        "idle_timeout_ms": chance.choice((0, 0, 3_000)),
        "max_connections": chance.choice((30, 1000)),
        "max_connection_rate": chance.choice((0, 50)),
        "max_connection_rate_per_address": chance.choice((0, 40)),
        "max_connections_per_address": chance.choice((0, 40)),
        "max_pending_handshakes": chance.choice((8, 1024)),
        "shutdown_spread_ms": chance.choice((0, 500)),
    }
    rates = {
        "messages": chance.choice((0, 0, 100)),
        "control_frames": chance.choice((20, 100)),
        "handler_ms": chance.choice((0, 500)),
        "excess": chance.choice(("delay", "close")),
    }
    return {
        "settings": settings,
        "rates": rates,
        "compression": _draw_compression(chance),
        "on_upgrade": chance.choice((None, "function", "coroutine")),
        # Size of the kernel's send buffer for a client; 0 leaves the size to the kernel.
        "kernel_buffer": chance.choice((0, 4096, 4096)),
    }


def config_of(drawn: dict[str, Any]) -> HubConfig:
    compression = drawn["compression"]
    return HubConfig(
        **drawn["settings"],
        rates=RateLimits(**drawn["rates"]),
        compression=CompressionConfig(**compression) if compression else None,
    )


def draw_plan(seed: int, number: int) -> dict[str, Any]:
    """Return the plan of a round. The same seed and number always give the same plan."""
    chance = random.Random(f"{seed}/{number}")
    server = chance.choice(SERVERS)
    hubs = [
        {"transport": chance.choice(TRANSPORTS), "handler": chance.choice(HANDLERS), **_draw_hub(chance)}
        for _ in range(2 if server == "hub" else 1)
    ]
    return {
        "seed": chance.getrandbits(32),
        "number": number,
        "server": server,
        "loop": chance.choice(("asyncio", "uvloop")),
        "reactor": chance.random() < 0.7,
        "hubs": hubs,
        "clients": chance.randrange(30, 100),
        "seconds": chance.randrange(5, 15),
        "threads": chance.randrange(4),
        # Whether the server is stopped while its clients are connected.
        "ends_early": chance.random() < 0.3,
        # The number of times that the application closes its hub and goes on with a new one.
        "restarts": chance.choice((0, 0, 1, 2)) if server == "hub" else 0,
    }
