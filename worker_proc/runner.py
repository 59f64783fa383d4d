"""One step on the device: apply its deltas, run the model, sample, and keep each sampled id for the next step.

The host has every length in advance and the device keeps the newest ids, so a step is launched before the ids of the
previous one have reached the host. Used by the executor's thread alone.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from quartet.wire.frames import Step, StepTimes
from quartet.wire.ids import Epoch
from worker_proc.batch import build_batch
from worker_proc.checkpoints import StateCheckpoints
from worker_proc.compilation import LateCompileCounter, compile_ahead
from worker_proc.completion_poller import CompletionPoller
from worker_proc.contract import Capacity, DeviceLostError, OutOfMemoryError, Start
from worker_proc.device_step import DeviceStep
from worker_proc.fused_sampler import FusedSampler
from worker_proc.grammar.slots import GrammarSlots
from worker_proc.graphs import GraphRunner, SharedBuffers
from worker_proc.kv_pool import is_out_of_memory, wait_for_memory
from worker_proc.loaded_model import LoadedModel
from worker_proc.ops.interface import LayerCache
from worker_proc.prefix_groups import PrefixGroupFinder
from worker_proc.prompt_scorer import InFlightScores, PromptScorer
from worker_proc.slots import SlotTable, StepRows
from worker_proc.step_sampler import StepSampler
from worker_proc.transfer import Downloader, Uploader
from worker_proc.warm_up import warm_up

if TYPE_CHECKING:
    from worker_proc.decode_graph_runner import DecodeGraphRunner
    from worker_proc.prefill_graph_runner import PrefillGraphRunner

_CPU_WARM_UP = (20,)
_CUDA_WARM_UP = (20, 300, 2000)


class ModelRunner:
    """See Runner.

    Args:
        model: loaded weights and what runs them.
        capacity: the page count it can hold, until `allocate` fixes it.
        progress: called per layer of a long prefill, so that it is not taken for a hang.
        start: how much of the warm-up `allocate` does, and how much steps do.
    """

    def __init__(
        self, model: LoadedModel, capacity: Capacity, progress: Callable[[], None], start: Start = Start.FIRST
    ) -> None:
        self.capacity = capacity
        self.grammars = model.grammars
        self._start = start
        self._uses_kernels = model.ops.name == "triton" and model.device.type == "cuda"
        self._has_kernels = False
        self._model = model
        self._progress = progress
        self._caches: list[LayerCache] = []
        self._upload = Uploader(model.device)
        self._downloader = Downloader(model.device, capacity.max_slots)
        self._poller = CompletionPoller(model.device)
        self._finished_at = time.perf_counter()
        self._has_bad_kv = False
        self._decode_graphs: DecodeGraphRunner | None = None
        self._prefill_graphs: PrefillGraphRunner | None = None
        self._late_compiles = LateCompileCounter()
        self._start_up: dict[str, float] = {}
        self._scorer = PromptScorer(model.decoder, capacity.vocab_size, progress)
        self._make_slots()

    def facts(self) -> dict[str, str | int | float]:
        """Return device, dtype, attention backend and KV capacity for the ready line, and how long phases took."""
        return {**self.capacity.facts(), **self._model.facts, **self._start_up}

    @property
    def late_compiles(self) -> int:
        """Kernels that Triton compiled or loaded after `load_kernels`; each of them delayed a step."""
        return self._late_compiles.count

    @property
    def is_prepared(self) -> bool:
        """Whether every graph is captured."""
        return all(runner.is_prepared for runner in self._graph_runners())

    @torch.inference_mode()
    def load_kernels(self) -> None:
        """Run every kind of step on one layer and a small pool."""
        warm_up_runner = self._warm_up_runner()
        if self._uses_kernels:
            compile_ahead(warm_up_runner.run_once, self._progress)
        # Whatever else loads at its first use, e.g. in cuBLAS, is loaded by one layer here instead of by all.
        warm_up_runner.run_once()
        del warm_up_runner
        if self._uses_kernels:
            torch.cuda.empty_cache()
        self._has_kernels = True

    def count_pages(self) -> None:
        """Set the page count of `capacity` by the memory that is free, once that of a dead worker is."""
        wait_for_memory(self._model.device)
        self.capacity = replace(self.capacity, page_count=self._model.count_pages())

    @torch.inference_mode()
    def allocate(self, page_count: int) -> None:
        """Make the KV pools and, at a first start, run every kind of step once and capture every graph.

        Raises RuntimeError for another count than before."""
        if self._caches and page_count != self.capacity.page_count:
            raise RuntimeError(f"{self.capacity.page_count} pages are allocated, the scheduler wants {page_count}")
        if self._caches:
            return
        self.capacity = replace(self.capacity, page_count=page_count)
        started = time.perf_counter()
        if self._uses_kernels and self._start is Start.FIRST:
            self.load_kernels()
        compiled = time.perf_counter()
        self._prepare()
        warm = time.perf_counter()
        if self._uses_kernels:
            self._capture()
        self.reset()
        phases = compiled - started, warm - compiled, time.perf_counter() - warm
        self._start_up = dict(zip(("kernels_s", "warm_up_s", "graphs_s"), phases, strict=True))

    @torch.inference_mode()
    def prepare_next(self) -> bool:
        """Capture a graph that no step has needed yet, of decode steps first; False if there is none."""
        return any(runner.prepare_next() for runner in reversed(self._graph_runners()))

    def run_once(self) -> None:
        """Run every kind of step once without CUDA graphs."""
        self._prepare()
        for runner in self._graph_runners():
            runner.run_once()

    def reset(self) -> None:
        """Forget every slot."""
        self._slots.clear()
        self._step_sampler.clear()

    @torch.inference_mode()
    def launch(self, step: Step, scheduler_epoch: Epoch) -> DeviceStep:
        """See Runner.launch; returns once the last kernel is queued."""
        started = time.perf_counter()
        self._step_sampler.finish()
        rows = None
        try:
            rows = self._slots.apply(step)
            in_flight = self._run(rows, step.step, scheduler_epoch, started)
            self._slots.commit(rows)
            return in_flight
        except Exception as error:
            self._slots.abandon(step, rows)
            if is_out_of_memory(error):
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

    def _run(self, rows: StepRows, step: int, scheduler_epoch: Epoch, started: float) -> DeviceStep:
        wait_s = started - self._finished_at
        runner, scores = self._graph_runner_for(rows), list[InFlightScores]()
        writes_by_graph = runner is not None and len(rows.page_writes) <= runner.max_page_writes
        self._apply_deltas(rows, writes_pages=not writes_by_graph)
        if not rows.chunks and not len(rows.decode):
            times = StepTimes(wait_s, 0.0, 0.0, 0.0)
            return DeviceStep(scheduler_epoch, step, rows, None, [], times, self._on_bad_rows, self._poller)
        if runner is not None:
            prepared = time.perf_counter()
            self._check_pages(rows)
            launched = runner.launch(rows, rows.page_writes if writes_by_graph else rows.page_writes[:0])
            computed = time.perf_counter()
            sampled = self._step_sampler.resample(rows.sampled, launched)
        else:
            page_size = self.capacity.page_size
            batch = build_batch(rows, self._slots, page_size, self._page_tables, self._last_token, self._upload)
            prepared = time.perf_counter()
            # Queued before the ids: when they have arrived on the host, so have the scores.
            score = partial(self._scorer.score, rows, self._slots.generation, scores)
            logits = self._model.decoder.forward(batch, self._caches, self._progress, on_hidden=score)
            computed = time.perf_counter()
            sampled = self._step_sampler.sample(rows.sampled, batch, logits)
        self._checkpoints.save(rows.saves)
        times = StepTimes(wait_s, prepared - started, computed - prepared, time.perf_counter() - computed)
        ids, logprobs, constrained = sampled
        parts = ids, logprobs, times, self._on_bad_rows, self._poller, scores, constrained
        return DeviceStep(scheduler_epoch, step, rows, *parts)

    def _recover(self) -> None:
        """Make the device agree with the host again: writes of the failed step may be missing."""
        if self._model.device.type != "cpu":
            self._page_tables.copy_(torch.from_numpy(self._slots.pages.tables))
        for runner in self._graph_runners():
            runner.recover()

    def _graph_runners(self) -> list[GraphRunner]:
        return [runner for runner in (self._prefill_graphs, self._decode_graphs) if runner is not None]

    def _graph_runner_for(self, rows: StepRows) -> GraphRunner | None:
        runner = self._prefill_graphs if rows.chunks else self._decode_graphs
        return runner if runner is not None and runner.can_run(rows) else None

    def _check_pages(self, rows: StepRows) -> None:
        """Raise StepError unless every position that the step writes has a page."""
        for group in range(len(self._page_tables)):
            self._slots.pages.at(rows.decode, rows.contexts - 1, group)
        for chunk in rows.chunks:
            self._slots.pages.check(chunk.slot, chunk.start, chunk.start + len(chunk.ids))

    def _apply_deltas(self, rows: StepRows, writes_pages: bool) -> None:
        self._step_sampler.apply(rows.released, rows.entered)
        self._checkpoints.restore(rows.entered)
        # On the CPU the page table is the host's own memory.
        if writes_pages and len(rows.page_writes) and self._model.device.type != "cpu":
            (writes,) = self._upload([rows.page_writes])
            self._page_tables.flatten(0, 1).index_put_((writes[:, 0], writes[:, 1]), writes[:, 2].int())
        if self._has_bad_kv and any(map(len, rows.fresh_pages)):
            fresh = self._upload(list(rows.fresh_pages))
            for cache, group in zip(self._caches, self._model.decoder.groups(), strict=True):
                if isinstance(cache, torch.Tensor) and group is not None and group < len(fresh):
                    cache.index_fill_(0, fresh[group], 0.0)

    def _on_bad_rows(self) -> None:
        """Clear pages before use from here on: masked keys have weight 0, but 0 * NaN is NaN.

        The scheduler receives bad rows in the same result, so it has not reused any of their pages yet."""
        self._has_bad_kv = True

    def _warm_up_runner(self) -> "ModelRunner":
        """Return a runner of the model's first layers with a small pool: it launches every kernel of this one."""
        model = replace(self._model, decoder=self._model.decoder.first_layers())
        pages = min(self.capacity.page_count, max(_CUDA_WARM_UP) // self.capacity.page_size + 2)
        return ModelRunner(model, self.capacity.warm_up(pages), self._progress)

    def _prepare(self) -> None:
        """Make what steps need and, at a first start, run the steps that no graph runner takes."""
        model, slots = self._model, self.capacity.max_slots + 1
        pages, rows = [count + 1 for count in self.capacity.page_counts], slots + self.capacity.checkpoints
        self._caches, states = model.decoder.allocate_caches(pages, rows, model.dtype, model.kv_dtype)
        self._checkpoints = StateCheckpoints(states, slots)
        self._make_slots()
        if self._start is Start.FIRST:
            lengths = _CUDA_WARM_UP if model.device.type == "cuda" else _CPU_WARM_UP
            warm_up(self.launch, self.capacity, lengths, self._progress)
            self._step_sampler.load_kernels(self.capacity.vocab_size, model.dtype)
        self._make_graph_runners()

    def _make_slots(self) -> None:
        device, sampler = self._model.device, self._model.sampler
        self._slots = SlotTable(self.capacity)
        self._page_tables = torch.from_numpy(self._slots.pages.tables).to(device)
        self._last_token = torch.zeros(self.capacity.max_slots + 1, dtype=torch.int64, device=device)
        self._fused_sampler = FusedSampler(sampler, self._last_token) if self._model.ops.name == "triton" else None
        grammars = GrammarSlots(self.grammars, self.capacity.max_slots, self.capacity.vocab_size)
        copies = self._upload, self._downloader
        self._step_sampler = StepSampler(sampler, self._fused_sampler, grammars, self._last_token, *copies)

    def _make_graph_runners(self) -> None:
        """Where our own kernels run, small steps run as graphs; made after steps without graphs are warm."""
        model, sampler = self._model, self._fused_sampler
        rows = min(model.max_graph_rows, self.capacity.max_slots)
        if sampler is None or not rows:
            return
        from worker_proc.decode_graph_runner import DecodeGraphRunner
        from worker_proc.ops import invariant_triton, triton_ops
        from worker_proc.prefill_graph_runner import PrefillGraphRunner

        assert isinstance(model.ops, triton_ops.TritonOps | invariant_triton.InvariantTritonOps)
        decoder, ops, capacity, dtype = model.decoder, model.ops, self.capacity, model.dtype
        buffers = SharedBuffers(self._caches, self._page_tables, self._last_token, self._poller)
        scratch = ops.decode_scratch(rows, self._slots.pages.max_pages)
        parts = decoder, scratch, sampler, buffers, capacity, dtype
        costs, table = ops.prefix_costs(), self._slots.pages.tables[0]
        groups = None if costs is None else PrefixGroupFinder(table, capacity.page_size, *costs)
        self._decode_graphs = DecodeGraphRunner(*parts, rows, groups)
        self._prefill_graphs = PrefillGraphRunner(*parts, model.max_graph_tokens, rows)

    def _capture(self) -> None:
        pool = torch.cuda.graph_pool_handle()
        for runner in self._graph_runners():
            if self._start is Start.FIRST:
                runner.capture(pool, self._progress)
            else:
                runner.capture_at_need(pool, self._has_kernels)
        if self._has_kernels:
            self._late_compiles.start()
