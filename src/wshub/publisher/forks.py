"""How often this process was forked: what belongs to a parent process is left alone."""

from __future__ import annotations

import os

__all__ = ["fork_count"]

# Unlike a process id, it is never used again in a child of a child.
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


def fork_count() -> int:
    """Return how many forks lie between this process and the one that has imported the module."""
    return _forks
