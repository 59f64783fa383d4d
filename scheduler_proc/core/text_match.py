"""Where the newest tokens of a sequence stand earlier in it, and so what may come next.

Source of the idea: prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding. Once found, a place
is followed as long as the text there is repeated, which makes the match as long as it can be.
"""

from scheduler_proc.core.radix import ID_BYTES

GRAM = 3
"""Tokens that must be equal for a place to be found."""
MOST_PROMPT_TOKENS = 16384
"""The end of a longer prompt is searched alone: an index takes some 100 bytes and half a microsecond a token."""
_GRAM_BYTES = GRAM * ID_BYTES
_WEIGHT = 1 / 8


class TextMatch:
    """The text of one sequence with an index of its n-grams. `rate` is the share of the last outputs that the text
    before them told, an exponential mean with weight 1/8."""

    __slots__ = ("_index", "_next", "_seen", "_text", "rate")

    def __init__(self, prompt_key: bytes) -> None:
        self._text = bytearray(prompt_key[-MOST_PROMPT_TOKENS * ID_BYTES :])
        self._index: dict[bytes, int] = {}
        for end in range(_GRAM_BYTES, len(self._text), ID_BYTES):
            self._index[bytes(self._text[end - _GRAM_BYTES : end])] = end
        # Byte offset of what would come next; -1 where no place is known.
        self._next = -1
        self._seen = 0
        self.rate = 0.0

    def follow(self, output_ids: list[int]) -> None:
        """Take the outputs that have come since the last call."""
        for token in output_ids[self._seen :]:
            self._push(token.to_bytes(ID_BYTES, "little"))
        self._seen = len(output_ids)

    def _push(self, token: bytes) -> None:
        text, at = self._text, self._next
        is_hit = at >= 0 and text[at : at + ID_BYTES] == token
        self.rate += ((1.0 if is_hit else 0.0) - self.rate) * _WEIGHT
        end = len(text)
        if end >= _GRAM_BYTES:
            self._index[bytes(text[end - _GRAM_BYTES :])] = end
        text += token
        self._next = at + ID_BYTES if is_hit else self._index.get(bytes(text[-_GRAM_BYTES:]), -1)

    def draft(self, most: int) -> list[int]:
        """Return at most `most` ids that came next where the text matches."""
        if self._next < 0 or most < 1:
            return []
        found = self._text[self._next : self._next + most * ID_BYTES]
        return [int.from_bytes(found[at : at + ID_BYTES], "little") for at in range(0, len(found), ID_BYTES)]
