"""A test of a link runs twice: in the native reactor, and over transports of the loop."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.reactor import needs_reactor
from wshub.links.asyncio_reactor import AsyncioReactor
from wshub.links.link import LinkCounters
from wshub.links.reactor_api import Reactor
from wshub.links.reactors import create_reactor


@pytest.fixture(params=[pytest.param("reactor", marks=needs_reactor), "transports"])
def carrier(request: pytest.FixtureRequest) -> str:
    return request.param


def make_reactor(carrier: str) -> Reactor:
    loop = asyncio.get_running_loop()
    if carrier == "reactor":
        return create_reactor(loop, LinkCounters(), native=True, clock=loop.time)
    return AsyncioReactor(loop, LinkCounters())
