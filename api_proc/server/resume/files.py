"""The files of recorded streams: append-only, without fsync, in the private run directory.

The pages of a file belong to the kernel, so they survive the process that wrote them; on tmpfs they never meet a
disk. All records of a stream lie in one file, and a file is removed with its last stream. What cannot be written
costs the resumption of its file's streams, never their output.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from api_proc.server.resume.records import DamagedError, framed, scan

log = logging.getLogger(__name__)

FULL_BYTES = 1 << 20
"""A file that has reached this size takes no further streams."""


class JournalFile:
    """One file, and how many streams lie in it."""

    __slots__ = ("descriptor", "path", "size_bytes", "streams", "waiting")

    def __init__(self, path: Path, descriptor: int, size_bytes: int = 0) -> None:
        self.path = path
        self.descriptor = descriptor
        self.size_bytes = size_bytes
        self.streams = 0
        self.waiting: list[bytes] = []

    def write(self) -> bool:
        """Append what waits; returns whether all of it was written."""
        data = b"".join(self.waiting)
        self.waiting.clear()
        try:
            written = os.write(self.descriptor, data)
        except OSError:
            return False
        self.size_bytes += written
        return written == len(data)


class JournalFiles:
    """The files of one api process, oldest first.

    Args:
        folder: of this process and its predecessors, made when it is needed; None: nothing is written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files: list[JournalFile] = []
        self._dirty: set[JournalFile] = set()
        self._next = 0
        self.is_degraded = False
        """Whether the last write or creation of a file failed."""

    @property
    def size_bytes(self) -> int:
        """Bytes in all files."""
        return sum(file.size_bytes for file in self._files)

    def begin_recovery(self) -> int:
        """Count a recovery that has begun; returns how many have begun since one has ended."""
        tries = self._tries
        if tries is None or not tries.parent.is_dir():
            return 0
        with suppress(OSError), tries.open("ab") as counted:
            counted.write(b"x")
            return counted.tell()
        return 0

    def end_recovery(self) -> None:
        """Note that a recovery has ended well."""
        if self._tries is not None:
            with suppress(OSError):
                self._tries.unlink()

    def remove_all(self) -> None:
        """Remove the files of the predecessors unread."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        """Return the files in the folder, oldest first."""
        if self._folder is None or not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.iterdir() if path.name.isdigit())

    @property
    def _tries(self) -> Path | None:
        return None if self._folder is None else self._folder / "tries"

    def recover(self) -> Iterator[tuple[JournalFile, list[bytes]]]:
        """Take over the files of the predecessors; yields each with its records, oldest file first.

        A damaged file is removed. The caller counts the streams of each file, and releases it.
        """
        for path in self._paths():
            self._next = int(path.name) + 1
            try:
                found = scan(path.read_bytes())
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                os.ftruncate(descriptor, found.good_bytes)
            except (DamagedError, OSError) as problem:
                log.error("recorded streams cannot be resumed: %s: %s", path.name, problem)
                path.unlink(missing_ok=True)
                continue
            file = JournalFile(path, descriptor, found.good_bytes)
            self._files.append(file)
            yield file, found.bodies

    def take(self) -> JournalFile | None:
        """Return the file for one more stream; None if there is none and none can be made."""
        if self._folder is None:
            return None
        newest = self._files[-1] if self._files else None
        if newest is None or newest.size_bytes >= FULL_BYTES:
            newest = self._create(self._folder)
        if newest is not None:
            newest.streams += 1
        return newest

    def _create(self, folder: Path) -> JournalFile | None:
        path = folder / f"{self._next:08d}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            self._degrade(problem.strerror)
            return None
        self._next += 1
        self._files.append(JournalFile(path, descriptor))
        return self._files[-1]

    def append(self, file: JournalFile, body: bytes) -> None:
        """Add a record; `flush` writes it."""
        file.waiting.append(framed(body))
        self._dirty.add(file)

    def flush(self) -> list[JournalFile]:
        """Write what was added, with one call for each file; returns the files that are lost because it failed."""
        dirty, self._dirty = self._dirty, set()
        lost = [file for file in dirty if not file.write()]
        for file in lost:
            self.drop(file)
            self._degrade("a write failed")
        if dirty and not lost:
            self.is_degraded = False
        return lost

    def release(self, file: JournalFile) -> None:
        """Remove a file once no stream lies in it."""
        if not file.streams:
            self.drop(file)

    def drop(self, file: JournalFile) -> None:
        """Remove a file, and what waits to be written to it."""
        self._dirty.discard(file)
        self._files.remove(file)
        os.close(file.descriptor)
        with suppress(OSError):
            file.path.unlink()

    def _degrade(self, reason: str | None) -> None:
        if not self.is_degraded:
            log.warning("streams cannot be recorded: %s", reason)
        self.is_degraded = True
