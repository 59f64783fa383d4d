"""Where each slot stands in its grammar: a matcher for each, advanced by output ids, and the mask of the next id."""

from collections.abc import Sequence

import numpy as np
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray

from quartet.checkpoint.tokenizer_loading import is_library_error
from quartet.wire.frames import Grammar
from worker_proc.grammar.compiler import GrammarCompiler
from worker_proc.slots import Entered

COMPILED_KIND = "llguidance"
BITS = 32
LONGEST_ERROR = 300
_MOST_INLINE = 2
"""Masks that one thread computes sooner than several would begin."""
_NO_ROWS: NDArray[np.int64] = np.empty(0, dtype=np.int64)
Masks = NDArray[np.int32]


class SlotGrammar:
    """One sequence and its grammar: a function of the output ids.

    Args:
        compiler: has the grammar, or compiles it when the first mask is wanted.
        grammar: of kind llguidance.
        output_ids: the output so far.
    """

    __slots__ = ("_compiler", "_grammar", "_matcher", "_unread", "error")

    def __init__(self, compiler: GrammarCompiler, grammar: Grammar, output_ids: list[int]) -> None:
        self._compiler = compiler
        self._grammar = grammar
        self._unread = output_ids
        self._matcher: LLMatcher | None = None
        self.error = ""

    def take(self, token_id: int) -> None:
        """Advance by one more output id; read when the next mask is wanted."""
        self._unread.append(token_id)

    def advanced(self) -> LLMatcher | None:
        """Return the matcher after all output ids, or None and set `error`."""
        if self.error:
            return None
        if self._matcher is None and not self._begin():
            return None
        assert self._matcher is not None
        unread, self._unread = self._unread, []
        # What follows the end is the surplus row of a sequence that has ended.
        if unread and not self._matcher.is_stopped() and not self._matcher.consume_tokens(unread):
            self.fail(self._matcher.get_error())
            return None
        return self._matcher

    def _begin(self) -> bool:
        if self._grammar.kind != COMPILED_KIND:
            self.fail(f"it is of kind {self._grammar.kind}, which has not been made ready")
            return False
        compiled = self._compiler.matcher(self._grammar.source)
        if compiled.matcher is None:
            self.fail(compiled.error)
            return False
        self._matcher = compiled.matcher.deep_copy()
        return True

    def fail(self, why: str) -> None:
        """Give up: no further id can be said to match. The first line of `why` is kept."""
        self.error = why.strip().partition("\n")[0][:LONGEST_ERROR] or "it does not allow the output so far"
        self._matcher = None


class GrammarSlots:
    """The grammars of the slots of one runner.

    Args:
        compiler: of the process.
        max_slots: slots of the runner.
        vocab_size: bits of a mask.
    """

    def __init__(self, compiler: GrammarCompiler, max_slots: int, vocab_size: int) -> None:
        self._compiler = compiler
        self._slots: dict[int, SlotGrammar] = {}
        self._is_constrained = np.zeros(max_slots, dtype=np.bool_)
        self._words = -(-vocab_size // BITS)
        self._executor: LLExecutor | None = None

    def enter(self, entered: Entered) -> None:
        """Assign a slot to a sequence, with a grammar or without."""
        grammar, slot = entered.frame.params.grammar, entered.slot
        if grammar is None:
            self.release(slot)
            return
        output_ids = entered.ids[entered.frame.prompt_length :].tolist()
        self._slots[slot] = SlotGrammar(self._compiler, grammar, output_ids)
        self._is_constrained[slot] = True

    def release(self, slot: int) -> None:
        """Forget a slot."""
        if self._slots.pop(slot, None) is not None:
            self._is_constrained[slot] = False

    def clear(self) -> None:
        """Forget every slot."""
        self._slots.clear()
        self._is_constrained[:] = False

    def rows(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of `slots` that have a grammar, ascending."""
        return np.flatnonzero(self._is_constrained[slots]) if self._slots else _NO_ROWS

    def at(self, slots: NDArray[np.int64]) -> list[SlotGrammar]:
        """Return the grammars of slots that have one."""
        return [self._slots[slot] for slot in slots.tolist()]

    def masks(self, grammars: Sequence[SlotGrammar]) -> Masks:
        """Return the masks [n, ceil(vocab_size / 32)] of the next ids, a bit for each id from the lowest bit up.

        At least one id is allowed. A grammar that fails has its `error` set, and a mask that means nothing."""
        masks = np.full((len(grammars), self._words), -1, dtype=np.int32)
        ready = [
            (matcher, row)
            for row, matcher in enumerate([grammar.advanced() for grammar in grammars])
            if matcher is not None
        ]
        if len(ready) <= _MOST_INLINE or not self._fill_in_parallel(ready, masks):
            for matcher, row in ready:
                self._fill(matcher, masks, row, grammars[row])
        for matcher, row in ready:
            if matcher.is_error():
                grammars[row].fail(matcher.get_error())
        return masks

    def _fill(self, matcher: LLMatcher, masks: Masks, row: int, grammar: SlotGrammar) -> None:
        try:
            matcher.unsafe_compute_mask_ptr(masks[row].ctypes.data, self._words * 4)
        except BaseException as error:
            if not is_library_error(error):
                raise
            grammar.fail(str(error))

    def _fill_in_parallel(self, ready: list[tuple[LLMatcher, int]], masks: Masks) -> bool:
        """Fill the rows of many masks; False if one of them raises, which is then found one by one."""
        if self._executor is None:
            self._executor = LLExecutor()
        try:
            self._executor.unsafe_compute_mask_ptr(ready, masks.ctypes.data, self._words * 4, len(masks))
        except BaseException as error:
            if not is_library_error(error):
                raise
            return False
        return True


def is_allowed(masks: Masks, vocab_size: int) -> NDArray[np.bool_]:
    """Return masks as booleans [n, vocab_size]."""
    bits = np.unpackbits(masks.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
    return bits.view(np.bool_)
