"""Paths as users write them: a leading ~ stands for a home directory, which not every user of a machine has."""

import os
from pathlib import Path

from quartet.wire.errors import ConfigError, QuartetError


def expand_home(path: str, failure: type[QuartetError] = ConfigError, otherwise: str = "give the full path") -> Path:
    """Return `path` with the home directory for a leading ~; that of an unknown user stays, as in a shell.

    Raises `failure` if the user has no home directory: one line that names HOME, and `otherwise` as the other remedy.
    """
    given = Path(path)
    try:
        return given.expanduser()
    except RuntimeError:
        if given.parts[0] != "~":
            return given
        raise failure(
            f"{path} is a path in a home directory, and user {os.getuid()} has none: set HOME, or {otherwise}"
        ) from None
