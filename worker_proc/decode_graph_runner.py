"""Decode steps as CUDA graphs over buffers at fixed addresses: a step allocates, copies and launches nothing by itself.

The host writes one step descriptor (slots, context lengths, page table writes) into memory that the device reads, and
replays one CUDA graph. The graph unpacks the descriptor, runs the model, samples the tokens, keeps them for the next
step and writes them to memory that the host polls. Off CUDA the same function runs without a graph, as in the tests.
There is one graph for each batch size of `capture_sizes`; smaller batches are padded with dummy rows. Fewer graphs are
for rows that share prefixes (worker_proc.prefix_groups).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from worker_proc.batch import DecodeBatch, ForwardBatch, GroupPages, PrefixBatch
from worker_proc.contract import Capacity
from worker_proc.device_step import LaunchedStep
from worker_proc.fused_sampler import FusedSampler
from worker_proc.graphs import SharedBuffers, StepGraphs, no_progress, specialization_sizes
from worker_proc.models.decoder import Decoder
from worker_proc.ops.decode_scratch import DecodeScratch
from worker_proc.pinned_rings import PinnedRings
from worker_proc.prefix_groups import MAX_GROUPS, PrefixGroupFinder, PrefixGroups
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


def grouped_sizes(max_rows: int) -> list[int]:
    """Return the batch sizes to capture for rows that share prefixes, ascending."""
    sizes = [4, 8, 16, *range(32, 128, 16), *range(128, 256, 32), *range(256, max_rows, 64)]
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
        groups: finds the rows that share prefixes; None has every row read its own.
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
        groups: PrefixGroupFinder | None,
    ) -> None:
        from kernels import decode_inputs, prefix_decode, step_descriptor

        self._make_inputs, self._format = decode_inputs.decode_inputs, step_descriptor
        self._decoder, self._fused_sampler, self._buffers = decoder, fused_sampler, buffers
        self._capacity, self._max_rows = capacity, max_rows
        groups_of_pages, _, max_pages = buffers.page_tables.shape
        self.max_page_writes = max(_MIN_WRITES, _WRITES_PER_ROW * max_rows) * groups_of_pages
        device = buffers.page_tables.device
        self._scratch = scratch
        self._layout = step_descriptor.StepLayout(max_rows, self.max_page_writes)
        self._rings = PinnedRings(self._layout.width, max_rows, device, buffers.poller)
        self._slots, self._contexts, self._given = torch.zeros((3, max_rows), dtype=torch.int32, device=device)
        self._ids, self._positions = torch.zeros((2, max_rows), dtype=torch.int64, device=device)
        # By page group.
        self._mappings = torch.zeros((groups_of_pages, max_rows), dtype=torch.int64, device=device)
        self._page_rows = torch.zeros((groups_of_pages, max_rows, max_pages), dtype=torch.int32, device=device)
        self._logits = torch.zeros((max_rows, capacity.vocab_size), dtype=dtype, device=device)
        self._groups = groups
        row_sizes = [capture_sizes(max_rows), [] if groups is None else grouped_sizes(max_rows)]
        # By whether the step has groups: the graph's rows for each number of rows.
        self._padded_rows = [_padded(sizes, max_rows) for sizes in row_sizes]
        self._sizes = sorted((rows, grouped) for grouped, sizes in enumerate(row_sizes) for rows in sizes)
        self._graphs = StepGraphs(self._sizes)
        self._tails, tokens, members = torch.zeros((3, max_rows), dtype=torch.int32, device=device)
        most = min(MAX_GROUPS, 1 << (max_rows.bit_length() - 1))
        ends, lengths, group_slots = (
            torch.zeros(most + extra, dtype=torch.int32, device=device) for extra in (1, 0, 0)
        )
        self._prefixes = prefix_decode.SharedPrefixes(ends, lengths, group_slots, members, tokens)
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
        for grouped in (0, 1):
            for rows in specialization_sizes([rows for rows, own in self._sizes if own == grouped]):
                self._run((rows, grouped))

    def recover(self) -> None:
        """See GraphRunner."""
        self._rings.resync()

    def can_run(self, rows: StepRows) -> bool:
        """See GraphRunner."""
        count = len(rows.decode)
        if rows.chunks or not 0 < count <= self._max_rows:
            return False
        return self._scratch.has_room(rows.contexts, max(padded[count] for padded in self._padded_rows if padded))

    def launch(self, rows: StepRows, page_writes: IntArray) -> LaunchedStep:
        """See GraphRunner."""
        count, num_writes = len(rows.decode), len(page_writes)
        descriptor, layout = self._rings.begin(), self._layout
        groups = self._find_groups(rows)
        layout.set_counts(descriptor, count, num_writes, 0 if groups is None else len(groups.ends))
        layout.set_rows(descriptor, rows.decode, rows.contexts, rows.given)
        if num_writes:
            descriptor[layout.writes_at :][: 3 * num_writes] = page_writes.reshape(-1)
        if groups is not None:
            self._write_groups(descriptor, groups)
        grouped = int(groups is not None)
        size = self._padded_rows[grouped][count], grouped
        self._graphs.launch(self._run, size, size)
        ids = self._rings.end(slice(count), size)
        return LaunchedStep(ids, self._logits, self._row_numbers[:count], rows.contexts)

    def _find_groups(self, rows: StepRows) -> PrefixGroups | None:
        """Rows of drafts have the bits that they have without drafts, so each reads its own prefix."""
        if self._groups is None or rows.given is not None:
            return None
        return self._groups.find(rows.decode, rows.contexts)

    def _write_groups(self, descriptor: NDArray[np.int32], groups: PrefixGroups) -> None:
        layout, form = self._layout, self._format
        sections = form.PREFIXES, form.MEMBERS, form.GROUP_ENDS, form.GROUP_PREFIXES, form.GROUP_SLOTS
        values = groups.prefixes, groups.members, groups.ends, groups.lengths, groups.slots
        for name, own in zip(sections, values, strict=True):
            layout.section(descriptor, name)[: len(own)] = own

    def _run(self, graph: tuple[int, int]) -> None:
        size, grouped = graph
        rings, tables, last_token = self._rings, self._buffers.page_tables, self._buffers.last_token
        slots, contexts, given = self._slots[:size], self._contexts[:size], self._given[:size]
        ids, positions = self._ids[:size], self._positions[:size]
        mappings, page_rows = self._mappings[:, :size], self._page_rows[:, :size]
        ring = rings.descriptors, rings.sequence
        dummy_slot = self._capacity.max_slots
        tails, prefixes, shared = contexts, None, None
        if grouped:
            all_rows = self._prefixes
            shared = all_rows._replace(members=all_rows.members[:size], tokens=all_rows.tokens[:size])
            tails, prefixes = self._tails[:size], PrefixBatch(shared, tables[0])
        step = slots, contexts, given
        every = *step, self._buffers.all_rows
        self._format.unpack_step_descriptor(self._layout, *ring, *every, dummy_slot=dummy_slot, prefixes=shared)
        own = {} if shared is None else {"prefixes": shared.tokens, "tails": tails}
        for group, table in enumerate(tables):
            outs = ids, positions, mappings[group], page_rows[group]
            self._make_inputs(*step, table, last_token, *outs, self._capacity.page_size, **own)
        nothing = np.empty(0, dtype=np.int64)
        batch = ForwardBatch(
            num_tokens=size,
            input_ids=ids,
            positions=positions,
            slot_mapping=mappings[0],
            sample_rows=ids,
            sample_slots=slots,
            sample_positions=contexts,
            host_positions=nothing,
            is_all_sampled=True,
            chunks=None,
            decode=DecodeBatch(nothing, tails, page_rows[0], slots, self._scratch.workspace, prefixes=prefixes),
            windows=tuple(GroupPages(mappings[at], None, page_rows[at]) for at in range(1, len(tables))),
        )
        logits = self._decoder.forward(batch, self._buffers.caches, no_progress, self._logits[:size])
        assert logits is not None
        self._fused_sampler.sample(logits, slots, contexts, rings.outputs, rings.sequence)


def _padded(sizes: list[int], max_rows: int) -> list[int]:
    """Return by number of rows the smallest of `sizes` that holds them."""
    return [] if not sizes else np.array(sizes)[np.searchsorted(sizes, np.arange(max_rows + 1))].tolist()
