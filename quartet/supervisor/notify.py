"""Readiness for systemd: the messages of sd_notify(3), if NOTIFY_SOCKET names a socket.

A message that cannot be sent is dropped. Children do not inherit the variables.
"""

import os
import socket
from contextlib import suppress


class Notifier:
    """Tells the service manager READY, STOPPING, and that the loop runs (WATCHDOG)."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        period_us = os.environ.pop("WATCHDOG_USEC", "")
        is_for_us = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._period_s = int(period_us) / 2e6 if period_us.isdecimal() and is_for_us else 0.0
        self._due_s = 0.0
        self._socket: socket.socket | None = None
        if address:
            with suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
                # An @ stands for the zero byte of an abstract address.
                self._socket.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)

    def send(self, **fields: str | int) -> None:
        """Send fields, e.g. READY=1."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.send("\n".join(f"{name}={value}" for name, value in fields.items()).encode())

    def keep_alive(self, now: float) -> None:
        """Send WATCHDOG=1 twice in each period that the manager has set."""
        if self._period_s and now >= self._due_s:
            self._due_s = now + self._period_s
            self.send(WATCHDOG=1)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
