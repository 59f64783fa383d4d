"""What the scheduler puts into one step."""

from dataclasses import dataclass, field

from quartet.wire.frames import Chunk, Enter, pack_ids
from scheduler_proc.core.request import Request
from scheduler_proc.core.step_cost import StepLoad

PageWrite = tuple[int, int, int, int]
"""(page group, slot, index, page): one entry of the worker's page tables."""
LaterWrite = tuple[Request, int, int, int]
"""(request, generation, index, page): an entry of group 0 for the next step, if the request still has its slot."""


def entering(request: Request) -> Enter:
    """Return the frame of a request that enters a slot with the pages of its first chunk; its scores begin again."""
    lease, params, scores = request.lease, request.params, request.prompt_scores
    if scores is not None:
        scores.restart()
        params = scores.params(params)
    return Enter(
        request.slot,
        request.generation,
        request.key(),
        request.prompt_tokens,
        lease.num_computed_tokens,
        pack_ids(lease.pages),
        params,
        request.choice,
        lease.checkpoint,
        tuple(pack_ids([0] * held.first + held.pages) for held in lease.windows),
    )


@dataclass(slots=True)
class PrefillBatch:
    """What one pass puts into step number `step`. `new_pages` are page table writes of slots that the worker knows;
    `pairs` counts for each token those that it attends to. `replaced` are pages that the tree's replace, free
    once the step is issued: their writes go with the step after it.
    """

    step: int = 0
    now: float = 0.0
    enter: list[Enter] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    new_pages: list[PageWrite] = field(default_factory=list)
    later_writes: list[LaterWrite] = field(default_factory=list)
    replaced: list[int] = field(default_factory=list)
    pairs: int = 0

    @property
    def tokens(self) -> int:
        """Prompt tokens that are computed."""
        return sum(chunk.length for chunk in self.chunks)

    def load(self, rows: int, row_context: int) -> StepLoad:
        """Return what a step computes of this, and of `rows` that decode with `row_context` tokens in KV."""
        return StepLoad(self.tokens, self.pairs, rows, row_context + rows)


@dataclass(slots=True)
class StepWork:
    """What a step computes: the chunks of a prefill pass, one token for each of `rows`, or both. `drafts` are by
    generation: tokens that are computed after the newest one of a row."""

    prefill: PrefillBatch
    rows: list[Request] = field(default_factory=list)
    page_writes: list[PageWrite] = field(default_factory=list)
    drafts: dict[int, list[int]] = field(default_factory=dict)
