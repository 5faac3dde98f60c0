"""The faults that a server of the torture test finds in itself."""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections import Counter
from dataclasses import asdict

from wshub import HubStats
from wshub.core.stats_types import MessageStats

__all__ = ["DeliberateError", "Findings", "check_balance"]

MOST = 20
"""Maximum number of findings. Of findings that differ only in numbers, the first is kept."""

LOGGERS = ("", "uvicorn")
"""The loggers that do not propagate to another."""


class DeliberateError(Exception):
    """A handler raises it on purpose."""


class Findings(logging.Handler):
    """Collects all faults, including log records above WARNING."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING + 1)
        self.found: list[str] = []
        self.totals: Counter[str] = Counter()
        self._kinds: set[str] = set()
        self.watch_logs()
        sys.unraisablehook = lambda unraisable: self.raised("unraisable", unraisable.exc_value, unraisable.object)
        threading.excepthook = lambda arguments: self.raised("a thread ended", arguments.exc_value, arguments.thread)

    def watch_logs(self) -> None:
        """Watch the log from now on. Call it again after other code has configured logging."""
        for name in LOGGERS:
            logger = logging.getLogger(name)
            if self not in logger.handlers:
                logger.addHandler(self)
        logging.getLogger("uvicorn.error").addFilter(lambda record: not _is_deliberate(record))

    def add(self, finding: str) -> None:
        kind = re.sub(r"\d+", "", finding)
        if len(self.found) < MOST and kind not in self._kinds:
            self._kinds.add(kind)
            self.found.append(finding)
            print(finding, file=sys.stderr, flush=True)

    def count(self, stats: HubStats) -> None:
        """Add the counts of a hub that has ended."""
        self.totals["delivered"] += stats.messages_delivered
        self.totals.update({f"dropped: {reason}": count for reason, count in asdict(stats.dropped).items()})

    def raised(self, where: str, error: BaseException | None, about: object = None) -> None:
        text = "".join(traceback.format_exception(error)) if error is not None else ""
        self.add(f"{where}: {about!r}\n{text}")

    def emit(self, record: logging.LogRecord) -> None:
        if not _is_deliberate(record):
            error = record.exc_info[1] if record.exc_info else None
            text = "".join(traceback.format_exception(error)) if error is not None else ""
            self.add(f"logged by {record.name}: {record.getMessage()}\n{text}")


def _is_deliberate(record: logging.LogRecord) -> bool:
    return record.exc_info is not None and isinstance(record.exc_info[1], DeliberateError)


def check_balance(stats: MessageStats) -> None:
    """Check that every accepted message is delivered, dropped or pending. Raises AssertionError."""
    accounted = stats.messages_delivered + stats.dropped.total + stats.messages_pending
    assert stats.messages_accepted == accounted, f"the counts of messages do not add up: {stats}"
