"""Decode steps as CUDA graphs over buffers at fixed addresses: a step allocates, copies and launches nothing by itself.

The host writes one step descriptor (slots, context lengths, page table writes) into memory that the device reads, and
replays one CUDA graph. The graph unpacks the descriptor, runs the model, samples the tokens, keeps them for the next
step and writes them to memory that the host polls. Off CUDA the same function runs without a graph, as in the tests.
There is one graph for each batch size of `capture_sizes`; smaller batches are padded with dummy rows.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from worker_proc.batch import DecodeBatch, ForwardBatch
from worker_proc.contract import Capacity
from worker_proc.device_step import LaunchedStep
from worker_proc.fused_sampler import FusedSampler
from worker_proc.graphs import SharedBuffers, StepGraphs, no_progress, specialization_sizes
from worker_proc.models.decoder import Decoder
from worker_proc.ops.triton_ops import DecodeScratch
from worker_proc.pinned_rings import PinnedRings
from worker_proc.slots import IntArray, StepRows

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE as GraphPool

# Page table writes that a descriptor has room for: one per row is normal, when the row's last page is full.
_WRITES_PER_ROW = 2
_MIN_WRITES = 64


def capture_sizes(max_rows: int) -> list[int]:
    """Return the batch sizes to capture, ascending, up to `max_rows`: dense where a row is a large part of a step."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_rows, 32)]
    return [*(size for size in sizes if size < max_rows), max_rows]


class DecodeGraphRunner:
    """Runs pure decode steps of up to `max_rows` rows; see GraphRunner.

    Args:
        decoder, fused_sampler: what a step runs.
        scratch: of decode attention, for `max_rows` rows at least.
        buffers: what a step reads and changes.
        capacity: sizes of the pool and the model.
        dtype: of the logits.
        max_rows: largest batch.
    """

    def __init__(
        self,
        decoder: Decoder,
        scratch: DecodeScratch,
        fused_sampler: FusedSampler,
        buffers: SharedBuffers,
        capacity: Capacity,
        dtype: torch.dtype,
        max_rows: int,
    ) -> None:
        from kernels import decode_inputs, step_descriptor

        self._make_inputs, self._format = decode_inputs.decode_inputs, step_descriptor
        self._decoder, self._fused_sampler, self._buffers = decoder, fused_sampler, buffers
        self._capacity, self._max_rows = capacity, max_rows
        self.max_page_writes = max(_MIN_WRITES, _WRITES_PER_ROW * max_rows)
        device, max_pages = buffers.page_table.device, buffers.page_table.shape[1]
        self._scratch = scratch
        self._layout = step_descriptor.StepLayout(max_rows, self.max_page_writes)
        self._rings = PinnedRings(self._layout.width, max_rows, device, buffers.poller)
        self._slots, self._contexts, self._given = torch.zeros((3, max_rows), dtype=torch.int32, device=device)
        self._ids, self._positions, self._mapping = torch.zeros((3, max_rows), dtype=torch.int64, device=device)
        self._batch_page_table = torch.zeros((max_rows, max_pages), dtype=torch.int32, device=device)
        self._logits = torch.zeros((max_rows, capacity.vocab_size), dtype=dtype, device=device)
        self._sizes = capture_sizes(max_rows)
        self._padded_rows = np.array(self._sizes)[np.searchsorted(self._sizes, np.arange(max_rows + 1))].tolist()
        self._graphs = StepGraphs(self._sizes)
        self._row_numbers = np.arange(max_rows)

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
        for size in specialization_sizes(self._sizes):
            self._run(size)

    def recover(self) -> None:
        """See GraphRunner."""
        self._rings.resync()

    def can_run(self, rows: StepRows) -> bool:
        """See GraphRunner."""
        count = len(rows.decode)
        if rows.chunks or not 0 < count <= self._max_rows:
            return False
        return self._scratch.has_room(rows.contexts, self._padded_rows[count])

    def launch(self, rows: StepRows, page_writes: IntArray) -> LaunchedStep:
        """See GraphRunner."""
        count, num_writes = len(rows.decode), len(page_writes)
        descriptor, layout = self._rings.begin(), self._layout
        layout.set_counts(descriptor, count, num_writes)
        layout.set_rows(descriptor, rows.decode, rows.contexts, rows.given)
        if num_writes:
            descriptor[layout.writes_at :][: 3 * num_writes] = page_writes.reshape(-1)
        size = self._padded_rows[count]
        self._graphs.launch(self._run, size, size)
        ids = self._rings.end(slice(count), size)
        return LaunchedStep(ids, self._logits, self._row_numbers[:count], rows.contexts)

    def _run(self, size: int) -> None:
        rings, table, last_token = self._rings, self._buffers.page_table, self._buffers.last_token
        slots, contexts, given = self._slots[:size], self._contexts[:size], self._given[:size]
        ids, positions, mapping = self._ids[:size], self._positions[:size], self._mapping[:size]
        batch_page_table = self._batch_page_table[:size]
        ring = rings.descriptors, rings.sequence
        dummy_slot = self._capacity.max_slots
        self._format.unpack_step_descriptor(self._layout, *ring, slots, contexts, given, table, dummy_slot=dummy_slot)
        outs = ids, positions, mapping, batch_page_table
        self._make_inputs(slots, contexts, given, table, last_token, *outs, self._capacity.page_size)
        nothing = np.empty(0, dtype=np.int64)
        batch = ForwardBatch(
            num_tokens=size,
            input_ids=ids,
            positions=positions,
            slot_mapping=mapping,
            sample_rows=ids,
            sample_slots=slots,
            sample_positions=contexts,
            host_positions=nothing,
            is_all_sampled=True,
            chunks=None,
            decode=DecodeBatch(nothing, contexts, batch_page_table, slots, self._scratch.workspace),
        )
        logits = self._decoder.forward(batch, self._buffers.caches, no_progress, self._logits[:size])
        assert logits is not None
        self._fused_sampler.sample(logits, slots, contexts, rings.outputs, rings.sequence)
