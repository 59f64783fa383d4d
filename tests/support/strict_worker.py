"""A worker for tests of the scheduler core: it computes nothing and checks everything.

Each KV position remembers the hash of the token sequence that was written there. Before a row "attends", every
position it reads must hold the hash of the row's own prefix, so a page that is shared, reused or rewritten wrongly is
caught at once, whatever the scheduler's own books say. With states, each slot has the hash of what it has computed, and
a checkpoint the one that was copied to it: a sequence must start from the state of exactly its cached prefix. With
windows the pages of each group are checked: there a row reads what its window reaches, and no more.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from quartet.wire.frames import Step, StepResult, StepTimes, pack_ids, unpack_ids
from quartet.wire.ids import Epoch

MODULUS = (1 << 61) - 1


def fold(state: int, token_id: int) -> int:
    """Return the hash of a sequence one token longer."""
    return (state * 1_000_003 + token_id + 7) % MODULUS


def hash_of(ids: Sequence[int]) -> int:
    """Return the hash of a sequence."""
    state = 0
    for token_id in ids:
        state = fold(state, token_id)
    return state


def _pairs(data: bytes) -> list[tuple[int, int]]:
    flat = unpack_ids(data)
    return list(zip(flat[::2], flat[1::2], strict=True))


def next_token(ids: Sequence[int], vocab_size: int) -> int:
    """Return the next token after `ids`: the oracle of the tests."""
    return hash_of(ids) % vocab_size


def continuation(prompt: Sequence[int], count: int, vocab_size: int, eos: int) -> list[int]:
    """Return the output a request must get: up to `count` tokens, ended by `eos`."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(next_token(ids, vocab_size))
        if ids[-1] == eos:
            break
    return ids[len(prompt) :]


@dataclass
class _Slot:
    generation: int
    ids: list[int]
    num_computed_tokens: int
    pages: list[dict[int, int]]
    """By page group."""
    is_prefilling: bool
    last_token: int = -1
    state: int = 0


class StrictWorker:
    """Applies Steps in order; `run` returns the StepResult. Raises AssertionError for any breach of the protocol.

    `oracle` returns the token that follows some ids, for a vocabulary. `checkpoints` are those of a model with states,
    -1 of another; `windows` are those of WorkerUp."""

    def __init__(
        self,
        epoch: Epoch,
        page_count: int,
        page_size: int,
        max_slots: int,
        vocab_size: int,
        oracle: Callable[[Sequence[int], int], int] = next_token,
        checkpoints: int = -1,
        windows: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.windows = [0, *(window for window, _ in windows)]
        self.page_counts = [page_count, *(count for _, count in windows)]
        self.checkpoint_count = checkpoints
        self.checkpoints: dict[int, int] = {}
        self.cached_lengths: list[int] = []
        self.oracle = oracle
        self.epoch = epoch
        self.page_size = page_size
        self.max_slots = max_slots
        self.vocab_size = vocab_size
        self.slots: dict[int, _Slot] = {}
        self.kv: dict[tuple[int, int, int], int] = {}
        self.last_step = 0

    def run(self, step: Step) -> StepResult:
        assert step.worker_epoch == self.epoch
        assert step.step > self.last_step
        self.last_step = step.step
        self.apply_changes(step)
        rows: list[tuple[int, int, int]] = []
        written: dict[tuple[int, int, int], int] = {}
        samples: list[tuple[int, int]] = []
        for chunk in step.chunks:
            slot = self.slots[chunk.slot]
            assert slot.is_prefilling and chunk.length > 0
            start, end = slot.num_computed_tokens, slot.num_computed_tokens + chunk.length
            assert end <= len(slot.ids) and chunk.is_last == (end == len(slot.ids))
            self._write(slot, end, written)
            slot.is_prefilling = not chunk.is_last
            rows.append((chunk.slot, start, end))
            if chunk.is_last:
                samples.append((chunk.slot, end))
        if step.decode:
            chunked = [number for number, _ in samples]
            decoding = [
                number for number, slot in self.slots.items() if not slot.is_prefilling and number not in chunked
            ]
            for number in self._given(step, decoding) if step.rows else decoding:
                slot = self.slots[number]
                if not step.rows:
                    slot.ids.append(slot.last_token)
                self._write(slot, slot.num_computed_tokens + 1, written)
                rows.append((number, slot.num_computed_tokens - 1, slot.num_computed_tokens))
                samples.append((number, slot.num_computed_tokens))
        for number, start, end in rows:
            self._check_reads(self.slots[number], start, end)
        for number, checkpoint in _pairs(step.saves):
            slot = self.slots[number]
            assert slot.num_computed_tokens % self.page_size == 0
            self.checkpoints[checkpoint] = slot.state
        return self._sample(step, samples)

    def _given(self, step: Step, decoding: list[int]) -> Iterator[int]:
        """Yield the slot of each row that a step names, with its token as the slot's last one that is not computed."""
        flat = unpack_ids(step.rows)
        triples = [tuple(flat[at : at + 3]) for at in range(0, len(flat), 3)]
        assert triples == sorted(triples, key=lambda row: row[:2]) and {row[0] for row in triples} == set(decoding)
        seen: set[int] = set()
        for number, context, token in triples:
            slot = self.slots[number]
            if number in seen:
                assert context == slot.num_computed_tokens + 1 and token >= 0
            else:
                assert len(slot.ids) >= context - 1, "a row beyond what has been computed"
                del slot.ids[context - 1 :]
                slot.num_computed_tokens = context - 1
                right = self.oracle(slot.ids, self.vocab_size)
                assert token in (right, -1), "a row does not begin with what its slot has sampled"
                token = right
            seen.add(number)
            slot.ids.append(token)
            yield number

    def apply_changes(self, step: Step) -> None:
        """Apply everything but the computation."""
        for number in unpack_ids(step.release):
            assert number in self.slots, f"slot {number} released twice"
            del self.slots[number]
        for enter in step.enter:
            assert enter.slot not in self.slots and 0 <= enter.slot < self.max_slots
            columns = [unpack_ids(column) for column in (enter.pages, *enter.window_pages)]
            assert len(columns) == len(self.windows) and len({len(column) for column in columns}) == 1
            assert 0 not in columns[0]
            pages = [{at: page for at, page in enumerate(column) if page} for column in columns]
            for own, count in zip(pages, self.page_counts, strict=True):
                assert all(0 < page <= count for page in own.values())
            ids = unpack_ids(enter.ids)
            assert enter.cached_length < len(ids) and enter.cached_length % self.page_size == 0
            slot = self.slots[enter.slot] = _Slot(enter.generation, ids, enter.cached_length, pages, True)
            self.cached_lengths.append(enter.cached_length)
            has_start = self.checkpoint_count >= 0 and enter.cached_length > 0
            assert (enter.checkpoint >= 0) == has_start and enter.checkpoint < max(0, self.checkpoint_count)
            if has_start:
                # Compared with the prefix when the sequence is computed: a step may follow one that fails.
                slot.state = self.checkpoints[enter.checkpoint]
        writes = unpack_ids(step.pages)
        for at in range(0, len(writes), 3):
            number, index, page = writes[at : at + 3]
            assert 0 < page <= self.page_counts[0]
            self.slots[number].pages[0][index] = page
        writes = unpack_ids(step.window_pages)
        for at in range(0, len(writes), 4):
            group, number, index, page = writes[at : at + 4]
            assert group > 0 and 0 <= page <= self.page_counts[group]
            own = self.slots[number].pages[group]
            own[index] = page
            if not page:
                del own[index]
        for number, checkpoint in _pairs(step.saves):
            # Until the step is computed it holds nothing: a step that fails leaves it so.
            assert number in self.slots and 0 <= checkpoint < self.checkpoint_count
            self.checkpoints[checkpoint] = -1

    def _write(self, slot: _Slot, end: int, written: dict[tuple[int, int, int], int]) -> None:
        state = hash_of(slot.ids[: slot.num_computed_tokens])
        assert self.checkpoint_count < 0 or slot.state == state, "the state of a slot is not that of its prefix"
        for position in range(slot.num_computed_tokens, end):
            state = fold(state, slot.ids[position])
            for group, pages in enumerate(slot.pages):
                place = (group, pages[position // self.page_size], position % self.page_size)
                assert place not in written, f"two rows of one step write page {place}"
                written[place] = state
                self.kv[place] = state
        slot.num_computed_tokens = end
        slot.state = state

    def _check_reads(self, slot: _Slot, start: int, end: int) -> None:
        """Check what the rows at positions `start` to `end` read."""
        firsts = [max(0, start + 1 - window) if window else 0 for window in self.windows]
        state = 0
        for position in range(end):
            state = fold(state, slot.ids[position])
            for group, first in enumerate(firsts):
                if position < first:
                    continue
                place = (group, slot.pages[group][position // self.page_size], position % self.page_size)
                assert self.kv.get(place) == state, f"position {position} reads a page that holds something else"

    def _sample(self, step: Step, samples: list[tuple[int, int]]) -> StepResult:
        """Sample the token after the first `end` ids of each (slot, end)."""
        found = [self.oracle(self.slots[number].ids[:end], self.vocab_size) for number, end in samples]
        for (number, _), token in zip(samples, found, strict=True):
            self.slots[number].last_token = token
        return StepResult(
            Epoch(1),
            step.step,
            pack_ids([number for number, _ in samples]),
            pack_ids([self.slots[number].generation for number, _ in samples]),
            pack_ids(found),
            [],
            [],
            StepTimes(0.0, 0.0, 0.0, 0.0),
        )
