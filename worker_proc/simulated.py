"""A runner without a model: the next id is a hash of all ids before it, so any lost, doubled or altered token shows.

It keeps the ids of each step in simulated KV pages and checks them: a prefix that the pages do not hold, or a page that
belongs to two sequences, fails the step. It never samples an end-of-sequence id, so that only length ends a request,
unless a script has the ids of an answer (worker_proc.scripted) or a grammar allows one: a row with a grammar gets one
of the ids that are allowed. No torch; numpy only, about a tenth of a microsecond a row.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quartet.runtime.clock import Clock
from quartet.sizing.model_bytes import SIMULATED_TOKENS, default_slots
from quartet.wire.config import Config
from quartet.wire.frames import SamplingParams, Step, StepResult, StepTimes, TokenLogprobs
from quartet.wire.ids import Epoch
from worker_proc.contract import Capacity, StepError
from worker_proc.scripted import Script
from worker_proc.simulated_grammars import SimulatedGrammars
from worker_proc.simulated_scores import simulated_scores
from worker_proc.slots import Entered, IntArray, SlotTable, StepRows

Words = NDArray[np.uint64]

FACTOR = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


class HashModel:
    """The function from a sequence to its next id: a polynomial in an odd FACTOR modulo 2**64, then a finaliser.

    The state of ids a, b, c is ((a+1)*F + b+1)*F + c+1: it can be extended token by token.
    """

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...], context_length: int) -> None:
        allowed = np.setdiff1d(np.arange(vocab_size), np.array(eos_token_ids, dtype=np.int64))
        self._allowed = allowed if len(allowed) else np.arange(vocab_size)
        powers = np.empty(context_length + 1, dtype=np.uint64)
        powers[0], power = 1, 1
        for i in range(1, len(powers)):
            power = power * FACTOR & MASK
            powers[i] = power
        self._powers = powers

    def extend(self, state: int, ids: IntArray) -> int:
        """Return the state after `ids` more."""
        count = len(ids)
        terms = (ids.astype(np.uint64) + np.uint64(1)) * self._powers[:count][::-1]
        return (state * int(self._powers[count]) + int(terms.sum(dtype=np.uint64))) & MASK

    def step(self, states: Words, ids: IntArray) -> Words:
        """Return the states [n] after one more id each."""
        return states * np.uint64(FACTOR) + (ids.astype(np.uint64) + np.uint64(1))

    def sample(self, states: Words) -> IntArray:
        """Return the next id of each state [n]; never an end-of-sequence id."""
        return self._allowed[(self.hash(states) % np.uint64(len(self._allowed))).astype(np.int64)]

    def hash(self, states: Words) -> Words:
        """Return the numbers [n] by which the next ids are chosen."""
        mixed = (states ^ (states >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        return mixed

    def continuation(self, ids: list[int], count: int) -> list[int]:
        """Return the `count` ids that the simulated worker samples after `ids`, for tests."""
        state = np.array([self.extend(0, np.array(ids, dtype=np.int64))], dtype=np.uint64)
        out: list[int] = []
        for _ in range(count):
            sampled = self.sample(state)
            out.append(int(sampled[0]))
            state = self.step(state, sampled)
        return out


class SimulatedStep:
    """An InFlightStep that is done when its simulated time is over."""

    def __init__(self, result: StepResult, done_at_s: float, clock: Clock, sleep: Callable[[float], None]) -> None:
        self._result = result
        self._done_at_s = done_at_s
        self._clock = clock
        self._sleep = sleep

    def is_done(self) -> bool:
        """Return whether the simulated time has passed."""
        return self._clock.now() >= self._done_at_s

    def wait(self) -> StepResult:
        """Sleep for the rest of the simulated time."""
        left_s = self._done_at_s - self._clock.now()
        if left_s > 0:
            self._sleep(left_s)
        return self._result


class SimulatedRunner:
    """In-memory Runner: the same deltas and results as the model runner's, without a device.

    Args:
        config: the model's limits, page size, capacity and the time of a step.
        clock: the time by which a step of `simulated_step_ms` is over.
        sleep: waits for that time; replaced together with the clock in tests.
    """

    late_compiles = 0
    is_prepared = True

    def __init__(self, config: Config, clock: Clock, sleep: Callable[[float], None] = time.sleep) -> None:
        model, worker = config.require_model(), config.worker
        page_count = (worker.max_total_tokens or SIMULATED_TOKENS) // worker.page_size
        max_slots = config.scheduler.max_running_requests or default_slots(page_count * worker.page_size, False)
        self.capacity = Capacity(
            page_size=worker.page_size,
            page_count=page_count,
            max_slots=max_slots,
            vocab_size=model.vocab_size,
            context_length=model.context_length,
            device="simulated",
        )
        self.model = HashModel(model.vocab_size, model.eos_token_ids, model.context_length)
        self._script = Script(config) if config.script else None
        self._grammars = SimulatedGrammars(config)
        self.grammars = self._grammars.compiler
        self._clock = clock
        self._sleep = sleep
        self._step_s = worker.simulated_step_ms / 1000
        self._free_at_s = 0.0
        self._is_allocated = False
        self._make_state()

    def facts(self) -> dict[str, str | int | float]:
        """Return the facts of the ready line."""
        tokens = self.capacity.page_count * self.capacity.page_size
        return {"kv_tokens": tokens, "device": "simulated", "dtype": "none", "attention": "none"}

    def load_kernels(self) -> None:
        """Do nothing: there are none."""

    def count_pages(self) -> None:
        """Do nothing: the configuration has set the page count."""

    def prepare_next(self) -> bool:
        """Return False: nothing was left for later."""
        return False

    def allocate(self, page_count: int) -> None:
        """Make the simulated pool of exactly `page_count` pages."""
        if self._is_allocated and page_count != self.capacity.page_count:
            raise RuntimeError(f"{self.capacity.page_count} pages are allocated, the scheduler wants {page_count}")
        if page_count != self.capacity.page_count:
            self.capacity = replace(self.capacity, page_count=page_count)
        self._is_allocated = True
        self._make_state()

    def reset(self) -> None:
        """Forget every slot and what the pages held."""
        self._make_state()

    def launch(self, step: Step, scheduler_epoch: Epoch) -> SimulatedStep:
        """Run the step at once; its result is done after the simulated time."""
        started = self._clock.now()
        rows = None
        try:
            self._check_released(step)
            rows = self._slots.apply(step)
            ids = self._run(rows)
            is_scripted = None if self._script is None else self._script.replace(rows.sampled, rows.positions, ids)
            errors = self._grammars.constrain(rows.sampled, ids, is_scripted, self._hashes)
            self._keep(rows, ids)
            self._slots.commit(rows)
        except Exception:
            self._slots.abandon(step, rows)
            raise
        spent_s = self._clock.now() - started
        result = StepResult(
            scheduler_epoch=scheduler_epoch,
            step=step.step,
            slots=rows.owners.slots,
            generations=rows.owners.generations,
            ids=ids.astype("<i4").tobytes(),
            logprobs=self._logprobs(rows, ids) if self._with_logprobs else [],
            bad_rows=[],
            times=StepTimes(0.0, 0.0, spent_s, 0.0),
            scored=simulated_scores(rows.chunks, self._slots.generation, self.capacity.vocab_size),
            grammar_errors=errors,
        )
        self._free_at_s = max(self._free_at_s, started) + self._step_s
        return SimulatedStep(result, self._free_at_s if self._step_s else started, self._clock, self._sleep)

    def _make_state(self) -> None:
        rows = self.capacity.max_slots + 1
        self._slots = SlotTable(self.capacity)
        self._grammars.clear(self.capacity)
        self._kv = np.full((self.capacity.page_count + 1) * self.capacity.page_size, -1, dtype=np.int64)
        # `states` covers all ids of a slot, `kv_states` those whose KV is written.
        self._states = np.zeros(rows, dtype=np.uint64)
        self._kv_states = np.zeros(rows, dtype=np.uint64)
        self._newest = np.zeros(rows, dtype=np.int64)
        self._with_logprobs: dict[int, SamplingParams] = {}

    def _run(self, rows: StepRows) -> IntArray:
        slots, decode = self._slots, rows.decode
        self._grammars.apply(rows)
        for entered in rows.entered:
            self._begin(entered)
        for chunk in rows.chunks:
            positions = chunk.start + np.arange(len(chunk.ids))
            self._write(np.full_like(positions, chunk.slot), positions, chunk.ids)
            self._kv_states[chunk.slot] = self.model.extend(int(self._kv_states[chunk.slot]), chunk.ids)
        for entered in rows.entered:
            self._check_cached(entered)
        if rows.given is not None:
            return self._run_given(rows, rows.given)
        if len(decode):
            self._write(decode, slots.kv_length[decode], self._newest[decode])
            self._kv_states[decode] = self._states[decode]
        return self.model.sample(self._states[rows.sampled])

    def _run_given(self, rows: StepRows, given: IntArray) -> IntArray:
        """Compute rows that the step names: each follows what the pages hold before it."""
        states = self._states[rows.sampled]
        first = len(states) - len(rows.decode)
        for at, (slot, context) in enumerate(zip(rows.decode.tolist(), rows.contexts.tolist(), strict=True)):
            token = np.array([given[at] if given[at] >= 0 else self._newest[slot]], dtype=np.int64)
            self._write(np.array([slot]), np.array([context - 1]), token)
            state = self.model.extend(0, self._read(slot, context))
            states[first + at] = self._kv_states[slot] = self._states[slot] = state
        return self.model.sample(states)

    def _hashes(self, slots: IntArray) -> list[int]:
        return [int(number) for number in self.model.hash(self._states[slots])]

    def _keep(self, rows: StepRows, ids: IntArray) -> None:
        self._newest[rows.sampled] = ids
        self._states[rows.sampled] = self.model.step(self._states[rows.sampled], ids)

    def _begin(self, entered: Entered) -> None:
        slot, cached = entered.slot, entered.frame.cached_length
        self._kv_states[slot] = self.model.extend(0, entered.ids[:cached])
        self._states[slot] = self.model.extend(0, entered.ids)
        if self._script is not None:
            self._script.begin(entered)
        self._with_logprobs.pop(slot, None)
        if entered.frame.params.logprobs >= 0:
            self._with_logprobs[slot] = entered.frame.params

    def _check_cached(self, entered: Entered) -> None:
        # After the step's writes, as on a device: a chunk of the same step may write the prefix.
        cached = entered.frame.cached_length
        if cached and not np.array_equal(self._read(entered.slot, cached), entered.ids[:cached]):
            raise StepError(f"the pages of slot {entered.slot} do not hold the {cached} ids said to be cached")

    def _check_released(self, step: Step) -> None:
        if not step.release:
            return
        for slot in np.frombuffer(step.release, dtype="<i4").tolist():
            length = int(self._slots.kv_length[slot]) if 0 <= slot < self.capacity.max_slots else 0
            if length and self.model.extend(0, self._read(slot, length)) != int(self._kv_states[slot]):
                raise StepError(f"the pages of slot {slot} were written by another sequence")

    def _write(self, slots: IntArray, positions: IntArray, ids: IntArray) -> None:
        page_size = self.capacity.page_size
        self._kv[self._slots.pages.at(slots, positions) * page_size + positions % page_size] = ids

    def _read(self, slot: int, length: int) -> IntArray:
        positions = np.arange(length)
        pages = self._slots.pages.at(np.full_like(positions, slot), positions)
        page_size = self.capacity.page_size
        held: IntArray = self._kv[pages * page_size + positions % page_size]
        return held

    def _logprobs(self, rows: StepRows, ids: IntArray) -> list[tuple[int, TokenLogprobs]]:
        found = []
        for row, (slot, token) in enumerate(zip(rows.sampled.tolist(), ids.tolist(), strict=True)):
            params = self._with_logprobs.get(slot)
            if params is not None:
                others = ((token + i) % self.capacity.vocab_size for i in range(params.logprobs))
                top = tuple((other, -0.5 - i) for i, other in enumerate(others))
                found.append((row, TokenLogprobs(-0.5, top)))
        return found
