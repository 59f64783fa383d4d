"""How the simulated worker obeys grammars: by a hash it takes one of the allowed ids, in favour of what ends.

An end-of-sequence id is taken as soon as it is allowed. Otherwise most choices are among ids whose text may close an
object, an array, a string or a number, where such ids are allowed, so that an output ends after some dozen ids.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from quartet.checkpoint.grammar_tokenizer import load_grammar_tokenizer
from quartet.wire.config import Config
from worker_proc.contract import Capacity
from worker_proc.grammar.compiler import GrammarCompiler
from worker_proc.grammar.slots import GrammarSlots, is_allowed
from worker_proc.slots import IntArray, StepRows

Flags = NDArray[np.bool_]
Errors = tuple[tuple[int, str], ...]
_CLOSING = (b"}]", b'"', b",<")
"""Bytes of the ids that a choice may be among; `<` begins a tag that ends a thought."""


class SimulatedGrammars:
    """The grammars of the slots of a simulated runner.

    Args:
        config: of the launch, for tokenizer and ends of sequence.
    """

    def __init__(self, config: Config) -> None:
        model = config.require_model()
        self.compiler = GrammarCompiler(partial(load_grammar_tokenizer, config))
        self._vocab_size = model.vocab_size
        self._ends = np.zeros(model.vocab_size, dtype=np.bool_)
        self._ends[[one for one in model.eos_token_ids if one < model.vocab_size]] = True
        self._closing: list[Flags] | None = None

    def clear(self, capacity: Capacity) -> None:
        """Forget every slot."""
        self._slots = GrammarSlots(self.compiler, capacity.max_slots, capacity.vocab_size)

    def apply(self, rows: StepRows) -> None:
        """Forget the sequences that leave, and set up those that enter."""
        for slot in rows.released:
            self._slots.release(slot)
        for entered in rows.entered:
            self._slots.enter(entered)

    def constrain(
        self, slots: IntArray, ids: IntArray, is_scripted: Flags | None, hashes: Callable[[IntArray], list[int]]
    ) -> Errors:
        """Replace the ids of rows with grammars, but scripted ones that are allowed.

        Args:
            slots, ids: of the sampled rows [R].
            is_scripted: [R], or None where there is no script.
            hashes: returns a hash for each of some slots.

        Returns the rows whose grammars have failed, and why.
        """
        rows = self._slots.rows(slots)
        if not len(rows):
            return ()
        grammars = self._slots.at(slots[rows])
        allowed = is_allowed(self._slots.masks(grammars), self._vocab_size)
        for index, (row, number) in enumerate(zip(rows.tolist(), hashes(slots[rows]), strict=True)):
            is_kept = is_scripted is not None and is_scripted[row] and allowed[index, ids[row]]
            if not grammars[index].error and not is_kept:
                ids[row] = self._pick(allowed[index], number)
            grammars[index].take(int(ids[row]))
        return tuple((row, one.error) for row, one in zip(rows.tolist(), grammars, strict=True) if one.error)

    def _pick(self, allowed: Flags, number: int) -> int:
        if self._closing is None:
            tokenizer = self.compiler.tokenizer()
            texts = [tokenizer.decode_bytes([one]) for one in range(self._vocab_size)]
            self._closing = [self._having(texts, which) for which in _CLOSING]
        group, number = number % (len(_CLOSING) + 1), number // (len(_CLOSING) + 1)
        parts = (np.flatnonzero(allowed & part) for part in (self._ends, *self._closing[group : group + 1], allowed))
        ids = next(part for part in parts if len(part))
        return int(ids[number % len(ids)])

    def _having(self, texts: list[bytes], which: bytes) -> Flags:
        return np.array([any(byte in which for byte in text) for text in texts])
