"""Measures everything about brokers: workers, Redis, and a room that is spread over nodes.

``python benchmarks/brokers.py``; README.md says how each part is measured.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = (
    ("brokers_workers.py", "--readers", "1"),
    ("brokers_workers.py", "--readers", "3"),
    ("brokers_redis.py",),
    ("cluster.py",),
)


def main() -> int:
    """Run each part in a process of its own. Return 1 if one has failed."""
    failed = False
    for program, *arguments in PARTS:
        print(f"\n{program} {' '.join(arguments)}\n", flush=True)
        failed |= subprocess.run([sys.executable, str(HERE / program), *arguments], check=False).returncode != 0
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
