"""The server of rounds with ``Hub.serve()``: ``python -m tests.torture.server PLAN DIRECTORY [FAULT]``."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import uvloop

from tests.torture.application import Application
from tests.torture.findings import Findings
from tests.torture.reports import Reporter
from wshub.serving.server import Server


class Service:
    """One address, and the hubs that serve it one after the other."""

    def __init__(
        self, plan: dict[str, Any], number: int, directory: Path, findings: Findings, fault: str | None
    ) -> None:
        self._plan = plan
        self._number = number
        self._directory = directory
        self._findings = findings
        self._fault = fault
        self._kind: str = plan["hubs"][number]["transport"]
        self._port = 0
        self._stopping = asyncio.Event()
        self.listening = asyncio.Event()
        self.application = self._next_application(0)

    @property
    def target(self) -> dict[str, Any]:
        path = str(self._directory / f"socket-{self._number}")
        return {"kind": self._kind, "port": self._port, "path": path, "paths": [["/", "full"]]}

    def stop(self) -> None:
        self._stopping.set()

    def _next_application(self, generation: int) -> Application:
        seed = self._plan["seed"] + self._number + generation * 100
        drawn = self._plan["hubs"][self._number]
        return Application(drawn, seed, self._plan["threads"], self._findings, self._fault)

    def _serve(self) -> Server:
        hub, handler = self.application.hub, self.application.handler()
        if self._kind == "unix":
            return hub.serve(handler=handler, unix=self.target["path"], close_hub=True)
        files = {"ssl_certfile": "certificate.pem", "ssl_keyfile": "key.pem"} if self._kind == "tls" else {}
        tls = {name: str(self._directory / file) for name, file in files.items()}
        return hub.serve("127.0.0.1", self._port, handler, close_hub=True, **tls)  # type: ignore[arg-type]

    def _keep_little(self, server: Server) -> None:
        """Make the kernel's send buffers small, so that more messages wait in the hub."""
        size = self._plan["hubs"][self._number]["kernel_buffer"]
        for listening in server.sockets:
            if size:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    async def run(self) -> None:
        restarts = self._plan["restarts"]
        for generation in range(restarts + 1):
            if generation:
                self.application = self._next_application(generation)
            async with self._serve() as server:
                if self._kind != "unix":
                    self._port = server.port
                self._keep_little(server)
                self.listening.set()
                self.application.start()
                # The last hub stays until the end of the round.
                timeout = None if generation == restarts else self._plan["seconds"] / (restarts + 1)
                try:
                    await asyncio.wait_for(self._stopping.wait(), timeout)
                except TimeoutError:
                    if generation % 2:
                        await self.application.hub.close(1001, "another comes")
            await self.application.end()
            if self._stopping.is_set():
                return


async def main() -> None:
    plan, directory = json.loads(sys.argv[1]), Path(sys.argv[2])
    findings = Findings()
    services = [
        Service(plan, number, directory, findings, sys.argv[3] if len(sys.argv) > 3 else None)
        for number in range(len(plan["hubs"]))
    ]
    reporter = Reporter(findings, lambda: [service.application for service in services])
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: [service.stop() for service in services])
    async with asyncio.TaskGroup() as group:
        for service in services:
            group.create_task(service.run())
        for service in services:
            await service.listening.wait()
        reporter.say({"targets": [service.target for service in services]})
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        findings.add(f"tasks are left: {left}")
    reporter.report()


if __name__ == "__main__":
    factory = uvloop.new_event_loop if json.loads(sys.argv[1])["loop"] == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
