"""The directory in which the hubs of several workers find one another.

The process that starts the workers makes it, and removes it at the end. If that process is killed, the next one removes
it. It can tell by a lock: the file LOCK in the directory is locked for as long as the process lives.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator

from wshub.brokers.workers_directory import DIRECTORY_VARIABLE, SUFFIX, SocketDirectory
from wshub.errors import ConfigurationError

__all__ = ["remove_abandoned", "shared_directory"]

logger = logging.getLogger("wshub.broker")

PREFIX = "wshub-"
LOCK = "parent.lock"


@contextlib.contextmanager
def shared_directory(workers: int) -> Iterator[None]:
    """Make a directory in which the hubs of several workers find one another, and name it in the environment.

    A single worker has none. If a worker of another server has started this one, it leaves that server's directory.
    """
    former = os.environ.pop(DIRECTORY_VARIABLE, None)
    directory = _make_directory() if workers > 1 else None
    lock = None
    if directory is not None:
        lock = _lock(directory)
        os.environ[DIRECTORY_VARIABLE] = directory
        remove_abandoned(os.path.dirname(directory))
    try:
        yield
    finally:
        os.environ.pop(DIRECTORY_VARIABLE, None)
        if former is not None:
            os.environ[DIRECTORY_VARIABLE] = former
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _make_directory() -> str | None:
    """Return the path of a new directory for this user alone; None if there can be none."""
    # systemd removes its directory with the service, also if this process is killed. It may name several.
    from_systemd = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    problem: Exception | None = None
    for parent in dict.fromkeys((from_systemd or None, None, "/tmp")):
        try:
            directory = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
        except OSError as error:
            problem = error
            continue
        try:
            SocketDirectory.check(directory)
            return directory
        except ConfigurationError as error:
            problem = error
            os.rmdir(directory)
    logger.warning("no directory can be made for the workers: the rooms of each are its own: %s", problem)
    return None


def _lock(directory: str) -> int | None:
    """Lock a new directory. Return the descriptor that keeps it locked; None if that cannot be done.

    The file gets its name when it is locked: another process must not find it unlocked.
    """
    path = os.path.join(directory, LOCK)
    unfinished = f"{path}.{secrets.token_hex(4)}"
    try:
        lock = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except OSError:
        return None
    try:
        _flock(lock)
        os.rename(unfinished, path)
    except OSError:
        # Nobody removes a directory without the lock.
        os.close(lock)
        return None
    return lock


def remove_abandoned(parent: str) -> None:
    """Remove the directories below ``parent`` that servers of this user have left which were killed."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if name.startswith(PREFIX):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(os.path.join(parent, name))


def _remove_if_abandoned(directory: str) -> None:
    """Remove a directory whose maker has ended, and its workers too. Raises ``OSError`` if it is another's."""
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        return
    lock = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_NOFOLLOW)
    try:
        # It fails while the maker lives.
        _flock(lock)
        if not any(_listens(os.path.join(directory, name)) for name in os.listdir(directory) if name.endswith(SUFFIX)):
            shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(lock)


def _listens(path: str) -> bool:
    """Return whether a worker listens at a socket, or may do so."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def _flock(descriptor: int) -> None:
    """Lock a file until its descriptor is closed. Raises ``OSError`` if another process has locked it."""
    # Windows has neither the module nor workers that find one another.
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
