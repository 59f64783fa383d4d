"""The last output of one stream: its rows of the frame that ends it, what was held back, and the finish."""

from detok_proc.incremental import DecoderFactory
from detok_proc.logprobs import with_text
from detok_proc.stream import PendingDelta, Stream
from quartet.wire.frames import DeltaItem, End, Finish, TokenLogprobs, unpack_ids


class StreamEnd:
    """One End of a Tokens frame and the stream it ends.

    Args:
        end: the scheduler's frame part.
        stream: the stream's state before this frame's rows.
        factory: names tokens, and rebuilds the stream if the stop token was replayed as ordinary output.
    """

    def __init__(self, end: End, stream: Stream, factory: DecoderFactory) -> None:
        self._end = end
        self._visible_count = end.count - end.hidden
        self.stream = stream if stream.count <= self._visible_count else self._without_hidden(stream, factory)
        self._factory = factory
        self._pending = PendingDelta(self.stream)

    def take(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Take one of the last ids."""
        stream = self.stream
        known = None if logprobs is None else with_text(self._factory, token, logprobs, stream.position)
        if stream.count < self._visible_count:
            self._pending.add(token, stream.push(token), known)
        else:
            stream.hide()
            self._pending.add(token, "", known)

    def item(self) -> DeltaItem | None:
        """Return the item that finishes the choice, or None if ids are missing (a replay follows)."""
        stream, end = self.stream, self._end
        if stream.matched is None and stream.count != end.count:
            return None
        self._pending.add_text(stream.flush())
        if stream.matched is not None:
            finish = Finish("stop", stream.matched, stream.count, end.timings)
        else:
            finish = Finish(end.reason, end.matched, end.count, end.timings)
        return self._pending.item(stream, finish)

    def _without_hidden(self, stream: Stream, factory: DecoderFactory) -> Stream:
        """Return `stream` rebuilt with its last ids hidden.

        Needed when only the finish was lost: all ids, the stop token too, came with the replaying Open.
        """
        ids = unpack_ids(stream.opened.output_ids)
        if len(ids) != stream.count:
            return stream
        again = Stream(stream.opened, factory, stream.opened_s)
        for token in ids[: self._visible_count]:
            again.push(token)
        for _ in ids[self._visible_count :]:
            again.hide()
        return again
