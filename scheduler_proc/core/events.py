"""Internal events of the scheduler: what is not a frame. Together with the inbound frames they drive `handle`."""

from dataclasses import dataclass

from quartet.wire.frames import (
    Abort,
    GrammarCompiled,
    LiveRequests,
    Query,
    StepFailed,
    StepResult,
    Stopped,
    Submit,
    Written,
)
from quartet.wire.ids import Epoch


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: a deadline may be due."""


@dataclass(frozen=True, slots=True)
class WorkerUp:
    """A worker incarnation has allocated its pages and takes steps. `mixed_tokens`, `has_states` and `checkpoints`: see
    WorkerHello; `windows` are window and page count of the page groups from 1 on."""

    epoch: Epoch
    page_count: int
    max_slots: int
    is_cpu: bool
    mixed_tokens: int = 0
    has_states: bool = False
    checkpoints: int = 0
    windows: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The worker is gone, with all KV; its successor will come up. `was_killed`: by a SIGKILL from outside."""

    was_killed: bool = True


@dataclass(frozen=True, slots=True)
class StepsLost:
    """Frames to or from the living worker are lost: it drops its slots, and WorkerUp follows when it has."""


@dataclass(frozen=True, slots=True)
class BeginDrain:
    """Take no new request; finish what was accepted."""


Event = (
    Submit
    | Abort
    | LiveRequests
    | Written
    | Query
    | Stopped
    | StepResult
    | StepFailed
    | GrammarCompiled
    | Tick
    | WorkerUp
    | WorkerLost
    | StepsLost
    | BeginDrain
)
