"""The error that ends a child process, as a frame for its supervisor."""

import errno
import traceback

from quartet.wire.errors import ModelError, StartError, one_line
from quartet.wire.frames import Fatal

EXIT_BUG = 70
MAX_TRACEBACK = 1 << 16
"""Characters of a traceback that are reported: its end."""
LASTING = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
"""Errors of a file at the start that another start would meet, too."""


def fatal_of(error: BaseException) -> Fatal:
    """Return what the supervisor is told of an error that ends this process."""
    if isinstance(error, StartError):
        return Fatal(str(error), error.exit_code)
    if isinstance(error, OSError) and error.errno in LASTING and error.filename:
        return Fatal(one_line(f"{error.filename}: {error.strerror}"), ModelError.exit_code)
    words = one_line("".join(traceback.format_exception_only(error)).strip())
    return Fatal(words, EXIT_BUG, False, "".join(traceback.format_exception(error))[-MAX_TRACEBACK:])


def first_of(error: BaseException) -> BaseException:
    """Return the first exception of a group, which may be a group of groups, or the one that it is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
