"""One attempt of one choice: its decoder, its stop strings, and the ids and characters so far."""

import msgspec

from detok_proc.incremental import DecoderFactory
from detok_proc.stop_strings import StopMatcher
from quartet.wire.frames import ID_BYTES, DeltaItem, Finish, Open, TextLogprobs, Timings, unpack_ids


class Stream:
    """The state of one handle, a pure function of its Open and the ids taken since.

    `count` ids have been taken and `offset` characters shown. `matcher` is None without stop strings; with them
    `first_s` is when the first id since the Open came, or None.
    """

    __slots__ = ("_decoder", "count", "first_s", "identity", "matcher", "offset", "opened", "opened_s", "reply_to")

    def __init__(self, opened: Open, factory: DecoderFactory, opened_s: float) -> None:
        self.opened = opened
        self.opened_s = opened_s
        self.first_s: float | None = None
        self.identity = (opened.rid, opened.choice, opened.attempt)
        self.reply_to = opened.reply_to
        self.count = 0
        self.offset = 0
        shown_ids = frozenset(opened.shown_ids)
        self._decoder = factory.make(unpack_ids(opened.prompt_tail), opened.skip_special_tokens, shown_ids)
        self.matcher = StopMatcher(opened.stop, opened.include_stop_in_output) if opened.stop else None

    @property
    def position(self) -> int:
        """Where the text of the next id begins: after what has been shown and what is held back."""
        return self.offset + (0 if self.matcher is None else self.matcher.held_count)

    @property
    def matched(self) -> str | None:
        """The stop string that has ended the stream, if one has."""
        return None if self.matcher is None else self.matcher.matched

    def push(self, token: int) -> str:
        """Take the next id; return the text to show. Must not be called after a match.

        A stop string must begin after the text of the first `min_new_tokens` ids."""
        self.count += 1
        text = self._decoder.push(token)
        if self.matcher is not None and text and self.count > self.opened.min_new_tokens:
            text = self.matcher.push(text)
        self.offset += len(text)
        return text

    def hide(self) -> None:
        """Take an id that gives no text: the stop token itself."""
        self.count += 1

    def timings(self, now: float) -> Timings:
        """Return where the request's time went until `now`, when a stop string ends it.

        What the scheduler knew at the Open grows by the time since then: up to the first id it is prefill, unless the
        scheduler had outputs already.
        """
        known = self.opened.timings or Timings()
        first_s = self.opened_s if known.decode_s else now if self.first_s is None else self.first_s
        prefill_s = known.prefill_s + first_s - self.opened_s
        return msgspec.structs.replace(known, prefill_s=prefill_s, decode_s=known.decode_s + now - first_s)

    def flush(self) -> str:
        """End the stream: return the text that was held back."""
        text = self._decoder.flush()
        if self.matcher is not None and self.matcher.matched is None:
            text = self.matcher.push(text)
            if self.matcher.matched is None:
                text += self.matcher.flush()
        self.offset += len(text)
        return text


class PendingDelta:
    """Output of one stream, gathered for the item that ends or replays it."""

    def __init__(self, stream: Stream) -> None:
        self._index = stream.count
        self._offset = stream.offset
        self._ids = bytearray()
        self._texts: list[str] = []
        self._logprobs: list[TextLogprobs] = []

    def add(self, token: int, text: str, logprobs: TextLogprobs | None = None) -> None:
        """Append one id and the text it completed."""
        self._ids += token.to_bytes(ID_BYTES, "little", signed=True)
        self._texts.append(text)
        if logprobs is not None:
            self._logprobs.append(logprobs)

    def add_text(self, text: str) -> None:
        """Append text that no further id completed."""
        self._texts.append(text)

    def item(self, stream: Stream, finish: Finish | None) -> DeltaItem:
        """Return everything gathered as one item of a Delta."""
        rid, choice, attempt = stream.identity
        text = "".join(self._texts)
        return DeltaItem(
            rid, choice, attempt, self._index, bytes(self._ids), text, self._offset, self._logprobs or None, finish
        )
