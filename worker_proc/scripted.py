"""What the simulated worker answers where an answer must make sense to the client: replies by a text of the prompt.

A reply is a function of the prompt alone, and the next id of it and of the number of ids that are out, so that a
sequence resumed after a death continues as it would have.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quartet.checkpoint.tokenizer_files import tokenizer_folder
from quartet.wire.config import Config
from worker_proc.slots import Entered, IntArray


class Script:
    """Replies to prompts that contain a text, and the reply of each slot by position.

    Of the entries whose text the prompt contains, the one holds whose text ends last in it, of these the longest: in
    a conversation it is the newest message that counts. An entry with an empty text holds where no other does.

    Args:
        config: the entries, the model's end-of-sequence ids and its tokenizer, which turns prompts into text and
            replies into ids.
    """

    def __init__(self, config: Config) -> None:
        # Only a script needs the tokenizer: a launch without one starts without it.
        from quartet.checkpoint.tokenizer_loading import load_tokenizer

        self._tokenizer = load_tokenizer(tokenizer_folder(config))
        end = config.require_model().eos_token_ids[:1]
        self._entries = [
            (entry.contains, (*self._tokenizer.encode(entry.reply, add_special_tokens=False).ids, *end))
            for entry in config.script
        ]
        self._replies: dict[int, tuple[int, tuple[int, ...]]] = {}

    def reply(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """Return the ids that answer a prompt, end of sequence included; empty if no entry holds."""
        text = self._tokenizer.decode(prompt, skip_special_tokens=False)
        holding = [entry for entry in self._entries if entry[0] in text]
        return max(holding, key=lambda entry: _rank(text, entry[0]))[1] if holding else ()

    def begin(self, entered: Entered) -> None:
        """Find the reply of a sequence that enters a slot."""
        length = entered.frame.prompt_length
        self._replies[entered.slot] = length, self.reply(entered.ids[:length].tolist())

    def replace(self, slots: IntArray, positions: IntArray, ids: IntArray) -> NDArray[np.bool_]:
        """Put the ids of replies in the place of sampled ids [n], which stand at `positions` [n] of the sequences in
        `slots` [n]; return which rows have one [n]."""
        is_scripted = np.zeros(len(slots), dtype=np.bool_)
        for row, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
            start, reply = self._replies.get(slot, (0, ()))
            if start <= position < start + len(reply):
                ids[row] = reply[position - start]
                is_scripted[row] = True
        return is_scripted


def _rank(text: str, contained: str) -> tuple[int, int]:
    return (text.rfind(contained) + len(contained) if contained else 0, len(contained))
