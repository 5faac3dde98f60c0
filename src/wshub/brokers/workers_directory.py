"""The directory in which workers find one another: each has a Unix socket there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import stat
import struct
import sys
import time

from wshub.errors import ConfigurationError

__all__ = ["DIRECTORY_VARIABLE", "SUFFIX", "SocketDirectory", "enlarge_send_buffer", "is_same_user"]

DIRECTORY_VARIABLE = "WSHUB_WORKERS_DIRECTORY"
"""The environment variable that names the directory of the workers of one server.

``WSHUB_WORKERS`` would not do: ``wshub serve`` takes its option ``--workers`` from it.
"""

LONGEST_PATH = 107 if sys.platform == "linux" else 103
"""Bytes that the path of a Unix socket may have."""

SEND_BUFFER = 2 << 20
"""Bytes that the kernel holds for a slow worker. The kernel may allow less."""

SUFFIX = ".sock"
"""The end of the name of a socket that listens, or whose process has died."""

UNFINISHED = ".bind"
UNFINISHED_SECONDS = 60
"""A socket that does not listen after so many seconds was left by a worker that was killed."""


class SocketDirectory:
    """The sockets of the workers that have one hub in common.

    A socket is in the directory under its name only while it listens: it is bound under another name before.

    Args:
        path: the directory. It is made if it is missing.
        hub: the name of the hub.
        node: the id of this node.

    Raises:
        ConfigurationError: the path is too long.
    """

    def __init__(self, path: str, hub: str, node: str) -> None:
        self.path = path
        self._prefix = hashlib.sha256(hub.encode("utf-8", "surrogatepass")).hexdigest()[:8] + "-"
        self._name = f"{self._prefix}{node}{SUFFIX}"
        self._unfinished = f"{self._prefix}{node}{UNFINISHED}"
        self._pid = os.getpid()
        self._inode: int | None = None

    @staticmethod
    def check(path: str) -> None:
        """Raise ConfigurationError if sockets in that directory would have too long a path."""
        if not hasattr(socket, "AF_UNIX"):
            raise ConfigurationError("WorkersBroker needs Unix sockets, which this platform does not have")
        longest = LONGEST_PATH - len(f"/00000000-{'0' * 16}{SUFFIX}")
        if len(os.fsencode(path)) > longest:
            raise ConfigurationError(
                f"the path of a WorkersBroker may have {longest} bytes, and {path!r} has {len(os.fsencode(path))}: "
                "choose a directory with a shorter path, such as one below /run or /tmp"
            )

    def prepare(self) -> None:
        """Make the directory if it is missing.

        Raises:
            ConfigurationError: it cannot be made or used, or other users can use it.
        """
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            status = os.stat(self.path)
        except OSError as error:
            raise ConfigurationError(
                f"the directory {self.path!r} of a WorkersBroker cannot be used: {error.strerror}"
            ) from None
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise ConfigurationError(
                f"the directory {self.path!r} of a WorkersBroker must belong to the user that runs the workers, and be "
                "closed to others: chmod 700, or choose another directory"
            )

    def bind(self) -> socket.socket:
        """Return this node's socket, bound under a name that no other worker looks for.

        Raises:
            OSError: it cannot be bound.
            ConfigurationError: the directory cannot be used.
        """
        self.prepare()
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.setblocking(False)
            bound.bind(self._path(self._unfinished))
            self._inode = os.stat(self._path(self._unfinished)).st_ino
        except BaseException:
            bound.close()
            raise
        return bound

    def publish(self) -> None:
        """Give the socket its name, since it listens now: a connection to one that does not is refused.

        Raises:
            OSError: it cannot be renamed.
        """
        os.rename(self._path(self._unfinished), self._path(self._name))

    def others(self) -> dict[str, str]:
        """Return the nodes whose sockets are there, by id: their names. This node's own is left out.

        Raises:
            OSError: the directory cannot be read.
        """
        found = {}
        for name in os.listdir(self.path):
            if name.startswith(self._prefix) and name != self._name:
                if name.endswith(SUFFIX):
                    found[name[len(self._prefix) : -len(SUFFIX)]] = name
                elif name.endswith(UNFINISHED):
                    self._remove_unfinished(name)
        return found

    def connect(self, name: str) -> socket.socket | None:
        """Return a socket that is connected to a node's, or None if that node is gone. Its file is removed then.

        Raises:
            OSError: that node cannot be reached at present.
        """
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.setblocking(False)
            enlarge_send_buffer(connected)
            connected.connect(self._path(name))
            return connected
        except FileNotFoundError:
            connected.close()
            return None
        except ConnectionRefusedError:
            connected.close()
            with contextlib.suppress(OSError):
                os.unlink(self._path(name))
            return None
        except BaseException:
            connected.close()
            raise

    def has_own_socket(self) -> bool:
        """Return whether this node's socket is still in the directory. A program that tidies up may have removed it."""
        try:
            return os.stat(self._path(self._name)).st_ino == self._inode
        except OSError:
            return False

    def is_own(self) -> bool:
        """Return whether this process has made the object, and not one from which it was forked."""
        return self._pid == os.getpid()

    def remove(self) -> None:
        """Remove this node's socket from the directory. A forked process leaves it to its parent."""
        if self.is_own():
            for name in (self._name, self._unfinished):
                with contextlib.suppress(OSError):
                    os.unlink(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _remove_unfinished(self, name: str) -> None:
        with contextlib.suppress(OSError):
            if os.stat(self._path(name)).st_mtime < time.time() - UNFINISHED_SECONDS:
                os.unlink(self._path(name))


def enlarge_send_buffer(connected: socket.socket) -> None:
    """Have the kernel hold more for a slow worker. By default it holds some hundred short messages."""
    with contextlib.suppress(OSError):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def is_same_user(connected: socket.socket) -> bool:
    """Return whether the program at the other end runs as the same user. True where the platform cannot tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    try:
        _, uid, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    except OSError as error:
        return error.errno == errno.ENOPROTOOPT
    return bool(uid == os.geteuid())
