"""Ports for the servers of tests.

A port that the kernel chooses is free only until somebody else gets it: a connection, or a server of another test
process. So each process takes a block of ports for itself, below those that the kernel gives to connections.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_port"]

FIRST_PORT = 10_112
"""Browsers connect to no server at port 10080, which is the last one that they block."""

BLOCK_PORTS = 128
BLOCKS = 175
"""The last port is 32511. Connections get ports from 32768 on."""

LOCKS = Path(tempfile.gettempdir()) / "wshub-test-ports"

ports: Iterator[int] | None = None
"""The ports of this process, again and again."""


def take_block() -> range:
    """Return a block of ports that belongs to this process until it ends."""
    LOCKS.mkdir(exist_ok=True)
    for block in range(BLOCKS):
        lock = os.open(LOCKS / str(block), os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            first = FIRST_PORT + block * BLOCK_PORTS
            return range(first, first + BLOCK_PORTS)
        os.close(lock)
    raise RuntimeError(f"all blocks of ports are taken: see the processes that hold the files in {LOCKS}")


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port on which nobody listens. This process gets it again after 127 others."""
    global ports
    if ports is None:
        ports = itertools.cycle(take_block())
    for port in itertools.islice(ports, BLOCK_PORTS):
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # Former connections of the port are no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    raise RuntimeError("servers listen on all ports of this process")
