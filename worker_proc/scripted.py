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
    """Replies to prompts that contain a text, and the rest of the reply of each slot.

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
        self._rest: dict[int, list[int]] = {}

    def reply(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """Return the ids that answer a prompt, end of sequence included; empty if no entry holds."""
        text = self._tokenizer.decode(prompt, skip_special_tokens=False)
        holding = [entry for entry in self._entries if entry[0] in text]
        return max(holding, key=lambda entry: _rank(text, entry[0]))[1] if holding else ()

    def begin(self, entered: Entered) -> None:
        """Find the reply of a sequence that enters a slot, and how much of it is out."""
        length = entered.frame.prompt_length
        out = len(entered.ids) - length
        rest = self.reply(entered.ids[:length].tolist())[out:]
        # Reversed, so that the next id is taken from the end.
        self._rest[entered.slot] = [*reversed(rest)]

    def replace(self, slots: IntArray, ids: IntArray) -> NDArray[np.bool_]:
        """Put the next id of the reply of each slot [n] that has one in the place of its sampled id [n]; return which
        have [n]."""
        is_scripted = np.zeros(len(slots), dtype=np.bool_)
        for row in range(len(slots)):
            rest = self._rest.get(int(slots[row]))
            if rest:
                ids[row] = rest.pop()
                is_scripted[row] = True
        return is_scripted


def _rank(text: str, contained: str) -> tuple[int, int]:
    return (text.rfind(contained) + len(contained) if contained else 0, len(contained))
