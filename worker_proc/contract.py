"""What the executor asks of a runner: the seam between the step protocol and the model, and its simulated twin.

Nothing here imports torch, so that a simulated worker never loads it.
"""

from dataclasses import dataclass
from typing import Protocol

from quartet.wire.frames import Step, StepResult
from quartet.wire.ids import Epoch


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a runner can hold. `page_count` excludes the dummy page 0."""

    page_size: int
    page_count: int
    max_slots: int
    vocab_size: int
    context_length: int
    device: str


class Pending(Protocol):
    """A launched step whose ids may not have reached the host yet."""

    def is_done(self) -> bool:
        """Return whether `wait` would return at once."""
        ...

    def wait(self) -> StepResult:
        """Block until the device has finished the step; raises what the step raised."""
        ...


class Runner(Protocol):
    """Runs steps on one device. Used by one thread."""

    capacity: Capacity
    late_compiles: int
    """Kernels compiled or loaded since `allocate` returned: 0, if the warm-up was whole."""

    def facts(self) -> dict[str, str | int | float]:
        """Return what the ready line should say, e.g. device, dtype and kv_tokens."""
        ...

    def allocate(self, page_count: int) -> None:
        """Make the KV pool with exactly `page_count` pages and the dummy page, and warm up.

        Raises RuntimeError when another count is allocated already; the same count again is no change."""
        ...

    def reset(self) -> None:
        """Forget every slot; the KV pool stays."""
        ...

    def launch(self, step: Step, scheduler_epoch: Epoch) -> Pending:
        """Apply the step's deltas and start it. Raises StepError, OutOfMemoryError or what the model raised; then the
        slots that took part are inactive until they are released and entered again. After DeviceLostError nothing
        can be run any more."""
        ...


class StepError(Exception):
    """A step contradicts the slots or pages it names; nothing of it may be used."""


class OutOfMemoryError(Exception):
    """The device had no memory for a step."""


class DeviceLostError(Exception):
    """The device is in a state that only a new process ends; the worker must not go on."""
