"""Steps with a few prompt chunks, and decode rows beside them, as CUDA graphs over buffers at fixed addresses: see
decode_graph_runner.

A short step is over on the device long before the host has launched its kernels one by one. There is one graph for each
number of tokens in `TOKEN_SIZES` up to a limit, and for each number of decode rows in `row_sizes` that it can hold.
Tokens stand close together: the chunks, then the decode rows, which begin where the device finds the chunks' end, then
padding. A decode row is computed by the kernels that a decode step uses.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker_proc.batch import ChunkBatch, DecodeBatch, ForwardBatch, GroupPages
from worker_proc.contract import Capacity
from worker_proc.device_step import LaunchedStep
from worker_proc.fused_sampler import FusedSampler
from worker_proc.graphs import SharedBuffers, StepGraphs, no_progress, specialization_sizes
from worker_proc.models.decoder import Decoder
from worker_proc.ops.decode_scratch import DecodeScratch
from worker_proc.pinned_rings import PinnedRings
from worker_proc.slots import IntArray, StepRows

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE as GraphPool

# Where linears compute the most tokens a second (docs/log.md): their time rises in steps, as more programs are needed
# than there are multiprocessors, and padding is paid for.
TOKEN_SIZES = (
    *(16, 32, 64, 128, 192, 256, 320, 384, 512, 528, 576, 640, 768, 896),
    *(1024, 1056, 1152, 1280, 1344, 1536, 1792, 2048, 2560, 3072, 4096),
)
MAX_CHUNKS = 16
_MAX_WRITES = 2048
_NOTHING = np.empty(0, dtype=np.int64)
# A step with decode rows has as many tokens at least.
_MIN_MIXED_TOKENS = 128
# With the chunks, the first fill a tile of 128 rows of logits. Beyond the last, a step is long enough to be launched
# kernel by kernel.
_MIXED_ROWS = (128 - MAX_CHUNKS, 256)


def row_sizes(max_rows: int) -> list[int]:
    """Return the numbers of decode rows to capture, ascending, from 0 on. Padding rows cost little: no attention, and
    a row of logits."""
    limit = min(max_rows, _MIXED_ROWS[-1])
    return [0, *(size for size in _MIXED_ROWS if size < limit), limit]


def step_sizes(max_tokens: int, max_rows: int) -> list[tuple[int, int]]:
    """Return the (tokens, decode rows) to capture, ascending."""
    tokens, rows = [size for size in TOKEN_SIZES if size <= max_tokens], row_sizes(max_rows)
    sizes = [(size, 0) for size in tokens]
    for fewer, most in pairwise(rows):
        # A step has more rows than the smaller graph takes, and a token of a chunk.
        sizes += [(size, most) for size in tokens if size > max(fewer, _MIN_MIXED_TOKENS - 1)]
    return sorted(sizes)


class PrefillGraphRunner:
    """Runs steps of at most `max_tokens` tokens in at most MAX_CHUNKS chunks and `max_rows` rows; see GraphRunner.

    Args:
        decoder, fused_sampler: what a step runs.
        scratch: of decode attention, for `max_rows` rows at least.
        buffers: what a step reads and changes.
        capacity: sizes of the pool and the model.
        dtype: of the logits.
        max_tokens: largest step.
        max_rows: largest number of decode rows.
    """

    max_page_writes = _MAX_WRITES

    def __init__(
        self,
        decoder: Decoder,
        scratch: DecodeScratch,
        fused_sampler: FusedSampler,
        buffers: SharedBuffers,
        capacity: Capacity,
        dtype: torch.dtype,
        max_tokens: int,
        max_rows: int,
    ) -> None:
        from kernels import prefill_inputs, step_descriptor

        self._make_inputs, self._format = prefill_inputs.prefill_inputs, step_descriptor
        self._decoder, self._fused_sampler, self._buffers, self._capacity = decoder, fused_sampler, buffers, capacity
        self._scratch, self._sizes = scratch, step_sizes(max_tokens, max_rows)
        self._row_sizes = row_sizes(max_rows)
        self._max_tokens, self._max_rows = self._sizes[-1][0], self._row_sizes[-1]
        self._layout = step_descriptor.StepLayout(self._max_rows, _MAX_WRITES, MAX_CHUNKS, self._max_tokens)
        groups, _, max_pages = buffers.page_tables.shape
        device, seqs = buffers.page_tables.device, self._layout.seqs
        self._rings = PinnedRings(self._layout.width, seqs, device, buffers.poller)
        self._cu_q = torch.zeros(MAX_CHUNKS + 1, dtype=torch.int32, device=device)
        self._slots, self._contexts, self._given = torch.zeros((3, seqs), dtype=torch.int32, device=device)
        self._sample_positions = torch.zeros(seqs, dtype=torch.int32, device=device)
        self._sample_rows = torch.zeros(seqs, dtype=torch.int64, device=device)
        self._ids, self._positions = torch.zeros((2, self._max_tokens), dtype=torch.int64, device=device)
        # By page group.
        self._mappings = torch.zeros((groups, self._max_tokens), dtype=torch.int64, device=device)
        self._page_rows = torch.zeros((groups, seqs, max_pages), dtype=torch.int32, device=device)
        self._logits = torch.zeros((seqs, capacity.vocab_size), dtype=dtype, device=device)
        self._graphs = StepGraphs(self._sizes)

    def capture(self, pool: "GraphPool", progress: Callable[[], None]) -> None:
        """See GraphRunner."""
        self._graphs.capture(self._run, pool, progress)
        self._rings.restart()

    def capture_at_need(self, pool: "GraphPool", has_kernels: bool) -> None:
        """See GraphRunner."""
        self._graphs.capture_at_need(pool, has_kernels)

    @property
    def is_prepared(self) -> bool:
        """See GraphRunner."""
        return self._graphs.is_prepared

    def prepare_next(self) -> bool:
        """See GraphRunner."""
        return self._graphs.prepare_next(self._run, self._rings.begin_empty)

    def run_once(self) -> None:
        """See GraphRunner."""
        for rows in sorted({rows for _, rows in self._sizes}):
            for tokens in specialization_sizes([tokens for tokens, own in self._sizes if own == rows]):
                self._run((tokens, rows))

    def recover(self) -> None:
        """See GraphRunner."""
        self._rings.resync()

    def can_run(self, rows: StepRows) -> bool:
        """See GraphRunner."""
        count = len(rows.decode)
        if not rows.chunks or len(rows.chunks) > MAX_CHUNKS or count > self._max_rows:
            return False
        if any(chunk.alternatives >= 0 for chunk in rows.chunks):
            # A graph makes the logits of sampled rows alone.
            return False
        if self._size_for(sum(len(chunk.ids) for chunk in rows.chunks) + count, count) is None:
            return False
        return not count or self._scratch.has_room(rows.contexts, self._max_rows)

    def launch(self, rows: StepRows, page_writes: IntArray) -> LaunchedStep:
        """See GraphRunner."""
        num_tokens, positions = self._fill(self._rings.begin(), rows, page_writes)
        count = len(rows.decode)
        size = self._size_for(num_tokens, count)
        assert size is not None
        # Padding rows get no attention: their contents are arbitrary and are never used.
        self._graphs.launch(self._run, size, (num_tokens, size[1]))
        sampled = np.flatnonzero(positions)
        ids = self._rings.end(sampled, size)
        return LaunchedStep(ids, self._logits, sampled, positions[sampled].astype(np.int64))

    def _size_for(self, num_tokens: int, count: int) -> tuple[int, int] | None:
        """Return the smallest graph for so many tokens, `count` of them decode rows; None if there is none."""
        rows = next(rows for rows in self._row_sizes if rows >= count)
        return next((size for size in self._sizes if size[0] >= num_tokens and size[1] == rows), None)

    def _fill(
        self, descriptor: NDArray[np.int32], rows: StepRows, page_writes: IntArray
    ) -> tuple[int, NDArray[np.int32]]:
        """Write the step to its descriptor; return its number of tokens and the sample positions of its sequences."""
        layout, form, count = self._layout, self._format, len(rows.decode)
        fields = np.zeros((5, MAX_CHUNKS), dtype=np.int32)
        slots, contexts, ends, sample_rows, positions = fields
        ids = descriptor[layout.ids_at : layout.writes_at]
        end = 0
        for at, chunk in enumerate(rows.chunks):
            start, length = end, len(chunk.ids)
            end += length
            ids[start:end] = chunk.ids
            slots[at], contexts[at], ends[at] = chunk.slot, chunk.start + length, end
            if chunk.is_last:
                sample_rows[at], positions[at] = end - 1, chunk.start + length
        ends[len(rows.chunks) :] = end
        layout.set_counts(descriptor, count, len(page_writes))
        sections = form.SLOTS, form.CONTEXTS, form.ENDS, form.SAMPLE_ROWS, form.SAMPLE_POSITIONS
        for name, values in zip(sections, fields, strict=True):
            layout.section(descriptor, name)[:MAX_CHUNKS] = values
        layout.set_rows(descriptor, rows.decode, rows.contexts, rows.given)
        descriptor[layout.writes_at :][: page_writes.size] = page_writes.reshape(-1)
        return end + count, np.concatenate((positions, rows.contexts))

    def _run(self, size: tuple[int, int]) -> None:
        tokens, rows = size
        rings, tables, layout = self._rings, self._buffers.page_tables, self._layout
        ids, positions = self._ids[:tokens], self._positions[:tokens]
        cu_q, used = self._cu_q, MAX_CHUNKS + rows
        slots, contexts, given = self._slots[:used], self._contexts[:used], self._given[:used]
        mappings, page_rows = self._mappings[:, :tokens], self._page_rows[:, :used]
        sample_rows, sample_positions = self._sample_rows[:used], self._sample_positions[:used]
        ring = rings.descriptors, rings.sequence
        self._format.unpack_step_descriptor(
            layout,
            *ring,
            slots,
            contexts,
            given,
            self._buffers.all_rows,
            dummy_slot=self._capacity.max_slots,
            chunks=self._format.ChunkOutputs(cu_q, sample_rows, sample_positions),
        )
        step, newest = (layout, *ring, cu_q, slots, contexts, given), self._buffers.last_token
        for group, table in enumerate(tables):
            outs = ids, positions, mappings[group], page_rows[group]
            self._make_inputs(*step, table, newest, *outs, self._capacity.page_size)
        chunks = contexts[:MAX_CHUNKS], page_rows[0, :MAX_CHUNKS], slots[:MAX_CHUNKS]
        decode = contexts[MAX_CHUNKS:], page_rows[0, MAX_CHUNKS:], slots[MAX_CHUNKS:]
        windows = (
            (mappings[at], page_rows[at, :MAX_CHUNKS], page_rows[at, MAX_CHUNKS:]) for at in range(1, len(tables))
        )
        batch = ForwardBatch(
            num_tokens=tokens,
            input_ids=ids,
            positions=positions,
            slot_mapping=mappings[0],
            sample_rows=sample_rows,
            sample_slots=slots,
            sample_positions=sample_positions,
            host_positions=_NOTHING,
            is_all_sampled=False,
            chunks=ChunkBatch([tokens], [], cu_q, *chunks, tokens),
            decode=self._decode_batch(*decode) if rows else None,
            windows=tuple(GroupPages(*own) for own in windows),
        )
        logits = self._decoder.forward(batch, self._buffers.caches, no_progress, self._logits[:used])
        assert logits is not None
        self._fused_sampler.sample(logits, slots, sample_positions, rings.outputs, rings.sequence)

    def _decode_batch(self, contexts: Tensor, page_rows: Tensor, slots: Tensor) -> DecodeBatch:
        first, scratch = self._cu_q[MAX_CHUNKS:], self._scratch.workspace
        return DecodeBatch(_NOTHING, contexts, page_rows, slots, scratch, first_row=first)
