"""The slots: the host's authoritative state of each running sequence, and what one step means for them.

A slot goes  free ──enter──► prefill ──last chunk──► decode ──release──► free.  Its KV holds `kv_length` tokens. In
decode the newest token is known (to the device) but not yet in KV, so it sits at position `kv_length`:

    prompt and resumed ids ........................ | sampled ids ..................... | newest
    0                                       prefill end                        kv_length

Which pages hold it is in the page tables (page_tables.py). Numpy only, never torch: the runner keeps the device's copy
of what changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from quartet.wire.frames import Chunk, Enter, Step
from worker_proc.checkpoint_rows import check_start, saved_rows
from worker_proc.contract import Capacity, StepError
from worker_proc.given_rows import given_rows
from worker_proc.page_tables import NO_PAGES, NO_WRITES, PageTables, ids_of, lies_within
from worker_proc.page_tables import IntArray as IntArray

_WIRE = np.dtype("<i4")
_NO_SLOTS: IntArray = np.empty(0, dtype=np.int64)
_NO_SAVES: IntArray = np.empty((0, 2), dtype=np.int64)
FREE, PREFILL, DECODE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Entered:
    """A sequence that entered a slot: its ids so far and its Enter frame."""

    slot: int
    ids: IntArray
    frame: Enter


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """Prefill of `ids` at positions from `start` on, in one slot; its last token is sampled from if `is_last`.

    With `alternatives` 0 and more, log-probabilities of prompt tokens are wanted, with so many alternatives: `targets`
    are the prompt's ids from `start` + 1 on, which the chunk's first logits rows are for.
    """

    slot: int
    start: int
    ids: IntArray
    is_last: bool
    alternatives: int = -1
    targets: IntArray = field(default_factory=lambda: _NO_SLOTS)


@dataclass(frozen=True, slots=True)
class RowOwners:
    """Slot and generation of each sampled row, as int32 bytes as in StepResult."""

    slots: bytes
    generations: bytes


_NO_OWNERS = RowOwners(b"", b"")


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of one step, resolved against the slots on the host.

    `page_writes` are the changed (row, index, page) entries of the page tables, [n, 3]; `fresh_pages` are, by page
    group, those of their pages that hold nothing yet, which excludes cached ones. `decode` are the slots of the rows
    that decode one token, ascending, and `contexts` their lengths including that token. `given` are the ids of those
    tokens, -1 for one that the slot has sampled last; None if all have been. `sampled` are the slots of the sampled
    rows: those of the last chunks in the order of `chunks`, then `decode`; `owners` encodes them for the result.
    `saves` [n, 2]: slots whose states are kept after the step, and the checkpoints.
    """

    released: Sequence[int]
    entered: Sequence[Entered]
    page_writes: IntArray
    fresh_pages: Sequence[IntArray]
    chunks: Sequence[ChunkRows]
    decode: IntArray
    contexts: IntArray
    sampled: IntArray
    owners: RowOwners
    given: IntArray | None = None
    saves: IntArray = field(default_factory=lambda: _NO_SAVES)

    @property
    def positions(self) -> IntArray:
        """The index in its sequence of the id that each sampled row samples."""
        ends = [chunk.start + len(chunk.ids) for chunk in self.chunks if chunk.is_last]
        return np.concatenate((np.array(ends, dtype=np.int64), self.contexts))


class SlotTable:
    """State of every slot: `pages` are its page tables, `kv_length` is [max_slots + 1] int64."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        rows = capacity.max_slots + 1
        self.pages = PageTables(capacity)
        self.kv_length = np.zeros(rows, dtype=np.int64)
        self.generation = np.zeros(rows, dtype=np.int64)
        self._state = np.zeros(rows, dtype=np.uint8)
        self._prefilling: dict[int, Entered] = {}
        # Cached, because most steps decode the same slots as the step before.
        self._decoding: tuple[IntArray, RowOwners] | None = None

    def clear(self) -> None:
        """Free every slot."""
        self._state[:] = FREE
        self._decoding = None
        self.pages.clear()
        self.kv_length[:] = 0
        self._prefilling.clear()

    def apply(self, step: Step) -> StepRows:
        """Apply the deltas of `step` in field order and return its rows; raises StepError if they contradict the slots.

        The lengths change only in `commit`."""
        released = [self._checked(slot) for slot in ids_of(step.release).tolist()] if step.release else []
        for slot in released:
            self._free(slot)
        entered = [self._enter(frame) for frame in step.enter]
        changes = [self.pages.grant(one.slot, one.frame) for one in entered]
        if step.pages or step.window_pages:
            changes.append(self.pages.write(step))
        if step.rows:
            decode, contexts, given = given_rows(ids_of(step.rows), self._state == DECODE, self._capacity)
            owners = self._owners(decode)
        else:
            (decode, owners), given = self._decode_rows(step), None
            contexts = self.kv_length[decode] + 1
        if len(step.chunks) > 1 and len({chunk.slot for chunk in step.chunks}) < len(step.chunks):
            raise StepError("two chunks of one slot in a step")
        chunks = [self._chunk(chunk) for chunk in step.chunks]
        last = [chunk.slot for chunk in chunks if chunk.is_last]
        sampled = decode
        if last:
            sampled = _joined([np.array(last, dtype=np.int64), decode], _NO_SLOTS)
            owners = self._owners(sampled)
        saves = saved_rows(ids_of(step.saves), self._state != FREE, self._capacity) if step.saves else _NO_SAVES
        by_group = zip_longest(*(fresh for _, fresh in changes), fillvalue=NO_PAGES)
        pages = (
            _joined([writes for writes, _ in changes], NO_WRITES),
            [_joined(list(own), NO_PAGES) for own in by_group],
        )
        return StepRows(released, entered, *pages, chunks, decode, contexts, sampled, owners, given, saves)

    def commit(self, rows: StepRows) -> None:
        """Count the tokens of a launched step as being in KV."""
        self.kv_length[rows.decode] = rows.contexts
        for chunk in rows.chunks:
            self.kv_length[chunk.slot] += len(chunk.ids)
            if chunk.is_last:
                self._state[chunk.slot] = DECODE
                self._decoding = None
                self._prefilling.pop(chunk.slot, None)

    def abandon(self, step: Step, rows: StepRows | None) -> None:
        """Deactivate every slot of a failed step; if it was not resolved to rows, every slot that it could name."""
        slots = {enter.slot for enter in step.enter} | {chunk.slot for chunk in step.chunks}
        if rows is not None:
            slots.update(rows.decode.tolist())
        elif step.decode:
            slots.update(np.flatnonzero(self._state == DECODE).tolist())
        for slot in slots:
            if 0 <= slot < self._capacity.max_slots:
                self._free(slot)

    def _checked(self, slot: int) -> int:
        if not 0 <= slot < self._capacity.max_slots:
            raise StepError(f"slot {slot} is outside 0..{self._capacity.max_slots - 1}")
        return slot

    def _free(self, slot: int) -> None:
        self._state[slot] = FREE
        self._decoding = None
        self.kv_length[slot] = 0
        self.pages.free(slot)
        self._prefilling.pop(slot, None)

    def _enter(self, frame: Enter) -> Entered:
        slot = self._checked(frame.slot)
        if self._state[slot] != FREE:
            raise StepError(f"slot {slot} is entered while it is taken")
        ids = ids_of(frame.ids)
        vocab_size, context = self._capacity.vocab_size, self._capacity.context_length
        if not 0 < len(ids) <= context:
            raise StepError(f"{len(ids)} ids for a context of {context}")
        if not lies_within(ids, 0, vocab_size):
            raise StepError(f"an id outside the vocabulary of {vocab_size}")
        if not 0 <= frame.cached_length < len(ids):
            raise StepError(f"{frame.cached_length} of {len(ids)} ids cached: at least one must be computed")
        check_start(frame, self._capacity)
        self._state[slot] = PREFILL
        self.kv_length[slot] = frame.cached_length
        self.generation[slot] = frame.generation
        entered = self._prefilling[slot] = Entered(slot, ids, frame)
        return entered

    def _decode_rows(self, step: Step) -> tuple[IntArray, RowOwners]:
        if not step.decode:
            return _NO_SLOTS, _NO_OWNERS
        if self._decoding is None:
            slots = np.flatnonzero(self._state == DECODE)
            self._decoding = slots, self._owners(slots)
        return self._decoding

    def _owners(self, slots: IntArray) -> RowOwners:
        return RowOwners(slots.astype(_WIRE).tobytes(), self.generation[slots].astype(_WIRE).tobytes())

    def _chunk(self, chunk: Chunk) -> ChunkRows:
        slot = self._checked(chunk.slot)
        if self._state[slot] != PREFILL:
            raise StepError(f"slot {slot} is not in prefill")
        entered, start = self._prefilling[slot], int(self.kv_length[slot])
        ids, frame = entered.ids, entered.frame
        end = start + chunk.length
        if chunk.length < 1 or end > len(ids) or chunk.is_last != (end == len(ids)):
            raise StepError(f"chunk {start}..{end} (last: {chunk.is_last}) of {len(ids)} ids in slot {slot}")
        if frame.params.prompt_logprobs < 0:
            return ChunkRows(slot, start, ids[start:end], chunk.is_last)
        targets = ids[start + 1 : min(end + 1, frame.prompt_length)]
        return ChunkRows(slot, start, ids[start:end], chunk.is_last, frame.params.prompt_logprobs, targets)


def _joined(parts: list[IntArray], nothing: IntArray) -> IntArray:
    """Return one array of all parts; copies only if several of them are not empty."""
    filled = [part for part in parts if len(part)]
    if not filled:
        return nothing
    return filled[0] if len(filled) == 1 else np.concatenate(filled)
