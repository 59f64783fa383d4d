"""Steps with a few short prefill chunks as CUDA graphs over buffers at fixed addresses: see decode_graph_runner.

A short prefill is over on the device long before the host has launched its kernels one by one. There is one graph for
each number of tokens in `TOKEN_SIZES` up to a limit; beyond it the device takes longer than the host. Decode rows may
be part of the step, as sequences of one token.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from worker_proc.batch import ChunkBatch, ForwardBatch
from worker_proc.contract import Capacity
from worker_proc.device_step import LaunchedStep
from worker_proc.fused_sampler import FusedSampler
from worker_proc.graphs import SharedBuffers, StepGraphs, no_progress, specialization_sizes
from worker_proc.models.decoder import Decoder
from worker_proc.pinned_rings import PinnedRings
from worker_proc.slots import IntArray, StepRows

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE as GraphPool

TOKEN_SIZES = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
MAX_SEQS = 16
_MAX_WRITES = 2048
# In the place of a token id: the slot's newest token, which is on the device.
_NEWEST = np.full(1, -1, dtype=np.int64)


class PrefillGraphRunner:
    """Runs steps of at most `max_tokens` tokens in at most MAX_SEQS sequences; see GraphRunner.

    Args:
        decoder, fused_sampler: what a step runs.
        buffers: what a step reads and changes.
        capacity: sizes of the pool and the model.
        dtype: of the logits.
        max_tokens: largest step.
    """

    max_page_writes = _MAX_WRITES

    def __init__(
        self,
        decoder: Decoder,
        fused_sampler: FusedSampler,
        buffers: SharedBuffers,
        capacity: Capacity,
        dtype: torch.dtype,
        max_tokens: int,
    ) -> None:
        from kernels import decode_inputs, prefill_inputs

        self._kernels, self._header = prefill_inputs, decode_inputs.HEADER
        self._decoder, self._fused_sampler, self._buffers, self._capacity = decoder, fused_sampler, buffers, capacity
        self._sizes = [size for size in TOKEN_SIZES if size <= max_tokens]
        self._max_tokens = most = self._sizes[-1]
        table = buffers.page_table
        device = table.device
        width = prefill_inputs.prefill_descriptor_width(most, MAX_SEQS, _MAX_WRITES)
        self._rings = PinnedRings(width, MAX_SEQS, device, buffers.poller)
        self._cu_q = torch.zeros(MAX_SEQS + 1, dtype=torch.int32, device=device)
        self._slots, self._contexts, self._sample_positions = torch.zeros(
            (3, MAX_SEQS), dtype=torch.int32, device=device
        )
        self._sample_rows = torch.zeros(MAX_SEQS, dtype=torch.int64, device=device)
        self._ids, self._positions, self._mapping = torch.zeros((3, most), dtype=torch.int64, device=device)
        self._batch_page_table = torch.zeros((MAX_SEQS, table.shape[1]), dtype=torch.int32, device=device)
        self._logits = torch.zeros((MAX_SEQS, capacity.vocab_size), dtype=dtype, device=device)
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
        for size in specialization_sizes(self._sizes):
            self._run(size)

    def recover(self) -> None:
        """See GraphRunner."""
        self._rings.resync()

    def can_run(self, rows: StepRows) -> bool:
        """See GraphRunner."""
        if not rows.chunks or len(rows.chunks) + len(rows.decode) > MAX_SEQS:
            return False
        if any(chunk.alternatives >= 0 for chunk in rows.chunks):
            # A graph makes the logits of sampled rows alone.
            return False
        return sum(len(chunk.ids) for chunk in rows.chunks) + len(rows.decode) <= self._max_tokens

    def launch(self, rows: StepRows, page_writes: IntArray) -> LaunchedStep:
        """See GraphRunner."""
        descriptor = self._rings.begin()
        num_tokens, positions = self._fill(descriptor, rows, page_writes)
        size = next(size for size in self._sizes if size >= num_tokens)
        # Padding rows get no attention: their contents are arbitrary and are never used.
        self._graphs.launch(self._run, size, num_tokens)
        sampled = np.flatnonzero(positions)
        ids = self._rings.end(sampled, size)
        return LaunchedStep(ids, self._logits, sampled, positions[sampled].astype(np.int64))

    def _fill(
        self, descriptor: NDArray[np.int32], rows: StepRows, page_writes: IntArray
    ) -> tuple[int, NDArray[np.int32]]:
        """Write the step to its descriptor; return its number of tokens and the sample positions [MAX_SEQS]."""
        header = self._header
        seqs = [(chunk.slot, chunk.start, chunk.ids, chunk.is_last) for chunk in rows.chunks]
        decode = zip(rows.decode.tolist(), rows.contexts.tolist(), strict=True)
        seqs += [(slot, context - 1, _NEWEST, True) for slot, context in decode]
        fields = np.zeros((5, MAX_SEQS), dtype=np.int32)
        cu_q, slots, contexts, sample_rows, positions = fields
        ids = descriptor[header + 5 * MAX_SEQS + 1 :]
        end = 0
        for seq, (slot, start, tokens, samples) in enumerate(seqs):
            ids[end : end + len(tokens)] = tokens
            end += len(tokens)
            cu_q[seq], slots[seq], contexts[seq] = end, slot, start + len(tokens)
            if samples:
                sample_rows[seq], positions[seq] = end - 1, start + len(tokens)
        cu_q[len(seqs) :] = end
        descriptor[:2] = end, len(page_writes)
        descriptor[header] = 0
        descriptor[header + 1 :][: fields.size] = fields.reshape(-1)
        ids[self._max_tokens :][: page_writes.size] = page_writes.reshape(-1)
        return end, positions

    def _run(self, size: int) -> None:
        rings, table = self._rings, self._buffers.page_table
        ids, positions, mapping = self._ids[:size], self._positions[:size], self._mapping[:size]
        cu_q, slots, contexts = self._cu_q, self._slots, self._contexts
        samples = self._sample_rows, self._sample_positions
        self._kernels.unpack_prefill_descriptor(
            rings.descriptors,
            rings.sequence,
            cu_q,
            slots,
            contexts,
            *samples,
            table,
            max_tokens=self._max_tokens,
        )
        outs = ids, positions, mapping, self._batch_page_table, self._capacity.page_size
        self._kernels.prefill_inputs(
            rings.descriptors, rings.sequence, cu_q, slots, contexts, table, self._buffers.last_token, *outs
        )
        batch = ForwardBatch(
            num_tokens=size,
            input_ids=ids,
            positions=positions,
            slot_mapping=mapping,
            sample_rows=self._sample_rows,
            sample_slots=slots,
            sample_positions=self._sample_positions,
            host_positions=np.empty(0, dtype=np.int64),
            is_all_sampled=False,
            chunks=ChunkBatch([size], [], cu_q, contexts, self._batch_page_table, size),
            decode=None,
        )
        logits = self._decoder.forward(batch, self._buffers.kv_cache, no_progress, self._logits)
        assert logits is not None
        self._fused_sampler.sample(logits, slots, self._sample_positions, rings.outputs, rings.sequence)
