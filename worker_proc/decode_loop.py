"""Decode steps at fixed places in memory: nothing of a step is allocated, copied or launched one by one.

The host writes one letter (which slots, how long, which pages) into memory the device reads, and replays one CUDA graph
that opens the letter, runs the model, picks the tokens, keeps them for the next step and posts them to memory the
host reads. Off CUDA the same function runs without a graph, which is what the tests do.
There is one graph for each batch size of `bucket_sizes`; smaller batches are filled up with dummy rows.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from worker_proc.batch import DecodeBatch, ForwardBatch
from worker_proc.contract import Capacity
from worker_proc.graphs import GraphPool, Places, captured, class_sizes, no_progress
from worker_proc.launched import Launched
from worker_proc.mailbox import Mailbox
from worker_proc.models.decoder import Decoder
from worker_proc.ops.triton_ops import TritonOps
from worker_proc.picker import Picker
from worker_proc.slots import IntArray

# Page table writes a letter has room for, per row: one is normal, when a row's last page is full.
_WRITES_PER_ROW = 2
_LEAST_WRITES = 64


def bucket_sizes(most: int) -> list[int]:
    """Return the batch sizes to capture, ascending: dense where a row costs much of a step, the last one `most`."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, most, 32)]
    return [*(size for size in sizes if size < most), most]


class DecodeLoop:
    """Runs pure decode steps of up to `max_rows` rows.

    Args:
        decoder, ops, picker: what runs the model and draws.
        places: what the step reads and changes.
        capacity: sizes of the pool and the model.
        dtype: of the logits.
        max_rows: largest batch.
    """

    def __init__(
        self,
        decoder: Decoder,
        ops: TritonOps,
        picker: Picker,
        places: Places,
        capacity: Capacity,
        dtype: torch.dtype,
        max_rows: int,
    ) -> None:
        from kernels import step_inputs

        self._kernels = step_inputs
        self._decoder, self._picker, self._places = decoder, picker, places
        self._capacity, self._max_rows = capacity, max_rows
        self.max_writes = max(_LEAST_WRITES, _WRITES_PER_ROW * max_rows)
        device, max_pages = places.page_table.device, places.page_table.shape[1]
        self._scratch = ops.decode_scratch(max_rows, max_pages)
        self._mail = Mailbox(step_inputs.letter_width(max_rows, self.max_writes), max_rows, device, places.pace)
        self._slots, self._contexts = torch.zeros((2, max_rows), dtype=torch.int32, device=device)
        self._ids, self._positions, self._mapping = torch.zeros((3, max_rows), dtype=torch.int64, device=device)
        self._rows_table = torch.zeros((max_rows, max_pages), dtype=torch.int32, device=device)
        self._logits = torch.zeros((max_rows, capacity.vocab_size), dtype=dtype, device=device)
        self._sizes = bucket_sizes(max_rows)
        self._bucket = np.array(self._sizes)[np.searchsorted(self._sizes, np.arange(max_rows + 1))].tolist()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._numbers = np.arange(max_rows)

    def capture(self, pool: GraphPool, progress: Callable[[], None]) -> None:
        """Capture every size; called once, on CUDA, while no slot is in use."""
        self._graphs = captured(self._run, self._sizes, pool, progress)
        self._mail.restart()

    def run_once(self) -> None:
        """Launch, without graphs, every kernel that a step may need; only while nothing is in use."""
        for size in class_sizes(self._sizes):
            self._run(size)

    def workspace(self, contexts: IntArray, rows: int) -> Tensor | None:
        """Return the scratch for decode attention over `contexts`, padded to `rows`; None if it is too small."""
        size, most = self._scratch.split_size, self._scratch.splits
        # The first sum is one operation, and at most a split a row above the second.
        if int(contexts.sum()) // size + rows > most:
            splits = int(((contexts + (size - 1)) // size).sum()) + rows - len(contexts)
            return self._scratch.workspace if splits <= most else None
        return self._scratch.workspace

    def recover(self) -> None:
        """Be ready for the next launch after one that raised."""
        self._mail.resync()

    def takes(self, contexts: IntArray) -> bool:
        """Return whether a step of rows with these contexts, the token at hand included, can run here."""
        rows = len(contexts)
        return 0 < rows <= self._max_rows and self.workspace(contexts, self._bucket[rows]) is not None

    def launch(self, slots: IntArray, contexts: IntArray, page_writes: IntArray) -> Launched:
        """Start a step that `takes` agreed to, with at most `max_writes` page table writes."""
        rows, writes = len(slots), len(page_writes)
        letter, header, most = self._mail.begin(), self._kernels.HEADER, self._max_rows
        letter[0], letter[1] = rows, writes
        letter[header : header + rows] = slots
        letter[header + most : header + most + rows] = contexts
        if writes:
            letter[header + 2 * most :][: 3 * writes] = page_writes.reshape(-1)
        size = self._bucket[rows]
        if self._graphs:
            self._graphs[size].replay()
        else:
            self._run(size)
        return Launched(self._mail.end(slice(rows), size), self._logits, self._numbers[:rows], contexts)

    def _run(self, size: int) -> None:
        mail, table, last_token = self._mail, self._places.page_table, self._places.last_token
        slots, contexts = self._slots[:size], self._contexts[:size]
        ids, positions, mapping = self._ids[:size], self._positions[:size], self._mapping[:size]
        rows_table = self._rows_table[:size]
        dummy, most, page_size = self._capacity.max_slots, self._max_rows, self._capacity.page_size
        self._kernels.open_letter(
            mail.letters, mail.turn, slots, contexts, table, rows=size, max_rows=most, dummy_slot=dummy
        )
        self._kernels.decode_inputs(slots, contexts, table, last_token, ids, positions, mapping, rows_table, page_size)
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
            samples_all=True,
            chunks=None,
            decode=DecodeBatch(nothing, contexts, rows_table, self._scratch.workspace),
        )
        logits = self._decoder.forward(batch, self._places.kv_cache, no_progress, self._logits[:size])
        assert logits is not None
        self._picker.pick(logits, slots, contexts, mail.posts, mail.turn)
