"""The private run directory of one launch: 0700, locked while the launch lives, removed when it ends.

The lock is on the directory itself, so no file can be missing, and systemd-tmpfiles leaves it alone. It is made and
locked under another name and renamed then: what bears the name of a run directory and is not locked is that of a dead
launch, at any instant.

Removal must work even after SIGKILL, when the supervisor runs no code: a janitor process, forked at the start, waits
for the end of file on a pipe that only the supervisor holds.
"""

import fcntl
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from quartet.runtime.lifetime import STOP_SIGNALS
from quartet.runtime.output import STDERR, STDIN, STDOUT, write_line
from quartet.wire.errors import ConfigError

MAX_SOCKET_PATH_BYTES = 107
LONGEST_NAME = "tokenizer-63.sock"
CHECK_S = 1.0
MAKING_S = 60.0
"""How long the start of a launch may take from its directory's creation to its lock."""


class RunDirectory:
    """Made by `create`; `remove` is idempotent."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd
        self._looked_s = 0.0

    @classmethod
    def create(cls, base: str, boot_id: int, report: Callable[[str], None] = write_line) -> "RunDirectory":
        """Make the directory of this launch and remove those of launches that are dead.

        Args:
            base: where; empty: in RUNTIME_DIRECTORY (of a systemd unit) or XDG_RUNTIME_DIR, else with the temporary
                files. `report` gets a line about each of these that cannot be used.

        Raises ConfigError if `base`, or each of the others, cannot be used.
        """
        name = f"quartet-{os.getuid()}-{boot_id:016x}"
        refusals = []
        for origin, parent in [("--run-dir", base)] if base else _default_parents():
            try:
                made = cls(Path(parent, name), _make(Path(parent), name))
            except _UnusableError as error:
                refusals.append(f"{origin} {parent} {error}")
            else:
                for refusal in refusals:
                    report(f"{refusal}; the run directory is {made.path}")
                return made
        raise ConfigError("; ".join(refusals) + ("" if base else "; choose a folder with --run-dir"))

    def keep(self, now: float, report: Callable[[str], None]) -> str | None:
        """Make the directory again if it was deleted, looking once a second; the processes bind their sockets again.

        Returns why that is not possible, None if all is well."""
        if now - self._looked_s < CHECK_S:
            return None
        self._looked_s = now
        if self._is_there():
            return None
        try:
            lock_fd = _make(self.path.parent, self.path.name)
        except _UnusableError as error:
            return f"the run directory {self.path} was deleted: {self.path.parent} {error}"
        os.close(self._lock_fd)
        self._lock_fd = lock_fd
        report(f"the run directory {self.path} was deleted and is made again")
        return None

    def _is_there(self) -> bool:
        try:
            return self.path.stat().st_ino == os.fstat(self._lock_fd).st_ino
        except OSError:
            return False

    def start_janitor(self) -> None:
        """Fork the process that removes the directory when this one ends, however it ends.

        Call while no other thread can hold a lock that the fork would copy.
        """
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        if os.fork():
            os.close(read_end)
            self._keep_open = write_end
            return
        try:
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            os.read(_keep_only(read_end), 1)
            shutil.rmtree(self.path, ignore_errors=True)
        finally:
            os._exit(0)

    def remove(self) -> None:
        """Remove the directory and everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def _keep_only(descriptor: int) -> int:
    """Close every other descriptor; returns the new number of this one.

    The lock must go with the launch, and the reader of a pipe or terminal must not wait for the janitor."""
    kept = os.dup2(descriptor, 3)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > kept:
            with suppress(OSError):
                os.close(number)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (STDIN, STDOUT, STDERR):
        os.dup2(null, number)
    return kept


class _UnusableError(Exception):
    """A folder cannot hold run directories."""


def _default_parents() -> list[tuple[str, str]]:
    """Return where run directories may be, each with the name of its origin, the best first."""
    parents = []
    for variable in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        # A unit with several runtime directories has a list.
        if given := os.environ.get(variable, "").partition(":")[0]:
            parents.append((variable, given))
    with suppress(OSError):
        parents.append(("the folder of temporary files", tempfile.gettempdir()))
    return [*parents, ("the folder of temporary files", "/tmp")]


def _make(parent: Path, name: str) -> int:
    """Make the run directory below `parent`; returns the descriptor of its lock. Raises _UnusableError."""
    path, made = parent / name, parent / f".{name}"
    if len(os.fsencode(path)) + 1 + len(LONGEST_NAME) > MAX_SOCKET_PATH_BYTES:
        raise _UnusableError("is too long a path for sockets: choose a shorter one")
    try:
        _remove_dead(parent, name.rpartition("-")[0] + "-")
        made.mkdir(mode=0o700)
    except OSError as error:
        raise _UnusableError(f"cannot be used: {error.strerror}") from error
    try:
        lock_fd = _lock(made)
        made.rename(path)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(path / LONGEST_NAME))
        (path / LONGEST_NAME).unlink()
    except OSError as error:
        for one in (made, path):
            shutil.rmtree(one, ignore_errors=True)
        raise _UnusableError(f"cannot be used: {error.strerror}") from error
    return lock_fd


def _lock(path: Path) -> int:
    """Lock a directory; returns the descriptor that holds the lock. Raises OSError if another process holds it."""
    lock_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock_fd)
        raise
    return lock_fd


def _remove_dead(parent: Path, prefix: str) -> None:
    """Remove the run directories that no launch holds, and what a start that was killed has left."""
    for path in [*parent.glob(f"{prefix}*"), *parent.glob(f".{prefix}*")]:
        with suppress(OSError):
            if path.name.startswith(".") and time.time() - path.lstat().st_mtime < MAKING_S:
                continue
            lock_fd = _lock(path)
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock_fd)
