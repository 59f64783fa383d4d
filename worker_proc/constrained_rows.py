"""The rows of a step that grammars constrain: sampled after all others, when the ids before them are on the host.

    forward pass N  │ other rows N │ constrained rows N │ forward pass N+1 │ other rows N+1 │ constrained rows N+1
                                              ids of N ──►  masks of N+1, on the host    ──►

The forward pass of a step needs no mask, so it is launched as early as without grammars. The masks follow from the ids
of the step before, and are computed while the device is busy with the pass.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from quartet.wire.frames import TokenLogprobs
from worker_proc.grammar.slots import GrammarSlots, Masks, SlotGrammar
from worker_proc.slots import IntArray
from worker_proc.transfer import InFlightIds


class SampledPart(NamedTuple):
    """Some rows of a step after sampling: the in-flight ids, and log-probabilities by the row of the step."""

    ids: InFlightIds
    logprobs: list[tuple[int, TokenLogprobs]]


class ConstrainedRows:
    """The constrained rows of one step.

    Args:
        rows: their numbers among the sampled rows of the step, ascending.
        grammars: of each row; kept here, because the slots may be released before the ids arrive.
        slots: computes the masks.
        previous: those of the step before, whose ids the masks depend on.
        sample_with: samples the rows with masks [n, words]; the logits must be there until it is called.
    """

    def __init__(
        self,
        rows: IntArray,
        grammars: Sequence[SlotGrammar],
        slots: GrammarSlots,
        previous: "ConstrainedRows | None",
        sample_with: Callable[[Masks], SampledPart],
    ) -> None:
        self.rows = rows
        self._grammars = grammars
        self._slots = slots
        self._previous = previous
        self._sample_with: Callable[[Masks], SampledPart] | None = sample_with
        self._part: SampledPart | None = None
        self._ids: NDArray[np.int32] | None = None

    def sample(self) -> None:
        """Sample the rows, unless that is done; waits for the ids of the step before."""
        if self._sample_with is None:
            return
        sample_with, self._sample_with = self._sample_with, None
        if self._previous is not None:
            self._previous.wait()
            self._previous = None
        masks = self._slots.masks(self._grammars)
        try:
            self._part = sample_with(masks)
        except torch.OutOfMemoryError:
            # The other rows of the step have their ids, so these rows fail alone.
            for grammar in self._grammars:
                grammar.fail("the device has not the memory to sample with it")

    def is_done(self) -> bool:
        """Return whether `wait` would return at once. To be asked once the step before has been waited for."""
        self.sample()
        return self._part is None or self._part.ids.is_done()

    def wait(self) -> NDArray[np.int32]:
        """Block until the ids [n] are there and the grammars have advanced by them; -1 for a row with bad logits."""
        self.sample()
        if self._ids is None:
            self._ids = np.zeros(len(self.rows), dtype=np.int32) if self._part is None else self._part.ids.wait()
            for grammar, token_id in zip(self._grammars, self._ids.tolist(), strict=True):
                grammar.take(token_id)
        return self._ids

    @property
    def logprobs(self) -> list[tuple[int, TokenLogprobs]]:
        """The log-probabilities, once the rows are sampled."""
        return self._part.logprobs if self._part is not None else []

    @property
    def errors(self) -> tuple[tuple[int, str], ...]:
        """The rows whose grammars have failed, and why; their ids mean nothing."""
        pairs = zip(self.rows.tolist(), self._grammars, strict=True)
        return tuple((row, grammar.error) for row, grammar in pairs if grammar.error)
