"""What the simulated worker says of prompt tokens: numbers that a token's id, its position and the id before decide."""

from collections.abc import Sequence

import numpy as np

from quartet.wire.frames import PromptLogprobs, ScoredChunk
from worker_proc.slots import ChunkRows, IntArray


def simulated_scores(chunks: Sequence[ChunkRows], generations: IntArray, vocab_size: int) -> list[ScoredChunk]:
    """Return the scores of the chunks that want them; `generations` are by slot."""
    return [
        ScoredChunk(int(generations[chunk.slot]), chunk.start, _columns(chunk, vocab_size))
        for chunk in chunks
        if chunk.alternatives >= 0
    ]


def _columns(chunk: ChunkRows, vocab_size: int) -> PromptLogprobs:
    ids, before = chunk.targets, chunk.ids[: len(chunk.targets)]
    positions = chunk.start + 1 + np.arange(len(ids))
    own = -(1 + (31 * before + 7 * ids + positions) % 64) / 8
    ranks = 1 + (ids + positions) % 7
    others = np.arange(chunk.alternatives)
    top_ids = (ids[:, None] + 1 + others) % vocab_size
    top = np.broadcast_to(-0.5 - others, top_ids.shape)
    columns = (own.astype("<f4"), ranks.astype("<i4"), top_ids.astype("<i4"), top.astype("<f4"))
    return PromptLogprobs(*(column.tobytes() for column in columns))
