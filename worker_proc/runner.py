"""One step on the device: apply the deltas, run the model, sample, and keep each sampled id for the next step.

The host knows every length in advance and the device keeps the newest ids, so a step is launched before the ids of the
one before it have reached the host. Used by the executor's thread alone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from quartet.frames import Chunk, Enter, SamplingParams, Step, StepResult, StepTimes, TokenLogprobs, pack_ids
from quartet.ids import Epoch
from worker_proc.batch import ForwardBatch, build_batch
from worker_proc.contract import Capacity, DeviceLostError, OutOfMemoryError
from worker_proc.models.decoder import Decoder
from worker_proc.ops.interface import Ops
from worker_proc.sampler import Sampler
from worker_proc.slots import SlotTable, StepPlan
from worker_proc.transfer import Download, Downloader, Uploader

_CPU_WARM_UP = (20,)
_CUDA_WARM_UP = (20, 300, 2000)
_NOBODY = Epoch(0)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device, ready to run: `facts` are for the ready line, `num_layers` for the KV pool."""

    decoder: Decoder
    ops: Ops
    sampler: Sampler
    device: torch.device
    dtype: torch.dtype
    num_layers: int
    facts: dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A launched step: what its result will say, and the ids on their way to the host."""

    scheduler_epoch: Epoch
    step: int
    plan: StepPlan
    download: Download | None
    logprobs: list[tuple[int, TokenLogprobs]]
    times: StepTimes
    on_bad_rows: Callable[[], None]

    def is_done(self) -> bool:
        """Return whether `wait` would return at once."""
        return self.download is None or self.download.is_done()

    def wait(self) -> StepResult:
        """Block until the ids are there; rows whose logits were not finite arrived as -1."""
        ids = np.empty(0, dtype=np.int32) if self.download is None else self.download.wait()
        bad_rows = np.flatnonzero(ids < 0)
        if len(bad_rows):
            ids[bad_rows] = 0
            self.on_bad_rows()
        return StepResult(
            scheduler_epoch=self.scheduler_epoch,
            step=self.step,
            slots=self.plan.sampled.astype("<i4").tobytes(),
            generations=self.plan.generations.astype("<i4").tobytes(),
            ids=ids.astype("<i4").tobytes(),
            logprobs=self.logprobs,
            bad_rows=bad_rows.tolist(),
            times=self.times,
        )


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
        self._finished_at = time.perf_counter()
        self._has_bad_kv = False
        self._make_slots()

    def facts(self) -> dict[str, str | int | float]:
        """Return device, dtype, attention backend and KV capacity for the ready line."""
        return {"kv_tokens": self.capacity.page_count * self.capacity.page_size, **self._model.facts}

    @torch.inference_mode()
    def allocate(self, page_count: int) -> None:
        """Make the KV pool and run every kind of step once. Raises RuntimeError for another count than before."""
        if self._kv_cache and page_count != self.capacity.page_count:
            raise RuntimeError(f"{self.capacity.page_count} pages are allocated, the scheduler wants {page_count}")
        if self._kv_cache:
            return
        self.capacity = replace(self.capacity, page_count=page_count)
        model = self._model
        self._kv_cache = model.ops.allocate_kv(model.num_layers, page_count + 1, model.dtype)
        self._make_slots()
        self._warm_up()
        self.reset()

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
                raise OutOfMemoryError(str(error).splitlines()[0]) from error
            if isinstance(error, torch.AcceleratorError):
                # A fault inside a kernel poisons the CUDA context: every later call would fail too.
                raise DeviceLostError(str(error).splitlines()[0]) from error
            raise
        finally:
            self._finished_at = time.perf_counter()

    def _run(self, plan: StepPlan, step: int, scheduler_epoch: Epoch, started: float) -> PendingStep:
        self._apply_entries(plan)
        wait_s = started - self._finished_at
        if not plan.chunks and not len(plan.decode):
            times = StepTimes(wait_s, 0.0, 0.0, 0.0)
            return PendingStep(scheduler_epoch, step, plan, None, [], times, self._distrust_pages)
        page_size = self.capacity.page_size
        batch = build_batch(plan, self._slots, page_size, self._page_table, self._last_token, self._upload)
        prepared = time.perf_counter()
        logits = self._model.decoder.forward(batch, self._kv_cache, self._progress)
        computed = time.perf_counter()
        download, logprobs = (None, []) if logits is None else self._sample(batch, logits)
        sampled = time.perf_counter()
        times = StepTimes(wait_s, prepared - started, computed - prepared, sampled - computed)
        return PendingStep(scheduler_epoch, step, plan, download, logprobs, times, self._distrust_pages)

    def _sample(self, batch: ForwardBatch, logits: torch.Tensor) -> tuple[Download, list[tuple[int, TokenLogprobs]]]:
        rows = self._model.sampler.sample(logits, batch.host_slots, batch.host_positions)
        self._last_token.index_copy_(0, batch.sample_slots, rows.ids)
        return self._downloader.start(torch.where(rows.finite, rows.ids, -1)), rows.logprobs

    def _apply_entries(self, plan: StepPlan) -> None:
        for slot in plan.released:
            self._model.sampler.drop_slot(slot)
        for entered in plan.entered:
            frame = entered.frame
            ids = entered.ids.tolist()
            self._model.sampler.set_slot(entered.slot, frame.params, ids, frame.prompt_length, frame.choice)
        # On the CPU the table is the host's own memory.
        if len(plan.page_writes) and self._model.device.type != "cpu":
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

    def _make_slots(self) -> None:
        device = self._model.device
        self._slots = SlotTable(self.capacity)
        table = torch.from_numpy(self._slots.page_table)
        self._page_table = table if device.type == "cpu" else table.to(device)
        self._last_token = torch.zeros(self.capacity.max_slots + 1, dtype=torch.int64, device=device)

    def _warm_up(self) -> None:
        """Prefill and decode once at each size, so that no request pays for a first call or a compilation."""
        lengths = _CUDA_WARM_UP if self._model.device.type == "cuda" else _CPU_WARM_UP
        page_size = self.capacity.page_size
        limit = min(self.capacity.context_length - 2, self.capacity.page_count * page_size - 2)
        for length in sorted({min(length, limit) for length in lengths if limit >= 1}):
            pages = list(range(1, -(-(length + 2) // page_size) + 1))
            ids = pack_ids([0] * length)
            enter = Enter(0, 0, ids, length, 0, pack_ids(pages), SamplingParams(temperature=0.0), 0)
            self.launch(Step(_NOBODY, 0, b"", [enter], b"", [Chunk(0, length, True)], False, b""), _NOBODY).wait()
            self._progress()
            self.launch(Step(_NOBODY, 1, b"", [], b"", [], True, b""), _NOBODY).wait()
            self._progress()
            self.reset()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
