"""The folder of converted models: one entry per content of a source file, made once, complete or absent.

An entry is built in a temporary folder beside its final place, gets a manifest with the size of each file, and is
renamed into place. A lock file keeps two converters of the same source from working at once; the second finds the
first one's result. An entry that does not match its manifest is treated as absent and built again. A launch holds a
shared lock on the manifest of its entry, so that no one removes what its worker will read again after a death.
"""

import fcntl
import glob
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from quartet.checkpoint.digest import file_digest
from quartet.runtime.home import expand_home
from quartet.wire.errors import ModelError

FORMAT = 5
"""Of the entries; one more whenever the same source is converted to something else."""
MANIFEST = "quartet.json"
LOCK_SUFFIX, TEMPORARY = ".lock", ".tmp-"


def cache_root() -> Path:
    """Return the cache's folder: QUARTET_CACHE_DIR, else quartet below XDG_CACHE_HOME, else below ~/.cache.

    Raises ModelError if that is in a home directory and there is none."""
    if override := os.environ.get("QUARTET_CACHE_DIR"):
        return expand_home(override, ModelError).absolute()
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    otherwise = "QUARTET_CACHE_DIR to a folder for converted models and kernels"
    return expand_home(parent, ModelError, otherwise).absolute() / "quartet"


def models_folder() -> Path:
    """Return the folder that holds the entries. Raises ModelError like `cache_root`."""
    return cache_root() / "models"


def entry_path(source: Path) -> Path:
    """Return the path of the converted form of the file `source`, whether it exists or not.

    The name has a digest of the file's content, so that copies of a file share an entry. Raises OSError.
    """
    return models_folder() / f"{source.stem}-{file_digest(source, cache_root() / 'digests')[:16]}-v{FORMAT}"


def is_complete(entry: Path) -> bool:
    """Return whether `entry` holds every file of its manifest at its full size."""
    try:
        sizes = read_manifest(entry)["sizes"]
        return bool(sizes) and all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_manifest(entry: Path) -> dict[str, Any]:
    """Return what `build` has noted about an entry: format, source, sizes. Raises OSError or ValueError."""
    manifest = json.loads((entry / MANIFEST).read_bytes())
    if not isinstance(manifest, dict):
        raise ValueError(f"{entry / MANIFEST} holds no object")
    return manifest


def build(entry: Path, make: Callable[[Path], None], source: Path | None = None) -> None:
    """Call `make` to build `entry` unless it is complete; blocks while another process builds it.

    `make` gets an empty folder. If it raises, nothing is left behind; `source` is noted in the manifest. Raises OSError
    if the cache cannot be written.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    with _locked(entry.with_name(f"{entry.name}{LOCK_SUFFIX}")):
        if is_complete(entry):
            return
        for left_over in entry.parent.glob(f"{glob.escape(entry.name)}{TEMPORARY}*"):
            shutil.rmtree(left_over, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{entry.name}{TEMPORARY}", dir=entry.parent))
        try:
            make(temporary)
            _write_manifest(temporary, source)
            shutil.rmtree(entry, ignore_errors=True)
            temporary.rename(entry)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep `folder`, if it is an entry, from being pruned, and note that it is used; never fails or waits."""
    with suppress(OSError):
        os.utime(folder / MANIFEST)
    try:
        file = (folder / MANIFEST).open("rb")
    except OSError:
        yield
        return
    with file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


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


def _write_manifest(folder: Path, source: Path | None) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    origin = str(source.absolute()) if source else ""
    manifest = {"format": FORMAT, "source": origin, "sizes": sizes}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
