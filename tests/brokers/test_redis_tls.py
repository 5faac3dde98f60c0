"""Sentinels and clusters with TLS."""

from __future__ import annotations

from pathlib import Path

from tests.support.broker_node import joined, until
from tests.support.certificate import Certificate
from tests.support.free_ports import free_port
from tests.support.redis_engine import running_engine
from tests.support.redis_sentinel import NAME, Sentinel, wait_until
from wshub.brokers.redis import RedisBroker


async def test_sentinels_and_their_primary_are_reached_with_tls(
    certificate: Certificate, socket_directory: Path
) -> None:
    with running_engine("redis", "--tls-replication", "yes", certificate=certificate) as engine:
        sentinel = Sentinel("redis", socket_directory / "s", engine.tls_port, 1, 60, certificate)
        try:
            sentinel.start()
            url = f"rediss+sentinel://localhost:{sentinel.tls_port}/{NAME}"
            async with joined(RedisBroker(url, ssl=certificate.client_context()), "room:a") as node:
                await node.broker.publish("room:a", b"1")
                await until(lambda: node.received == [b"1"])
        finally:
            sentinel.stop()


async def test_a_cluster_is_reached_with_tls(certificate: Certificate) -> None:
    settings = ("--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-port", str(free_port()))
    with running_engine("redis", *settings, certificate=certificate) as engine:
        engine.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        wait_until(lambda: "cluster_state:ok" in engine.command("CLUSTER", "INFO"))
        # Its only node does not know its own address: the seed's is taken.
        url = f"rediss+cluster://localhost:{engine.tls_port}"
        async with joined(RedisBroker(url, ssl=certificate.client_context()), "room:a") as node:
            await node.broker.publish("room:a", b"1")
            await until(lambda: node.received == [b"1"])
            assert node.broker.stats().peers == 2
