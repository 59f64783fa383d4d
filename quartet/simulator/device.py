"""The simulated worker under the virtual clock: applies a Step, computes how long it takes and what it samples.

A decode step touches no row: the rows of a batch age together. A slot that begins to decode notes the number of decode
steps so far; its KV length and the step in which it stops follow from that. Only a row that joins, leaves or stops
costs time.

    enter ──► prefilling ──last chunk──► joins the decoding rows ──release──► gone
"""

from array import array
from bisect import bisect_left
from collections import deque
from typing import Any

from msgspec import structs

from quartet.runtime.core import Metrics, Sent
from quartet.simulator.prompts import EOS_ID, OUTPUT_ID
from quartet.simulator.record import NEVER, Gaps, Run
from quartet.wire.codec import Source
from quartet.wire.frames import (
    ID_BYTES,
    Chunk,
    Enter,
    ProcessTable,
    SchedulerHello,
    Step,
    StepResult,
    StepTimes,
    WorkerHello,
    WorkerInbound,
    pack_ids,
    unpack_ids,
)
from quartet.wire.ids import Epoch
from scheduler_proc.core.step_cost import StepCost, pairs

OUTPUT_BYTES = pack_ids([OUTPUT_ID])
EOS_BYTES = pack_ids([EOS_ID])
ENDLESS = 1 << 40
"""Output tokens still to come of a request that only its length ends."""


class SimulatedSlot:
    """One sequence in a slot.

    `wish` counts the output tokens still to come at its entry, the last of which ends it. While it decodes,
    `base_tokens` plus the decode steps so far is its KV length, `stops_at` is the decode step that ends it.
    """

    __slots__ = (
        "base_tokens",
        "gaps",
        "generation",
        "is_decoding",
        "is_over",
        "kv_tokens",
        "number",
        "stops_at",
        "wish",
    )

    def __init__(self, number: int, generation: int, kv_tokens: int, wish: int, gaps: Gaps) -> None:
        self.number = number
        self.generation = generation
        self.kv_tokens = kv_tokens
        self.wish = wish
        self.gaps = gaps
        self.base_tokens = 0
        self.stops_at = 0
        self.is_decoding = False
        self.is_over = False


class SimulatedDevice:
    """Runs steps one after the other.

    Args:
        cost: how long a step takes.
        run: takes the times of tokens, the gaps between them and what was computed.
    """

    def __init__(self, cost: StepCost, run: Run) -> None:
        self._cost = cost
        self._run = run
        self._free_at_s = 0.0
        self._slot_states: dict[int, SimulatedSlot] = {}
        self._decodes = 0
        self._context_tokens = 0
        self._slots = array("i")
        self._generations = array("i")
        self._stops: dict[int, list[SimulatedSlot]] = {}
        self._row_counts: dict[int, tuple[Gaps, int]] = {}
        """By the identity of a class's gaps: how many of its rows had their last token in the last decode step."""
        self._last_decode_s = 0.0
        self._own_last_s: dict[int, float] = {}
        """By slot: the time of the last token of rows that were not in the last decode step."""

    def launch(self, step: Step, now: float) -> tuple[float, StepResult]:
        """Take a step; returns when it ends and its result. Steps begin in order, each when the last has ended."""
        for slot in unpack_ids(step.release):
            self._release(slot, now)
        for enter in step.enter:
            self._enter(enter, max(now, self._free_at_s))
        rows = len(self._slots) if step.decode else 0
        prefill_tokens = prefill_pairs = 0
        for chunk in step.chunks:
            prefill_tokens += chunk.length
            prefill_pairs += pairs(self._slot_states[chunk.slot].kv_tokens, chunk.length)
        context = self._context_tokens + rows if rows else 0
        duration_s = self._cost.of(prefill_tokens, prefill_pairs, rows, context)
        end_s = max(now, self._free_at_s) + duration_s
        self._free_at_s = end_s
        decoded = self._decode(end_s) if rows else (b"", b"", b"")
        sampled = self._prefill(step.chunks, end_s)
        self._run.steps += 1
        self._run.decode_rows += rows
        slots, generations, ids = (first + second for first, second in zip(sampled, decoded, strict=True))
        times = StepTimes(0.0, 0.0, duration_s, 0.0)
        return end_s, StepResult(Epoch(1), step.step, slots, generations, ids, [], [], times)

    def _enter(self, enter: Enter, now: float) -> None:
        # The seed of a simulated request is its number in the workload.
        number = enter.params.seed
        outcome = self._run.outcomes[number]
        length = len(enter.ids) // ID_BYTES
        outcome.recomputed_tokens += max(0, min(outcome.computed_tokens, length) - enter.cached_length)
        if outcome.admissions == 0:
            outcome.admitted_s, outcome.cached_tokens = now, enter.cached_length
        outcome.admissions += 1
        outcome.computed_tokens = enter.cached_length
        outcome.entered_s.append(now)
        label = outcome.request.label
        gaps = self._run.gaps.get(label)
        if gaps is None:
            gaps = self._run.gaps[label] = Gaps()
        request = outcome.request
        wish = ENDLESS
        if request.output_tokens < request.max_tokens:
            wish = request.output_tokens - (length - enter.prompt_length)
        assert enter.slot not in self._slot_states, f"slot {enter.slot} is entered while it is taken"
        self._slot_states[enter.slot] = SimulatedSlot(number, enter.generation, enter.cached_length, wish, gaps)

    def _release(self, slot: int, now: float) -> None:
        state = self._slot_states.pop(slot)
        outcome = self._run.outcomes[state.number]
        outcome.left_s.append(max(now, self._free_at_s))
        if state.is_decoding:
            last_s = self._own_last_s.pop(slot, NEVER)
            if last_s == NEVER:
                last_s = self._last_decode_s
                self._slow_down(state)
            if not state.is_over:
                outcome.last_token_s = last_s
                self._stops[state.stops_at].remove(state)
            length = self._length(state)
            self._context_tokens -= length
            at = bisect_left(self._slots, slot)
            del self._slots[at], self._generations[at]
        else:
            length = state.kv_tokens
        outcome.computed_tokens = max(outcome.computed_tokens, length)

    def _slow_down(self, state: SimulatedSlot) -> None:
        """Take a row out of those that share the last decode step, unless it has stopped and left them already."""
        if not state.is_over:
            gaps, count = self._row_counts[id(state.gaps)]
            self._row_counts[id(state.gaps)] = (gaps, count - 1)

    def _length(self, state: SimulatedSlot) -> int:
        return state.base_tokens + self._decodes

    def _decode(self, end_s: float) -> tuple[bytes, bytes, bytes]:
        """Advance every decoding row; returns the columns of the result."""
        slots, generations = self._slots, self._generations
        self._decodes += 1
        self._context_tokens += len(slots)
        for gaps, count in self._row_counts.values():
            if count:
                gaps.add(end_s - self._last_decode_s, count)
        for slot in list(self._own_last_s):
            state = self._slot_states[slot]
            if not state.is_over:
                state.gaps.add(end_s - self._own_last_s.pop(slot))
                gaps, count = self._row_counts.get(id(state.gaps), (state.gaps, 0))
                self._row_counts[id(state.gaps)] = (gaps, count + 1)
        self._last_decode_s = end_s
        ids = OUTPUT_BYTES * len(slots)
        stops = self._stops.pop(self._decodes, None)
        if stops:
            ids = self._stop(stops, generations, ids)
        return slots.tobytes(), generations.tobytes(), ids

    def _stop(self, stops: list[SimulatedSlot], generations: "array[int]", ids: bytes) -> bytes:
        """Make the rows that say their last token end the sequence; what they decode after that is wasted."""
        changed = bytearray(ids)
        for state in stops:
            at = generations.index(state.generation) * ID_BYTES
            changed[at : at + ID_BYTES] = EOS_BYTES
            self._slow_down(state)
            state.is_over = True
        return bytes(changed)

    def _prefill(self, chunks: list[Chunk], end_s: float) -> tuple[bytes, bytes, bytes]:
        """Advance the prompts in progress; returns the columns of those whose last token is computed."""
        slots, generations, ids = array("i"), array("i"), b""
        for chunk in chunks:
            state = self._slot_states[chunk.slot]
            state.kv_tokens += chunk.length
            outcome = self._run.outcomes[state.number]
            outcome.computed_tokens = max(outcome.computed_tokens, state.kv_tokens)
            if not chunk.is_last:
                continue
            if outcome.first_token_s == NEVER:
                outcome.first_token_s = end_s
            else:
                state.gaps.add(end_s - outcome.last_token_s)
            slots.append(chunk.slot)
            generations.append(state.generation)
            ids += EOS_BYTES if state.wish == 1 else OUTPUT_BYTES
            self._join(chunk.slot, state, end_s)
        return slots.tobytes(), generations.tobytes(), ids

    def _join(self, slot: int, state: SimulatedSlot, end_s: float) -> None:
        state.is_decoding = True
        state.is_over = state.wish <= 1
        state.base_tokens = state.kv_tokens - self._decodes
        self._context_tokens += state.kv_tokens
        self._own_last_s[slot] = end_s
        if not state.is_over:
            state.stops_at = self._decodes + state.wish - 1
            self._stops.setdefault(state.stops_at, []).append(state)
        at = bisect_left(self._slots, slot)
        self._slots.insert(at, slot)
        self._generations.insert(at, state.generation)


class DeviceCore:
    """The simulated worker as a core: takes part in the handshake, and returns each result when its step ends.

    Args:
        device: runs the steps.
        hello: what the worker reports of itself; not ready.
        run: takes the admissions that steps make.
    """

    inbound: Any = WorkerInbound

    def __init__(self, device: SimulatedDevice, hello: WorkerHello, run: Run) -> None:
        self._device = device
        self._hello = hello
        self._run = run
        self._in_flight: deque[tuple[float, StepResult]] = deque()

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        """Launch a step, or greet the scheduler."""
        match frame:
            case Step():
                self._note_admissions(frame)
                self._in_flight.append(self._device.launch(frame, now))
            case SchedulerHello():
                return [("scheduler-0", structs.replace(self._hello, is_ready=True))]
            case ProcessTable():
                return [("scheduler-0", self._hello)]
        return []

    def tick(self, now: float) -> list[Sent]:
        """Return the result of the step that has ended."""
        return [("scheduler-0", self._in_flight.popleft()[1])]

    def next_deadline(self) -> float | None:
        """Return when the oldest step ends."""
        return self._in_flight[0][0] if self._in_flight else None

    def is_idle(self) -> bool:
        """Say whether no step is in flight."""
        return not self._in_flight

    def metrics(self) -> Metrics:
        """Return none: the record has them."""
        return Metrics({}, {})

    def _note_admissions(self, step: Step) -> None:
        run = self._run
        fresh = [enter.params.seed for enter in step.enter if run.outcomes[enter.params.seed].admissions == 0]
        if fresh:
            for number in fresh:
                run.outcomes[number].passes_at_admission = len(run.admitting_passes)
            run.admission_order += fresh
            run.admitting_passes.append(max(fresh))
