"""Named failpoints: faults that a test injects into the processes of a launch. Off unless QUARTET_FAILPOINTS is set.

    QUARTET_FAILPOINTS="worker.mid_step=crash,nth=3; detok.send.Delta=drop,every=50; tokenizer.recv.Encode=hang,has=xyz"

Points of a role, where FRAME is the name of a frame's class:

    ROLE.start            the process has its assignment
    ROLE.phase.PHASE      it declares that phase, with "_" for spaces
    ROLE.ready            it is about to report Ready
    ROLE.recv.FRAME       before the core takes a frame
    ROLE.taken.FRAME      after it, and after what followed has been sent
    ROLE.send.FRAME       before a frame leaves
    ROLE.sent.FRAME       after it

and those of NAMES. Actions:

    crash, hang, stop     SIGKILL of itself, a busy loop, SIGSTOP of itself
    exit:CODE, raise      an exit by itself, RuntimeError
    delay:SECONDS         a sleep of the thread
    drop, duplicate       at recv and send: the frame is not passed on, or twice
    damage                at send: one byte of the frame is changed

Conditions, all of which must hold: `nth=N`, `every=N` and `times=N` count the frames that meet the other conditions;
`has=TEXT` and `ids=1.2.3` want the text, or the token ids in a row, in the frame; `once=PATH` creates the file and
holds if there was none, so it also holds once over restarts; `armed=PATH` removes the file and holds if there was one.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from quartet.wire.errors import ConfigError

T = TypeVar("T")
VARIABLE = "QUARTET_FAILPOINTS"
NAMES = {
    "api.after_journal": "api.send.Submit",
    "tokenizer.before_reply": "tokenizer.send.Encoded",
    "scheduler.after_recv": "scheduler.recv.StepResult",
    "scheduler.after_dispatch": "scheduler.sent.Step",
    "worker.mid_step": "worker.taken.Step",
    "worker.before_send": "worker.send.StepResult",
    "detok.after_decode": "detok.send.Delta",
}
"""Other names of points; api.before_write, before output is written to a client, is a point of its own."""
ROLES = ("api", "tokenizer", "scheduler", "worker", "detok", "weights", "standby")
PLACES = ("start", "phase", "ready", "recv", "taken", "send", "sent", "before_write")
AT_FRAMES = {"drop": ("recv", "send"), "duplicate": ("recv", "send"), "damage": ("send",)}
ACTIONS = ("crash", "hang", "stop", "exit", "raise", "delay", *AT_FRAMES)
COUNTS = ("nth", "every", "times")


class Failpoint:
    """One fault at one point.

    Args:
        action: one of ACTIONS, with its argument after a colon.
        conditions: by name.

    Raises ValueError for what does not exist.
    """

    def __init__(self, action: str, conditions: dict[str, str]) -> None:
        self.action, _, self._argument = action.partition(":")
        if self.action not in ACTIONS:
            raise ValueError(f"unknown action {action!r}")
        counts = {name: int(conditions.pop(name)) for name in COUNTS if name in conditions}
        self._nth, self._every, self._times = (counts.get(name, 0) for name in COUNTS)
        self._has = conditions.pop("has", "").encode()
        ids = conditions.pop("ids", "")
        self._ids = b"".join(int(one).to_bytes(4, "little") for one in ids.split(".") if one)
        self._once, self._armed = conditions.pop("once", ""), conditions.pop("armed", "")
        if conditions:
            raise ValueError(f"unknown conditions {sorted(conditions)}")
        self._seen = self._fired = 0

    def is_due(self, frame: Any) -> bool:
        """Say whether the fault is to happen to this frame (None at a point without one)."""
        if not self._is_in(frame):
            return False
        self._seen += 1
        if self._nth and self._seen != self._nth:
            return False
        if self._every and self._seen % self._every:
            return False
        if self._times and self._fired >= self._times:
            return False
        if (self._once and not _create(self._once)) or (self._armed and not _remove(self._armed)):
            return False
        self._fired += 1
        return True

    def _is_in(self, frame: Any) -> bool:
        if not self._has and not self._ids:
            return True
        body = msgspec.msgpack.encode(frame)
        return self._has in body and self._ids in body

    def happen(self) -> str:
        """Do what the action says; returns its name for the caller to act upon, if the process is still there."""
        match self.action:
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()
            case "hang":
                while True:
                    pass
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "exit":
                os._exit(int(self._argument))
            case "raise":
                raise RuntimeError("made to fail by a failpoint")
            case "delay":
                time.sleep(float(self._argument))
        return self.action


class Failpoints:
    """All faults of one process, by point.

    Args:
        text: the value of QUARTET_FAILPOINTS; faults of other roles are checked and left out.

    Raises ValueError for a text that cannot be read.
    """

    def __init__(self, text: str, role: str) -> None:
        self._points: dict[str, list[Failpoint]] = {}
        for entry in filter(None, (part.strip() for part in text.split(";"))):
            point, failpoint = _parse(entry)
            if point.startswith(f"{role}."):
                self._points.setdefault(point.removeprefix(f"{role}."), []).append(failpoint)

    def reach(self, point: str, frame: Any = None) -> str:
        """Pass a point of this role; returns the action that happened, "" if none did."""
        for failpoint in self._points.get(point, ()):
            if failpoint.is_due(frame):
                return failpoint.happen()
        return ""

    def before(self, point: str, call: Callable[[T], None]) -> Callable[[T], None]:
        """Return `call` behind a point, which is given the argument."""

        def reach_and_call(argument: T) -> None:
            self.reach(point, argument)
            call(argument)

        return reach_and_call


def _parse(entry: str) -> tuple[str, Failpoint]:
    point, _, rest = entry.partition("=")
    point = NAMES.get(point, point)
    role, *where = point.split(".")
    if role not in ROLES or not where or where[0] not in PLACES:
        raise ValueError(f"{entry!r}: there is no such point")
    action, *conditions = rest.split(",")
    try:
        failpoint = Failpoint(action, dict(one.partition("=")[::2] for one in conditions))
    except ValueError as error:
        raise ValueError(f"{entry!r}: {error}") from None
    if where[0] not in AT_FRAMES.get(failpoint.action, where):
        raise ValueError(f"{entry!r}: {failpoint.action} is not for this point")
    return point, failpoint


def _create(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _remove(path: str) -> bool:
    try:
        Path(path).unlink()
    except FileNotFoundError:
        return False
    return True


active: Failpoints | None = None
"""Those of this process, or None; set once, before the process has started to serve."""


def activate(role: str) -> None:
    """Read the environment for a process of that role. Raises ConfigError if it cannot be read."""
    global active
    text = os.environ.get(VARIABLE)
    try:
        active = Failpoints(text, role) if text else None
    except ValueError as error:
        raise ConfigError(f"{VARIABLE}: {error}") from None
