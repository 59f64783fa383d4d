"""Lines of the log: text or JSON, one line an event, to standard error, which no process ever waits for.

A record's attribute `fields` is a map of what the line says, for JSON; the text says the same in words.
"""

import logging
import os
import stat
from datetime import UTC, datetime
from typing import Any

import msgspec

from quartet.runtime.output import STDERR

COLOURS = {
    "api": 36,
    "tokenizer": 35,
    "scheduler": 33,
    "worker": 32,
    "detok": 34,
    "weights": 92,
    "standby": 93,
    "supervisor": 37,
}
"""ANSI colour of each role's tag."""


def configure_logging(level: str, name: str, log_format: str = "text", is_coloured: bool = False) -> None:
    """Log to standard error under the process's name; a line that cannot be written at once is lost."""
    logging.raiseExceptions = False
    handler = LineHandler()
    handler.setFormatter(JsonLines(name) if log_format == "json" else TextLines(name, is_coloured))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class LineHandler(logging.Handler):
    """Writes each record by one call to standard error.

    If that is a pipe whose reader has stopped, the line is dropped and the next that can be written says how many were.
    """

    def __init__(self) -> None:
        super().__init__()
        self._dropped = 0
        if stat.S_ISFIFO(os.fstat(STDERR).st_mode):
            os.set_blocking(STDERR, False)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        line = self.format(record) + "\n"
        if self._dropped:
            notice = logging.makeLogRecord({"levelno": logging.WARNING, "levelname": "WARNING", "msg": LOST})
            notice.args = (self._dropped,)
            line = f"{self.format(notice)}\n{line}"
        try:
            os.write(STDERR, line.encode(errors="backslashreplace"))
        except OSError:
            self._dropped += 1
        else:
            self._dropped = 0


LOST = "%d lines of this log were lost: nothing has read them"


class TextLines(logging.Formatter):
    """Time, process, level and message."""

    def __init__(self, name: str, is_coloured: bool) -> None:
        tag = f"{name:<11}"
        if is_coloured:
            tag = f"\x1b[{COLOURS.get(name.rpartition('-')[0] or name, 37)}m{tag}\x1b[0m"
        super().__init__(f"%(asctime)s {tag} %(levelname).1s %(message)s")


class JsonLines(logging.Formatter):
    """One object a line: time, level, process, message, the record's fields, and the traceback of an exception."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        exception = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        fields = {**getattr(record, "fields", {}), **exception}
        return json_line(record.created, record.levelname, self._name, record.getMessage(), fields)


def json_line(time_s: float, level: str, process: str, message: str, fields: dict[str, Any]) -> str:
    """Return one line of a log in JSON, without its end; `time_s` is that of the system's clock."""
    when = datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")
    entry = {"time": when, "level": level.lower(), "process": process, "message": message, **fields}
    return msgspec.json.encode(entry).decode()
