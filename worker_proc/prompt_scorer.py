"""Log-probabilities of prompt tokens: each row of a prefill chunk has the logits for the token after it.

The logits of a long chunk would take gigabytes, so they are made block by block. What is left of each row travels to
the host behind the rest of the step, and is read when the step's result is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quartet.wire.frames import PromptLogprobs, ScoredChunk
from worker_proc.models.decoder import Decoder
from worker_proc.sampler.logprobs import logprob_rows
from worker_proc.slots import ChunkRows, IntArray, StepRows

BLOCK_ELEMENTS = 1 << 24
"""Logits that are made at once: 64 MiB of float32."""
_NOTHING = PromptLogprobs(b"", b"", b"", b"")


@dataclass(frozen=True, slots=True)
class _Block:
    """Of R tokens `own` [R] and `ranks` [R], and of K alternatives to each `best_ids` and `best` [R, K]; on the host,
    once the device has done what was queued before."""

    own: Tensor
    ranks: Tensor
    best_ids: Tensor
    best: Tensor


@dataclass(frozen=True, slots=True)
class InFlightScores:
    """What a step computes for the prompt tokens after one chunk's."""

    generation: int
    start: int
    blocks: Sequence[_Block]

    def frame(self) -> ScoredChunk:
        """Return what the step's result says of the chunk. The step must be over."""
        return ScoredChunk(self.generation, self.start, self._columns() if self.blocks else _NOTHING)

    def _columns(self) -> PromptLogprobs:
        own, ranks, ids, best = (
            np.concatenate([getattr(block, name).numpy() for block in self.blocks])
            for name in ("own", "ranks", "best_ids", "best")
        )
        # Among equals the lower id goes first, as for sampled tokens.
        order = np.lexsort((ids, -best), axis=1)
        ids, best = np.take_along_axis(ids, order, 1), np.take_along_axis(best, order, 1)
        columns = (own.astype("<f4"), ranks.astype("<i4"), ids.astype("<i4"), best.astype("<f4"))
        return PromptLogprobs(*(column.tobytes() for column in columns))


class PromptScorer:
    """Scores the chunks of a step that want it.

    Args:
        decoder: makes logits of hidden states.
        vocab_size: entries of a row of logits.
        progress: called for each block, so that a long chunk is not taken for a hang.
    """

    def __init__(self, decoder: Decoder, vocab_size: int, progress: Callable[[], None]) -> None:
        self._decoder = decoder
        self._vocab_size = vocab_size
        self._progress = progress

    def score(self, rows: StepRows, generations: IntArray, scores: list[InFlightScores], hidden: Tensor) -> None:
        """Queue the scores of the chunks of a step with hidden states [T, hidden], and add them to `scores`.

        `generations` are by slot."""
        first = 0
        for chunk in rows.chunks:
            if chunk.alternatives >= 0:
                blocks = self._blocks(chunk, hidden[first : first + len(chunk.targets)])
                scores.append(InFlightScores(int(generations[chunk.slot]), chunk.start, blocks))
            first += len(chunk.ids)

    def _blocks(self, chunk: ChunkRows, hidden: Tensor) -> list[_Block]:
        height = max(1, BLOCK_ELEMENTS // self._vocab_size)
        targets = _copied(torch.from_numpy(chunk.targets), hidden.device)
        blocks = []
        for first in range(0, len(targets), height):
            blocks.append(self._block(chunk, hidden[first : first + height], targets[first : first + height]))
            self._progress()
        return blocks

    def _block(self, chunk: ChunkRows, hidden: Tensor, targets: Tensor) -> _Block:
        logits = self._decoder.logits(hidden).to(torch.float32)
        rows = logprob_rows(logits, targets, chunk.alternatives)
        own_logits = logits.gather(1, targets[:, None])
        ranks = (logits > own_logits).sum(dim=1, dtype=torch.int32) + 1
        cpu = torch.device("cpu")
        return _Block(*(_copied(one, cpu) for one in (rows.own, ranks, rows.best_ids, rows.best)))


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on `device`; between devices the copy is only queued, through pinned memory."""
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
