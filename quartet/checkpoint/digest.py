"""The digest of a model file's content, kept so that a later start does not read the file again.

A note holds the digest of one state of one file. Its name is made of path, size, inode and times, so a file that is
changed or replaced has none. A folder that cannot be written costs time, never an error.
"""

import hashlib
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

_HEX_DIGITS = 64
_LONG_BYTES = 2 << 30
"""From here on reading takes seconds, and a line says why."""


def file_digest(file: Path, notes: Path) -> str:
    """Return the SHA-256 of `file`'s content in hex, from a note in the folder `notes` or by reading the file.

    Raises OSError if the file cannot be read."""
    status = file.stat()
    times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
    state = f"{file.absolute()}:{status.st_size}:{status.st_dev}:{status.st_ino}:{times}"
    note = notes / hashlib.sha256(os.fsencode(state)).hexdigest()[:32]
    with suppress(OSError, UnicodeDecodeError):
        known = note.read_text(encoding="ascii")
        if len(known) == _HEX_DIGITS:
            return known
    if status.st_size >= _LONG_BYTES:
        print(f"reading {file.name} ({status.st_size / 1e9:.1f} GB) to see what it is", file=sys.stderr, flush=True)
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    with suppress(OSError):
        _write(note, digest)
    return digest


def _write(note: Path, digest: str) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=note.parent, prefix=".", delete=False) as file:
        file.write(digest)
    os.replace(file.name, note)
