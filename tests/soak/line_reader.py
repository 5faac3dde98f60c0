"""A program of a soak test, which prints lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from tests.support.programs import environment

__all__ = ["LineReader", "SoakFailure"]


class SoakFailure(Exception):
    """The run cannot go on."""


class LineReader:
    """A program whose lines of JSON a thread reads."""

    def __init__(self, take: Callable[[dict[str, Any]], None], *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, env=environment()
        )
        self._take = take
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._take(json.loads(line))

    def finish(self, timeout: float) -> int:
        """Wait for the program's end. Return its exit code."""
        code = self.process.wait(timeout)
        self._thread.join(timeout)
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
