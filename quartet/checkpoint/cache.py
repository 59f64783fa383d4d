"""The folder of converted models: one entry per source file, made once, complete or absent.

An entry is built in a temporary folder beside its final place, gets a manifest with the size of each file, and is
renamed into place. A lock file keeps two converters of the same source from working at once; the second finds the
first one's result. An entry that does not match its manifest is treated as absent and built again.
"""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quartet.runtime.home import expand_home
from quartet.wire.errors import ModelError

_FORMAT = 3
_MANIFEST = "quartet.json"
_SAMPLE_BYTES = 1 << 20


def cache_root() -> Path:
    """Return the cache's folder: QUARTET_CACHE_DIR, else quartet below XDG_CACHE_HOME, else below ~/.cache.

    Raises ModelError if that is in a home directory and there is none."""
    if override := os.environ.get("QUARTET_CACHE_DIR"):
        return expand_home(override, ModelError).absolute()
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    otherwise = "QUARTET_CACHE_DIR to a folder for converted models and kernels"
    return expand_home(parent, ModelError, otherwise).absolute() / "quartet"


def entry_path(source: Path) -> Path:
    """Return the path of the converted form of the file `source`, whether it exists or not.

    The key is made of size, modification time and both ends of the file: reading all of it would cost a large model
    seconds at every start.
    """
    status = source.stat()
    digest = hashlib.sha256(f"{_FORMAT}:{status.st_size}:{status.st_mtime_ns}".encode())
    with source.open("rb") as file:
        digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(0, status.st_size - _SAMPLE_BYTES))
        digest.update(file.read(_SAMPLE_BYTES))
    return cache_root() / "models" / f"{source.stem}-{digest.hexdigest()[:16]}"


def is_complete(entry: Path) -> bool:
    """Return whether `entry` holds every file of its manifest at its full size."""
    try:
        sizes = json.loads((entry / _MANIFEST).read_bytes())["sizes"]
        return bool(sizes) and all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def build(entry: Path, make: Callable[[Path], None]) -> None:
    """Call `make` to build `entry` unless it is complete; blocks while another process builds it.

    `make` gets an empty folder. If it raises, nothing is left behind. Raises OSError if the cache cannot be written.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    with _locked(entry.with_name(f"{entry.name}.lock")):
        if is_complete(entry):
            return
        for left_over in entry.parent.glob(f"{glob.escape(entry.name)}.tmp-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{entry.name}.tmp-", dir=entry.parent))
        try:
            make(temporary)
            _write_manifest(temporary)
            shutil.rmtree(entry, ignore_errors=True)
            temporary.rename(entry)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel releases it if the process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process is converting this model; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_manifest(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps({"format": _FORMAT, "sizes": sizes}), encoding="utf-8")
