"""The reports of a server of the torture test: lines of JSON on stdout."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
from collections.abc import Callable
from typing import Any

from tests.torture.application import Application
from tests.torture.findings import Findings

__all__ = ["Reporter"]


class Reporter:
    """Prints a report after SIGUSR1. The applications rest for the report, and then go on."""

    def __init__(self, findings: Findings, applications: Callable[[], list[Application]]) -> None:
        self._findings = findings
        self._applications = applications
        self._resting: asyncio.Task[None] | None = None
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._rest_soon)

    def say(self, what: dict[str, Any]) -> None:
        # uvicorn may have taken over the pipe.
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(what), flush=True)

    def report(self) -> None:
        gc.collect()
        descriptors = sorted(filter(None, map(_name_of, os.listdir("/proc/self/fd"))))
        self.say({"descriptors": descriptors, "findings": self._findings.found, "totals": self._findings.totals})

    def _rest_soon(self) -> None:
        self._resting = asyncio.get_running_loop().create_task(self._rest())

    async def _rest(self) -> None:
        applications = self._applications()
        for application in applications:
            await application.stop()
        for application in applications:
            await application.rest()
        self.report()
        for application in applications:
            application.start()


def _name_of(descriptor: str) -> str | None:
    """Return the kind of a descriptor's open file, or None for the directory listing."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").partition("[")[0]
    except OSError:
        return None
