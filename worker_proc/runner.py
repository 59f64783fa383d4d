"""One step on the device: apply the deltas, run the model, sample, and keep each sampled id for the next step.

The host knows every length in advance and the device keeps the newest ids, so a step is launched before the ids of the
one before it have reached the host. Used by the executor's thread alone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from quartet.wire.frames import Step, StepTimes, TokenLogprobs
from quartet.wire.ids import Epoch
from worker_proc.batch import ForwardBatch, build_batch
from worker_proc.compiles import CompileWatch, compile_ahead
from worker_proc.contract import Capacity, DeviceLostError, OutOfMemoryError
from worker_proc.graphs import Places
from worker_proc.launched import Launched, PendingStep
from worker_proc.models.decoder import Decoder
from worker_proc.ops.interface import Ops
from worker_proc.pace import Pace
from worker_proc.sampler import Entering, Sampler
from worker_proc.slots import IntArray, SlotTable, StepPlan
from worker_proc.transfer import Arrival, Downloader, PatchedDownload, Uploader
from worker_proc.warm_up import warm_up

if TYPE_CHECKING:
    from worker_proc.decode_loop import DecodeLoop
    from worker_proc.picker import Picker
    from worker_proc.prompt_loop import PromptLoop

Sampled = tuple[Arrival | None, list[tuple[int, TokenLogprobs]]]

_CPU_WARM_UP = (20,)
_CUDA_WARM_UP = (20, 300, 2000)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device, ready to run: `facts` are for the ready line, `num_layers` for the KV pool.

    `max_graph_rows` is the largest decode batch with a CUDA graph, 0 for none at all; `max_graph_tokens` the largest
    step of prompt chunks with one."""

    decoder: Decoder
    ops: Ops
    sampler: Sampler
    device: torch.device
    dtype: torch.dtype
    num_layers: int
    max_graph_rows: int
    max_graph_tokens: int
    facts: dict[str, str | int | float]


class ModelRunner:
    """See Runner.

    Args:
        model: loaded weights and what runs them.
        capacity: the page count it can hold, until `allocate` fixes it.
        progress: called per layer of a long prefill, so that it is not taken for a hang.
    """

    def __init__(self, model: LoadedModel, capacity: Capacity, progress: Callable[[], None]) -> None:
        self.capacity = capacity
        self._model = model
        self._progress = progress
        self._kv_cache: list[torch.Tensor] = []
        self._upload = Uploader(model.device)
        self._downloader = Downloader(model.device, capacity.max_slots)
        self._pace = Pace(model.device)
        self._finished_at = time.perf_counter()
        self._has_bad_kv = False
        self._picker: Picker | None = None
        self._decode_loop: DecodeLoop | None = None
        self._prompt_loop: PromptLoop | None = None
        self._compiles = CompileWatch()
        self._start_up: dict[str, float] = {}
        self._make_slots()

    def facts(self) -> dict[str, str | int | float]:
        """Return device, dtype, attention backend and KV capacity for the ready line, and how long phases took."""
        kv_tokens = self.capacity.page_count * self.capacity.page_size
        return {"kv_tokens": kv_tokens, **self._model.facts, **self._start_up}

    @property
    def late_compiles(self) -> int:
        """Kernels that Triton compiled or loaded since `allocate` returned; each held a step up."""
        return self._compiles.late

    @torch.inference_mode()
    def allocate(self, page_count: int) -> None:
        """Make the KV pool and run every kind of step once. Raises RuntimeError for another count than before."""
        if self._kv_cache and page_count != self.capacity.page_count:
            raise RuntimeError(f"{self.capacity.page_count} pages are allocated, the scheduler wants {page_count}")
        if self._kv_cache:
            return
        self.capacity = replace(self.capacity, page_count=page_count)
        uses_kernels = self._model.ops.name == "triton" and self._model.device.type == "cuda"
        started = time.perf_counter()
        if uses_kernels:
            twin = self._twin()
            compile_ahead(twin.run_once, self._progress)
            # What else loads at first use, be it in cuBLAS, loads here, by a layer instead of all.
            twin.run_once()
            del twin
        compiled = time.perf_counter()
        self._prepare()
        warm = time.perf_counter()
        if uses_kernels:
            self._capture()
            self._compiles.begin()
        self.reset()
        phases = compiled - started, warm - compiled, time.perf_counter() - warm
        self._start_up = dict(zip(("kernels_s", "warm_up_s", "graphs_s"), phases, strict=True))

    def run_once(self) -> None:
        """Run every kind of step once without CUDA graphs."""
        self._prepare()
        for loop in (self._prompt_loop, self._decode_loop):
            if loop is not None:
                loop.run_once()

    def reset(self) -> None:
        """Forget every slot."""
        self._slots.clear()
        self._model.sampler.clear()

    @torch.inference_mode()
    def launch(self, step: Step, scheduler_epoch: Epoch) -> PendingStep:
        """See Runner.launch; returns once the last kernel is queued."""
        started = time.perf_counter()
        plan = None
        try:
            plan = self._slots.apply(step)
            pending = self._run(plan, step.step, scheduler_epoch, started)
            self._slots.commit(plan)
            return pending
        except Exception as error:
            self._slots.abandon(step, plan)
            if _is_out_of_memory(error):
                if self._model.device.type == "cuda":
                    torch.cuda.empty_cache()
                self._recover()
                raise OutOfMemoryError(str(error).splitlines()[0]) from error
            if isinstance(error, torch.AcceleratorError):
                # A fault inside a kernel poisons the CUDA context: every later call would fail too.
                raise DeviceLostError(str(error).splitlines()[0]) from error
            self._recover()
            raise
        finally:
            self._finished_at = time.perf_counter()

    def _run(self, plan: StepPlan, step: int, scheduler_epoch: Epoch, started: float) -> PendingStep:
        wait_s = started - self._finished_at
        loop = self._loop_for(plan)
        has_letter = loop is not None and len(plan.page_writes) <= loop.max_writes
        self._apply_entries(plan, writes_pages=not has_letter)
        if not plan.chunks and not len(plan.decode):
            times = StepTimes(wait_s, 0.0, 0.0, 0.0)
            return PendingStep(scheduler_epoch, step, plan, None, [], times, self._distrust_pages, self._pace)
        if loop is not None:
            prepared = time.perf_counter()
            launched = self._run_loop(loop, plan, plan.page_writes if has_letter else plan.page_writes[:0])
            computed = time.perf_counter()
            download, logprobs = self._with_special_rows(plan.sampled, launched)
        else:
            page_size = self.capacity.page_size
            batch = build_batch(plan, self._slots, page_size, self._page_table, self._last_token, self._upload)
            prepared = time.perf_counter()
            logits = self._model.decoder.forward(batch, self._kv_cache, self._progress)
            computed = time.perf_counter()
            download, logprobs = self._sample(plan, batch, logits)
        sampled = time.perf_counter()
        times = StepTimes(wait_s, prepared - started, computed - prepared, sampled - computed)
        return PendingStep(scheduler_epoch, step, plan, download, logprobs, times, self._distrust_pages, self._pace)

    def _recover(self) -> None:
        """Bring the device back in step with the host: what the failed step would have written may be missing."""
        if self._model.device.type != "cpu":
            self._page_table.copy_(torch.from_numpy(self._slots.page_table))
        for loop in (self._decode_loop, self._prompt_loop):
            if loop is not None:
                loop.recover()

    def _loop_for(self, plan: StepPlan) -> "DecodeLoop | PromptLoop | None":
        if plan.chunks:
            return self._prompt_loop if self._prompt_loop is not None and self._prompt_loop.takes(plan) else None
        if self._decode_loop is not None and self._decode_loop.takes(plan.contexts):
            return self._decode_loop
        return None

    def _run_loop(self, loop: "DecodeLoop | PromptLoop", plan: StepPlan, page_writes: IntArray) -> Launched:
        self._slots.pages_at(plan.decode, plan.contexts - 1)
        for chunk in plan.chunks:
            self._slots.check_pages(chunk.slot, chunk.start, chunk.start + len(chunk.ids))
        if loop is self._prompt_loop:
            return loop.launch(plan, self._slots, page_writes)
        return loop.launch(plan.decode, plan.contexts, page_writes)

    def _sample(self, plan: StepPlan, batch: ForwardBatch, logits: torch.Tensor | None) -> Sampled:
        if logits is None:
            # Nothing comes back, but the staging memory of the step is in use until it is over.
            return self._downloader.start(self._last_token[:0]), []
        if self._picker is not None:
            post = torch.empty((1, len(logits)), dtype=torch.int32, device=logits.device)
            self._picker.pick(logits, batch.sample_slots, batch.sample_positions, post, self._no_turn)
            download = self._downloader.start(post[0])
            rows = np.arange(len(logits))
            return self._with_special_rows(plan.sampled, Launched(download, logits, rows, batch.host_positions))
        sampled = self._model.sampler.sample(
            logits, torch.from_numpy(plan.sampled), torch.from_numpy(batch.host_positions)
        )
        self._last_token.index_copy_(0, batch.sample_slots, sampled.ids)
        return self._downloader.start(torch.where(sampled.finite, sampled.ids, -1)), sampled.logprobs

    def _with_special_rows(self, slots: IntArray, launched: Launched) -> Sampled:
        """Sample the rows again that the picker does not do justice to."""
        special = self._model.sampler.special_rows(slots)
        if not len(special):
            return launched.download, []
        own_slots, own_positions = slots[special], launched.positions[special]
        rows_there, slots_there = self._upload([launched.logit_rows[special], own_slots])
        logits = launched.logits.index_select(0, rows_there)
        sampled = self._model.sampler.sample(logits, torch.from_numpy(own_slots), torch.from_numpy(own_positions))
        self._last_token.index_copy_(0, slots_there, sampled.ids)
        patch = self._downloader.start(torch.where(sampled.finite, sampled.ids, -1))
        logprobs = [(int(special[row]), value) for row, value in sampled.logprobs]
        return PatchedDownload(launched.download, special, patch), logprobs

    def _apply_entries(self, plan: StepPlan, writes_pages: bool) -> None:
        for slot in plan.released:
            self._model.sampler.drop_slot(slot)
        if plan.entered:
            frames = [(one, one.frame) for one in plan.entered]
            self._model.sampler.set_slots(
                [Entering(one.slot, frame.params, one.ids, frame.prompt_length, frame.choice) for one, frame in frames]
            )
        # On the CPU the table is the host's own memory.
        if writes_pages and len(plan.page_writes) and self._model.device.type != "cpu":
            (writes,) = self._upload([plan.page_writes])
            self._page_table.index_put_((writes[:, 0], writes[:, 1]), writes[:, 2].int())
        if self._has_bad_kv and len(plan.fresh_pages):
            (pages,) = self._upload([plan.fresh_pages])
            for kv in self._kv_cache:
                kv.index_fill_(0, pages, 0.0)

    def _distrust_pages(self) -> None:
        """From here on clear pages before use: masked keys and values weigh nothing, but nothing times NaN is NaN.

        The scheduler learns of bad rows from the same result, so none of their pages has been given away yet."""
        self._has_bad_kv = True

    def _twin(self) -> "ModelRunner":
        """Return a runner of the model's first layer with a small pool: it launches every kernel that this one does."""
        model = replace(self._model, decoder=self._model.decoder.first_layer(), num_layers=1)
        pages = min(self.capacity.page_count, max(_CUDA_WARM_UP) // self.capacity.page_size + 2)
        return ModelRunner(model, replace(self.capacity, page_count=pages), self._progress)

    def _prepare(self) -> None:
        """Make what steps need, and run steps that no loop takes."""
        model = self._model
        self._kv_cache = model.ops.allocate_kv(model.num_layers, self.capacity.page_count + 1, model.dtype)
        self._make_slots()
        self._make_picker()
        lengths = _CUDA_WARM_UP if model.device.type == "cuda" else _CPU_WARM_UP
        warm_up(self.launch, self.capacity, lengths, self._progress)
        self._make_loops()

    def _make_slots(self) -> None:
        device = self._model.device
        self._slots = SlotTable(self.capacity)
        table = torch.from_numpy(self._slots.page_table)
        self._page_table = table if device.type == "cpu" else table.to(device)
        self._last_token = torch.zeros(self.capacity.max_slots + 1, dtype=torch.int64, device=device)
        self._no_turn = torch.zeros(1, dtype=torch.int32, device=device)

    def _make_picker(self) -> None:
        """Where our own kernels run, plain rows are drawn by one of them."""
        if self._model.ops.name == "triton":
            from worker_proc.picker import Picker

            self._picker = Picker(self._model.sampler, self._last_token)

    def _make_loops(self) -> None:
        """Where our own kernels run, small steps run at fixed places; made after the other road is warm."""
        model = self._model
        rows = min(model.max_graph_rows, self.capacity.max_slots)
        if self._picker is None or not rows:
            return
        from worker_proc.decode_loop import DecodeLoop
        from worker_proc.prompt_loop import PromptLoop

        decoder, ops, capacity, dtype = model.decoder, model.ops, self.capacity, model.dtype
        places = Places(self._kv_cache, self._page_table, self._last_token, self._pace)
        self._decode_loop = DecodeLoop(decoder, ops, self._picker, places, capacity, dtype, rows)
        self._prompt_loop = PromptLoop(decoder, self._picker, places, capacity, dtype, model.max_graph_tokens)

    def _capture(self) -> None:
        pool = torch.cuda.graph_pool_handle()
        for loop in (self._prompt_loop, self._decode_loop):
            if loop is not None:
                loop.capture(pool, self._progress)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
