"""Steps of a few short prompt chunks at fixed places in memory, each size one CUDA graph: see worker_proc.decode_loop.

A short prompt's step is over on the device long before a host has launched its kernels one by one. There is one graph
for each number of tokens in `TOKEN_SIZES` up to a limit; beyond it the device is the slower one. Decode rows may ride
along as runs of one token.
"""

from collections.abc import Callable

import numpy as np
import torch

from worker_proc.batch import ChunkBatch, ForwardBatch
from worker_proc.contract import Capacity
from worker_proc.graphs import GraphPool, Places, captured, class_sizes, no_progress
from worker_proc.launched import Launched
from worker_proc.mailbox import Mailbox
from worker_proc.models.decoder import Decoder
from worker_proc.picker import Picker
from worker_proc.slots import IntArray, SlotTable, StepPlan

TOKEN_SIZES = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
MAX_RUNS = 16
_MAX_WRITES = 2048


class PromptLoop:
    """Runs steps of at most `max_tokens` tokens in at most MAX_RUNS runs.

    Args:
        decoder, picker: what runs the model and draws.
        places: what the step reads and changes.
        capacity: sizes of the pool and the model.
        dtype: of the logits.
        max_tokens: largest step.
    """

    max_writes = _MAX_WRITES

    def __init__(
        self,
        decoder: Decoder,
        picker: Picker,
        places: Places,
        capacity: Capacity,
        dtype: torch.dtype,
        max_tokens: int,
    ) -> None:
        from kernels import prompt_inputs

        self._kernels = prompt_inputs
        self._decoder, self._picker, self._places, self._capacity = decoder, picker, places, capacity
        self._sizes = [size for size in TOKEN_SIZES if size <= max_tokens]
        self._max_tokens = most = self._sizes[-1]
        table = places.page_table
        device = table.device
        width = prompt_inputs.prompt_letter_width(most, MAX_RUNS, _MAX_WRITES)
        self._mail = Mailbox(width, MAX_RUNS, device, places.pace)
        self._bounds = torch.zeros(MAX_RUNS + 1, dtype=torch.int32, device=device)
        self._slots, self._contexts, self._sample_positions = torch.zeros(
            (3, MAX_RUNS), dtype=torch.int32, device=device
        )
        self._sample_rows = torch.zeros(MAX_RUNS, dtype=torch.int64, device=device)
        self._ids, self._positions, self._mapping = torch.zeros((3, most), dtype=torch.int64, device=device)
        self._rows_table = torch.zeros((MAX_RUNS, table.shape[1]), dtype=torch.int32, device=device)
        self._logits = torch.zeros((MAX_RUNS, capacity.vocab_size), dtype=dtype, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def capture(self, pool: GraphPool, progress: Callable[[], None]) -> None:
        """Capture every size; called once, on CUDA, while no slot is in use."""
        self._graphs = captured(self._run, self._sizes, pool, progress)
        self._mail.restart()

    def run_once(self) -> None:
        """Launch, without graphs, every kernel that a step may need; only while nothing is in use."""
        for size in class_sizes(self._sizes):
            self._run(size)

    def recover(self) -> None:
        """Be ready for the next launch after one that raised."""
        self._mail.resync()

    def takes(self, plan: StepPlan) -> bool:
        """Return whether the step can run here."""
        if len(plan.chunks) + len(plan.decode) > MAX_RUNS:
            return False
        return sum(len(chunk.ids) for chunk in plan.chunks) + len(plan.decode) <= self._max_tokens

    def launch(self, plan: StepPlan, table: SlotTable, page_writes: IntArray) -> Launched:
        """Start a step that `takes` agreed to, with at most `max_writes` page table writes."""
        runs = [(chunk.slot, chunk.start, chunk.ids, chunk.is_last) for chunk in plan.chunks]
        newest = np.full(1, -1, dtype=np.int64)
        runs += [(slot, int(table.kv_length[slot]), newest, True) for slot in plan.decode.tolist()]
        letter, fields = self._mail.begin(), np.zeros((5, MAX_RUNS), dtype=np.int32)
        bounds, slots, contexts, rows, positions = fields
        ids = letter[self._kernels.HEADER + 5 * MAX_RUNS + 1 :]
        end = 0
        for run, (slot, start, tokens, samples) in enumerate(runs):
            ids[end : end + len(tokens)] = tokens
            end += len(tokens)
            bounds[run], slots[run], contexts[run] = end, slot, start + len(tokens)
            if samples:
                rows[run], positions[run] = end - 1, start + len(tokens)
        bounds[len(runs) :] = end
        letter[:2] = end, len(page_writes)
        letter[self._kernels.HEADER] = 0
        letter[self._kernels.HEADER + 1 :][: fields.size] = fields.reshape(-1)
        ids[self._max_tokens :][: page_writes.size] = page_writes.reshape(-1)
        size = next(size for size in self._sizes if size >= end)
        if self._graphs:
            # Rows of padding get no attention: they hold anything, and nothing of them is kept.
            self._graphs[size].replay()
        else:
            self._run(end)
        sampled = np.flatnonzero(positions)
        return Launched(self._mail.end(sampled, size), self._logits, sampled, positions[sampled].astype(np.int64))

    def _run(self, size: int) -> None:
        mail, table = self._mail, self._places.page_table
        ids, positions, mapping = self._ids[:size], self._positions[:size], self._mapping[:size]
        bounds, slots, contexts = self._bounds, self._slots, self._contexts
        samples = self._sample_rows, self._sample_positions
        self._kernels.open_prompt_letter(
            mail.letters, mail.turn, bounds, slots, contexts, *samples, table, max_tokens=self._max_tokens
        )
        outs = ids, positions, mapping, self._rows_table, self._capacity.page_size
        self._kernels.prompt_inputs(
            mail.letters, mail.turn, bounds, slots, contexts, table, self._places.last_token, *outs
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
            samples_all=False,
            chunks=ChunkBatch([size], [], bounds, contexts, self._rows_table, size),
            decode=None,
        )
        logits = self._decoder.forward(batch, self._places.kv_cache, no_progress, self._logits)
        assert logits is not None
        self._picker.pick(logits, slots, self._sample_positions, mail.posts, mail.turn)
