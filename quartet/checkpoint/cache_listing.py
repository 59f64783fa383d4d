"""What the folder of converted models holds, and what of it can go: for `quartet cache`."""

import fcntl
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from quartet.checkpoint.cache import FORMAT, LOCK_SUFFIX, MANIFEST, TEMPORARY, is_complete, models_folder, read_manifest


class CachedModel(msgspec.Struct, frozen=True):
    """One entry. `state`: ready, outdated (no start of this version reads it), or incomplete; `used_s`: Unix time."""

    name: str
    source: str
    size_bytes: int
    used_s: float
    state: str
    is_in_use: bool


def cached_models() -> list[CachedModel]:
    """Return the entries, the one used last first; raises ModelError for a home directory that is missing."""
    folder = models_folder()
    with suppress(FileNotFoundError):
        entries = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
        return sorted(map(_describe, entries), key=lambda one: -one.used_s)
    return []


def remove(model: CachedModel) -> bool:
    """Remove an entry and its lock file; returns False, and removes nothing, if it is in use or being made."""
    entry = models_folder() / model.name
    lock = entry.with_name(entry.name.partition(TEMPORARY)[0] + LOCK_SUFFIX)
    if _is_locked(entry / MANIFEST) or _is_locked(lock):
        return False
    shutil.rmtree(entry, ignore_errors=True)
    if entry.exists():
        return False
    if TEMPORARY not in entry.name:
        lock.unlink(missing_ok=True)
    return True


def _describe(entry: Path) -> CachedModel:
    files = [path.stat() for path in entry.iterdir()]
    used_s = max((status.st_mtime for status in files), default=entry.stat().st_mtime)
    source, state = "", "incomplete"
    with suppress(OSError, ValueError):
        manifest = read_manifest(entry)
        source = str(manifest.get("source", ""))
        used_s = (entry / MANIFEST).stat().st_mtime
        if is_complete(entry):
            state = "ready" if manifest.get("format") == FORMAT else "outdated"
    size_bytes = sum(status.st_size for status in files)
    is_in_use = _is_locked(entry / MANIFEST)
    return CachedModel(entry.name, source, size_bytes, used_s, state, is_in_use)


def _is_locked(path: Path) -> bool:
    """Return whether another process holds a lock on the file at `path`."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
