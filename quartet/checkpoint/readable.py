"""Reads the files of a model, or refuses them in one line that names the file and what to do.

A file is looked at before it is opened: a named pipe in its place would make the open wait for ever.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from quartet.wire.errors import ModelError

MAX_TEXT_BYTES = 4 << 20


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file of a model. Raises FileNotFoundError if there is none, ModelError if it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelError(f"cannot read {path}: it is no file")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        if path.is_symlink():
            raise ModelError(f"cannot read {path}: it is a link to a file that is missing") from None
        raise
    except OSError as error:
        raise unreadable(error, path) from error


def read_text(path: Path) -> str:
    """Return the text of a file; raises as `open_file`, and ModelError for what is large or not UTF-8."""
    with open_file(path) as file:
        data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise ModelError(f"{path} is larger than {MAX_TEXT_BYTES} bytes; download the model again")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ModelError(f"{path} is not UTF-8 ({error.reason}); download the model again") from error


def check_readable(paths: Iterable[Path]) -> None:
    """Raise ModelError for the first of the files that exists and cannot be read."""
    for path in paths:
        try:
            with open_file(path) as file:
                file.read(1)
        except FileNotFoundError:
            continue


def check_folder(path: Path) -> None:
    """Raise ModelError if the folder, should it exist, cannot be read."""
    try:
        with os.scandir(path):
            pass
    except FileNotFoundError:
        return
    except OSError as error:
        raise unreadable(error, path) from error


def unreadable(error: OSError, path: Path) -> ModelError:
    """Return what a failed attempt to read something of a model is for the user."""
    hint = f"; user {os.geteuid()} needs permission to read it" if isinstance(error, PermissionError) else ""
    return ModelError(f"cannot read {error.filename or path}: {error.strerror}{hint}")
