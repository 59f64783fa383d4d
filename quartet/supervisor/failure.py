"""Why a launch ends with an error, and which end of a process is such an error.

A process that has been ready once has worked, so another start may help: it is started again, within limits. What a
process meets before it has ever been ready, its successor would meet, too: an exception, or a signal that it has caused
itself. Signals that come from outside, and other exit codes, say nothing about the next start.
"""

import os
import signal
import tempfile
from pathlib import Path
from typing import NamedTuple

from quartet.runtime.failure_box import show_failure
from quartet.runtime.output import write_line
from quartet.supervisor.error_output import cause_of_end
from quartet.supervisor.slot import ProcessSlot
from quartet.supervisor.spawn import Child

EXIT_GAVE_UP = 70
EXCEPTION_CODES = (1, EXIT_GAVE_UP)
"""Exit codes of a child that has raised, while it is imported and later."""
OWN_SIGNALS = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP})


class Failure(NamedTuple):
    """Why a launch ends: its exit code, one line for the user, and the traceback behind it, if there is one."""

    exit_code: int
    cause: str
    traceback: str = ""

    def show(self, prefix: str, folder: Path, is_debugging: bool) -> None:
        """Show the cause on standard error, and the traceback, or the name of a file in `folder` that has it."""
        note = ""
        if self.traceback and is_debugging:
            write_line(self.traceback.rstrip())
        elif self.traceback:
            log = _write_log(folder, self.traceback)
            note = f"the traceback is in {log}" if log else "--log-level debug shows the traceback"
        show_failure(self.cause, note, prefix)


def failure_of(slot: ProcessSlot, child: Child, code: int, now: float) -> Failure | None:
    """Return why the end of the child with that exit code (negative for a signal) ends the launch, or None."""
    name, fatal = slot.spec.name, child.fatal
    if fatal is not None and (fatal.is_lasting or not slot.was_ready):
        return Failure(fatal.exit_code, f"{name}: {fatal.message}", fatal.traceback)
    if slot.was_ready or not (code in EXCEPTION_CODES or -code in OWN_SIGNALS):
        return None
    cause = cause_of_end(code, child.errors.last_words(now))
    return Failure(EXIT_GAVE_UP, f"{name} ended by {cause} before it was ready", child.errors.held)


def _write_log(folder: Path, text: str) -> str:
    """Write a file of a name that is free; returns its path, empty if the folder cannot be written."""
    try:
        descriptor, path = tempfile.mkstemp(".log", "quartet-failure-", folder)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError:
        return ""
    return path
