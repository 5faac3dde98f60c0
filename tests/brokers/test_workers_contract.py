"""The workers' broker keeps the contract of brokers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wshub.brokers.workers import WorkersBroker
from wshub.testing.check_broker import BrokerFaults, CheckNotRunError, broker_checks


class Faults(BrokerFaults):
    async def cut(self, broker: Any) -> None:
        for peer in broker._session.peers:
            peer.end()

    async def heal(self) -> None:
        pass


@pytest.mark.one_loop
@pytest.mark.parametrize("check", [pytest.param(run, id=name) for name, run in broker_checks()])
async def test_it_keeps_the_contract(check: Any, path: Path) -> None:
    try:
        await check(lambda: WorkersBroker(path, several_in_process=True), Faults())
    except CheckNotRunError as error:
        pytest.skip(str(error))
