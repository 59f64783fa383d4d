"""The runner of rank 0: whatever changes its state, the other ranks are told to do, too, before it is done here.

    scheduler ── Step ──► rank 0 ── Step | RunnerCall ──► rank 1, 2, ...
                            │                               │
                            └── the same calls of a runner, in the same order

So all ranks run the same steps with tensors of the same shapes, and none of their collective operations is without its
counterpart.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from quartet.wire.frames import RunnerCall, RunnerMethod, SamplingParams, Step
from quartet.wire.ids import Epoch, Role, process_name
from worker_proc.contract import Capacity, DeviceLostError, InFlightStep, Runner, StepError

if TYPE_CHECKING:
    from worker_proc.grammar.compiler import GrammarCompiler

Send = Callable[[str, msgspec.Struct], None]


def leading(own: Runner, ranks: int, send: Send) -> Runner:
    """Return the runner of rank 0 of so many; `send` queues a frame for the process of that name."""
    return LeadingRunner(own, [process_name(Role.WORKER, rank) for rank in range(1, ranks)], send)


class LeadingRunner:
    """See Runner.

    Args:
        own: this rank's.
        others: the processes of the other ranks.
        send: queues a frame for one of them.
    """

    def __init__(self, own: Runner, others: Sequence[str], send: Send) -> None:
        self._own, self._others, self._send = own, others, send

    @property
    def capacity(self) -> Capacity:
        """See Runner; the ranks have agreed on it."""
        return self._own.capacity

    @property
    def grammars(self) -> "GrammarCompiler":
        """See Runner."""
        return self._own.grammars

    @property
    def late_compiles(self) -> int:
        """See Runner; of this rank."""
        return self._own.late_compiles

    @property
    def is_prepared(self) -> bool:
        """See Runner."""
        return self._own.is_prepared

    def facts(self) -> dict[str, str | int | float]:
        """See Runner."""
        return self._own.facts()

    def load_kernels(self) -> None:
        """See Runner; for a standby, which has one rank."""
        self._own.load_kernels()

    def count_pages(self) -> None:
        """See Runner; for a standby, which has one rank."""
        self._own.count_pages()

    def allocate(self, page_count: int) -> None:
        """See Runner."""
        self._tell(RunnerCall(RunnerMethod.ALLOCATE, page_count))
        self._own.allocate(page_count)

    def prepare_next(self) -> bool:
        """See Runner."""
        self._tell(RunnerCall(RunnerMethod.PREPARE_NEXT))
        return self._own.prepare_next()

    def reset(self) -> None:
        """See Runner."""
        self._tell(RunnerCall(RunnerMethod.RESET))
        self._own.reset()

    def launch(self, step: Step, scheduler_epoch: Epoch) -> InFlightStep:
        """See Runner. Raises StepError alone, which every rank does: after any other error the ranks are apart, and
        DeviceLostError ends them."""
        self._tell(_for_others(step))
        try:
            return self._own.launch(step, scheduler_epoch)
        except (StepError, DeviceLostError):
            raise
        except Exception as error:
            raise DeviceLostError(f"{type(error).__name__} in a step of several ranks: {error}") from error

    def _tell(self, frame: msgspec.Struct) -> None:
        for other in self._others:
            self._send(other, frame)


def _for_others(step: Step) -> Step:
    """Return the step with sampling parameters of no work, since rank 0 alone samples; what decides the shapes of the
    step stays."""
    if not step.enter:
        return step
    enter = [
        msgspec.structs.replace(one, params=SamplingParams(temperature=0.0, prompt_logprobs=one.params.prompt_logprobs))
        for one in step.enter
    ]
    return msgspec.structs.replace(step, enter=enter)
