"""The interface between the executor and a runner: the model's, or the simulated one.

Nothing here imports torch, so that a simulated worker never loads it.
"""

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quartet.sizing.window_pools import WindowPool
from quartet.wire.frames import Step, StepResult
from quartet.wire.ids import Epoch

if TYPE_CHECKING:
    from worker_proc.grammar.compiler import GrammarCompiler


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits of a runner. `page_count`, of page group 0, excludes the dummy page 0; `windows` are the pools of the
    other groups. `mixed_tokens`, `has_states` and `checkpoints`: see WorkerHello."""

    page_size: int
    page_count: int
    max_slots: int
    vocab_size: int
    context_length: int
    device: str
    mixed_tokens: int = 0
    has_states: bool = False
    checkpoints: int = 0
    windows: tuple[WindowPool, ...] = ()

    @property
    def page_counts(self) -> tuple[int, ...]:
        """The pages of each group, dummy pages excluded."""
        return self.page_count, *(one.pages(self.page_count) for one in self.windows)

    def warm_up(self, page_count: int) -> "Capacity":
        """Return that of a runner with so many pages in each group, without checkpoints."""
        windows = tuple(replace(one, least=page_count) for one in self.windows)
        return replace(self, page_count=page_count, windows=windows, checkpoints=0)

    def facts(self) -> dict[str, int]:
        """Return the tokens of each pool, for the ready line."""
        names = "kv_tokens", *(f"kv_tokens_window_{one.window}" for one in self.windows)
        return {name: pages * self.page_size for name, pages in zip(names, self.page_counts, strict=True)}


@dataclass(frozen=True, slots=True)
class Place:
    """Which of `size` ranks of the worker a process is, and the file by which those of one epoch find each other."""

    rank: int
    size: int
    meeting: Path


class InFlightStep(Protocol):
    """A launched step whose ids may not have reached the host yet."""

    def is_done(self) -> bool:
        """Return whether `wait` would return at once."""
        ...

    def wait(self) -> StepResult:
        """Block until the device has finished the step; raises the step's error."""
        ...


class Start(Enum):
    """What a worker does before it is ready.

    FIRST: everything, so that no step waits for a kernel or a capture. RECOVERY, of a worker that died: clients wait,
    so kernels are loaded and graphs captured when steps need them, the others when there is nothing to do. STANDBY, of
    a worker that waits for the death of another: its kernels, before; then as RECOVERY."""

    FIRST = 1
    RECOVERY = 2
    STANDBY = 3


class Runner(Protocol):
    """Runs steps on one device. Used by one thread."""

    @property
    def capacity(self) -> Capacity:
        """Its limits; the page count is the one it can hold, until `allocate` fixes it."""
        ...

    @property
    def grammars(self) -> "GrammarCompiler":
        """What compiles the grammars of requests."""
        ...

    @property
    def late_compiles(self) -> int:
        """Kernels compiled or loaded after `load_kernels`: 0 if the warm-up is complete."""
        ...

    @property
    def is_prepared(self) -> bool:
        """Whether nothing is left of what Start leaves for later."""
        ...

    def facts(self) -> dict[str, str | int | float]:
        """Return the facts of the ready line, e.g. device, dtype and kv_tokens."""
        ...

    def load_kernels(self) -> None:
        """Load what steps run, without the KV pool and its memory."""
        ...

    def count_pages(self) -> None:
        """Set the page count of `capacity` by the memory that is free, once that of a dead worker is."""
        ...

    def allocate(self, page_count: int) -> None:
        """Make the KV pools, of group 0 with exactly `page_count` pages and the dummy page, and warm up as far as Start
        says.

        Raises RuntimeError if another count is allocated already; the same count again changes nothing."""
        ...

    def prepare_next(self) -> bool:
        """Do a part of what Start has left for later, while no step is in flight; False if nothing is left."""
        ...

    def reset(self) -> None:
        """Forget every slot; the KV pool stays."""
        ...

    def launch(self, step: Step, scheduler_epoch: Epoch) -> InFlightStep:
        """Apply the step's deltas and start it.

        Raises StepError, OutOfMemoryError or the model's error; then the slots of the step are inactive until they are
        released and entered again. After DeviceLostError no step can run any more."""
        ...


class StepError(Exception):
    """A step contradicts the state of the slots or pages it names; none of it may be used."""


class OutOfMemoryError(Exception):
    """The device does not have the memory for a step."""


class DeviceLostError(Exception):
    """The device is in an error state that only a new process clears; the worker must exit."""
