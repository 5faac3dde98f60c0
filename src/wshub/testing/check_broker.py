"""Prove that a broker does what ``wshub.brokers.interface`` asks for.

The checks start brokers of yours in one process, as nodes of one hub, and compare what arrives with what the contract
promises. They need no test framework::

    async def main() -> None:
        report = await check_broker(lambda: MyBroker("my://localhost"))
        print(report)

    asyncio.run(main())

With pytest, each check can be a test of its own::

    @pytest.mark.parametrize("check", [pytest.param(run, id=name) for name, run in broker_checks()])
    def test_my_broker(check):
        try:
            asyncio.run(check(make, MyFaults()))
        except CheckNotRunError as error:
            pytest.skip(str(error))

Most promises are about failures. Derive a class from ``BrokerFaults`` that causes them, and pass it::

    class MyFaults(BrokerFaults):
        async def stop(self):
            server.kill()

        async def heal(self):
            server.start()

Run the checks on each event loop that you support. If your broker uses the reactor, run them with
``WSHUB_USE_REACTOR=0`` too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

# The modules of the checks add them to CHECKS.
from wshub.testing import (  # noqa: F401
    checks_of_delivery,
    checks_of_history,
    checks_of_lifecycle,
    checks_of_outages,
    checks_of_patterns,
    checks_of_presence,
    checks_of_silence,
    checks_of_subscriptions,
)
from wshub.testing.broker_faults import BrokerFaults, CheckNotRunError, offers
from wshub.testing.broker_nodes import MakeBroker, Nodes, require
from wshub.testing.broker_registry import CHECKS, Check

__all__ = [
    "BrokerFaults",
    "BrokerReport",
    "CheckNotRunError",
    "MakeBroker",
    "RunCheck",
    "broker_checks",
    "check_broker",
]

# Seconds that a call, or an envelope, may take before a check fails.
PATIENCE = 10.0


class RunCheck(Protocol):
    """A coroutine function that runs one check. Its arguments are those of ``check_broker``."""

    __name__: str

    async def __call__(
        self, make: MakeBroker, faults: BrokerFaults | None = None, *, patience: float = PATIENCE
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class BrokerReport:
    """What ``check_broker`` has found. No check has failed, or it would have raised."""

    passed: list[str] = field(default_factory=list)
    """The names of the checks that the broker has passed."""

    not_run: dict[str, str] = field(default_factory=dict)
    """The names of the other checks, each with the faults that it needs and that were not offered."""

    def __str__(self) -> str:
        lines = [f"{len(self.passed)} checks passed"]
        lines += [f"not run: {name}: {reason}" for name, reason in self.not_run.items()]
        return "\n".join(lines)


async def check_broker(
    make: MakeBroker, faults: BrokerFaults | None = None, *, patience: float = PATIENCE
) -> BrokerReport:
    """Run all checks, one after the other, each with brokers of its own.

    The checks use two loops: the running one, and once another one in a thread. They take about a minute, and most of
    it is for the checks with faults. Their hubs have random names, so the engine may have other users.

    Args:
        make: returns a new broker. All of them must use one engine, such as one server, or one directory. Keep no
            reference to a broker, or a weak one. A reference that is left after ``close()`` is reported as a leak.
        faults: what breaks the engine and its connections; None if nothing can. A check that needs a fault that is not
            offered is not run.
        patience: seconds that a call, or the arrival of an envelope, may take. Raise it for a slow engine.

    Returns:
        The checks that have passed, and those that were not run.

    Raises:
        AssertionError: a check has failed. The message has the name of the check, what a broker promises, and what
            happened instead. Later checks were not run.
    """
    report = BrokerReport()
    for check in CHECKS:
        try:
            await _run(check, make, faults, patience=patience)
        except CheckNotRunError as error:
            report.not_run[check.name] = str(error)
        else:
            report.passed.append(check.name)
    return report


def broker_checks() -> Iterator[tuple[str, RunCheck]]:
    """Yield the checks one by one: the name, and a coroutine function that runs it.

    The coroutine function has the arguments of ``check_broker``. It raises AssertionError if the check fails, and
    CheckNotRunError if it needs a fault that is not offered. The first line of its docstring is what a broker promises.
    """
    for check in CHECKS:
        yield check.name, _runner(check)


def _runner(check: Check) -> RunCheck:
    """Return a function with the name and the docstring of the check."""

    async def run(make: MakeBroker, faults: BrokerFaults | None = None, *, patience: float = PATIENCE) -> None:
        await _run(check, make, faults, patience=patience)

    run.__name__ = run.__qualname__ = check.name
    run.__doc__ = check.function.__doc__
    return run


async def _run(check: Check, make: MakeBroker, faults: BrokerFaults | None, *, patience: float) -> None:
    """Run one check with new brokers."""
    missing = [name for name in check.needs if not offers(faults, name)]
    if missing:
        raise CheckNotRunError(f"the check needs the fault {', '.join(missing)}")
    tasks = asyncio.all_tasks()
    nodes = Nodes(make, faults, patience=patience)
    try:
        try:
            async with asyncio.timeout(60 + 6 * patience):
                await check.function(nodes)
                nodes.check_calls()
        except BaseException:
            # The first error counts. Errors of closing after it are a consequence.
            await asyncio.gather(_end(check, nodes, faults), return_exceptions=True)
            raise
        await _end(check, nodes, faults)
        await _check_tasks(tasks, patience)
    except CheckNotRunError:
        raise
    except Exception as error:
        text = str(error) or repr(error) if isinstance(error, AssertionError) else repr(error)
        raise AssertionError(f"{check.name}: {check.promise}\n{text}") from error


async def _end(check: Check, nodes: Nodes, faults: BrokerFaults | None) -> None:
    """End the faults, and close the brokers."""
    if faults is not None and check.needs:
        await faults.heal()
    await nodes.close()


async def _check_tasks(before: set[asyncio.Task[object]], patience: float) -> None:
    """Check that the brokers have left no task. One that is about to end gets the time for it."""
    left = asyncio.all_tasks() - before
    if left:
        await asyncio.wait(left, timeout=min(1.0, patience))
    still = [task.get_name() for task in left if not task.done()]
    require(not still, f"tasks are left after close(): {still}")
