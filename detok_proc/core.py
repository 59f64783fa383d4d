"""The detokenizer without its sockets: a frame in, the frames to send out. Owns the streams; never blocks.

    Open ──► a Stream for its handle; a Delta with the ids that the api process has not received
    PromptTokens ──► PromptDeltas with the names of the tokens
    Tokens ──► one Delta for each api process; where a stop string is complete, the finish, and Stopped to the scheduler
    Close ──► forgotten

Everything here can be rebuilt by Open, so that a row without a place (an unknown handle, a gap in the indices) is
counted and dropped: the api process detects the gap and submits the request again.
"""

import logging
from collections import Counter
from typing import Any

from detok_proc.incremental import DecoderFactory
from detok_proc.logprobs import prompt_with_text, with_text
from detok_proc.stream import PendingDelta, Stream
from detok_proc.stream_end import StreamEnd
from quartet.runtime.core import Metrics, Sent, TimelessCore
from quartet.wire.codec import Source
from quartet.wire.errors import FrameError
from quartet.wire.frames import (
    ID_BYTES,
    Close,
    Delta,
    DeltaItem,
    DetokInbound,
    End,
    Failed,
    Finish,
    Open,
    PromptDelta,
    PromptTokens,
    Stopped,
    TokenLogprobs,
    Tokens,
    unpack_ids,
)
from quartet.wire.ids import Handle, Role, process_name

log = logging.getLogger(__name__)

SCHEDULER = process_name(Role.SCHEDULER, 0)

PROMPT_ENTRIES = 1 << 14
"""Names in one PromptDelta, so that even long ones stay below the limit of a frame."""

Items = dict[str, list[DeltaItem]]


class DetokCore(TimelessCore):
    """All streams of this detokenizer.

    Args:
        factory: makes the decoder of each stream.

    `counters` counts rows taken and frames or rows dropped, by metric name.
    """

    inbound: Any = DetokInbound

    def __init__(self, factory: DecoderFactory) -> None:
        self._factory = factory
        self._streams: dict[int, Stream] = {}
        self._stopped: set[int] = set()
        self._scheduler_epoch = -1
        self.counters: Counter[str] = Counter()

    @property
    def stream_count(self) -> int:
        """How many handles are open and not stopped."""
        return len(self._streams)

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        """Take one frame; return the frames to send, at most one Delta for each api process.

        Raises FrameError for one of a scheduler that has ended, or of another role."""
        if source.role is Role.SUPERVISOR:
            # Addresses are names, and frames are answered as they come: neither restarts nor a drain change anything.
            return []
        if source.role is not Role.SCHEDULER or source.epoch < self._scheduler_epoch:
            raise FrameError("stale", f"{source}")
        if source.epoch > self._scheduler_epoch:
            self._scheduler_epoch = source.epoch
            self._streams.clear()
            self._stopped.clear()
        match frame:
            case Tokens():
                return self._on_tokens(frame, now)
            case Open():
                return self._on_open(frame, now)
            case PromptTokens():
                return self._on_prompt(frame)
            case Close():
                self._forget(frame.handle)
        return []

    def metrics(self) -> Metrics:
        """Return open streams, tokens taken and what was dropped."""
        counters = {name: float(count) for name, count in self.counters.items()}
        return Metrics({"detok_streams": float(self.stream_count)}, counters)

    def _forget(self, handle: Handle) -> None:
        self._streams.pop(handle, None)
        self._stopped.discard(handle)

    def _on_open(self, frame: Open, now: float) -> list[Sent]:
        """Send what there is of the prompt, decode the delivered ids without output, then send the rest as a Delta."""
        self._forget(frame.handle)
        stream = self._streams[frame.handle] = Stream(frame, self._factory, now)
        try:
            prompt = [sent for part in frame.prompt for sent in self._on_prompt(part)]
            return prompt + self._replay(frame, stream, now)
        except Exception as error:
            return [self._fail(frame.handle, stream, error)]

    def _on_prompt(self, frame: PromptTokens) -> list[Sent]:
        """Name the tokens of a part of a prompt; a part with many alternatives becomes several frames."""
        stream = self._streams.get(frame.handle)
        if stream is None:
            self.counters["detok_unknown_handles"] += 1
            return []
        try:
            tokens = prompt_with_text(self._factory, frame)
        except Exception as error:
            return [self._fail(frame.handle, stream, error)]
        each = max(1, PROMPT_ENTRIES // (1 + max((len(token.top) for token in tokens), default=0)))
        sent: list[Sent] = []
        for first in range(0, max(1, len(tokens)), each):
            part, is_last = tokens[first : first + each], frame.is_last and first + each >= len(tokens)
            sent.append((stream.reply_to, PromptDelta(*stream.identity, frame.start + first, part, is_last)))
        return sent

    def _replay(self, frame: Open, stream: Stream, now: float) -> list[Sent]:
        pending: PendingDelta | None = None
        for index, token in enumerate(unpack_ids(frame.output_ids)):
            if index == frame.delivered_count:
                pending = PendingDelta(stream)
            position = stream.position
            text = stream.push(token)
            if pending is not None:
                at = index - frame.delivered_count
                known = frame.logprobs[at] if at < len(frame.logprobs) else None
                pending.add(token, text, None if known is None else with_text(self._factory, token, known, position))
            if stream.matched is not None:
                pending = pending or PendingDelta(stream)
                finish, stopped = self._stop(frame.handle, stream, now)
                return [(stream.reply_to, Delta([pending.item(stream, finish)])), stopped]
        return [] if pending is None else [(stream.reply_to, Delta([pending.item(stream, None)]))]

    def _stop(self, handle: Handle, stream: Stream, now: float) -> tuple[Finish, Sent]:
        """End a stream at its matched stop string: further rows of the scheduler for it are ignored."""
        del self._streams[handle]
        self._stopped.add(handle)
        rid, choice, attempt = stream.identity
        stopped = Stopped(handle, rid, choice, attempt, stream.count)
        return Finish("stop", stream.matched, stream.count, stream.timings(now)), (SCHEDULER, stopped)

    def _on_tokens(self, frame: Tokens, now: float) -> list[Sent]:
        handles, indices, ids = unpack_ids(frame.handles), unpack_ids(frame.indices), unpack_ids(frame.ids)
        self.counters["detok_tokens"] += len(ids)
        packed, width, streams, items = frame.ids, ID_BYTES, self._streams, Items()
        logprobs = dict(frame.logprobs)
        stream_ends = self._stream_ends(frame.ends)
        others: list[Sent] = []
        for row, (handle, index, token) in enumerate(zip(handles, indices, ids, strict=True)):
            try:
                stream = streams.get(handle)
                if stream is None or index != stream.count or handle in stream_ends:
                    self._take_unusual(stream_ends.get(handle), handle, index, token, logprobs.get(row))
                    continue
                known = logprobs.get(row) if logprobs else None
                chances = None if known is None else [with_text(self._factory, token, known, stream.position)]
                offset = stream.offset
                text = stream.push(token)
                finish = None
                if stream.matcher is not None:
                    if stream.first_s is None:
                        stream.first_s = now
                    if stream.matcher.matched is not None:
                        finish, stopped = self._stop(Handle(handle), stream, now)
                        others.append(stopped)
                id_bytes = packed[width * row : width * row + width]
                rid, choice, attempt = stream.identity
                item = DeltaItem(rid, choice, attempt, index, id_bytes, text, offset, chances, finish)
                gathered = items.get(stream.reply_to)
                if gathered is None:
                    items[stream.reply_to] = [item]
                else:
                    gathered.append(item)
            except Exception as error:
                ended = stream_ends.pop(handle, None)
                failed = ended.stream if ended else stream
                if failed is None:
                    raise
                others.append(self._fail(handle, failed, error))
        for handle, stream_end in stream_ends.items():
            try:
                self._finish(stream_end, items)
            except Exception as error:
                others.append(self._fail(handle, stream_end.stream, error))
        return [*((api, Delta(found)) for api, found in items.items()), *others]

    def _fail(self, handle: int, stream: Stream, error: Exception) -> Sent:
        """End a stream whose ids cannot be made into text; it alone fails. Its text stays out of the log."""
        log.error("a stream failed: %s", type(error).__name__)
        self.counters["detok_failed_streams"] += 1
        self._streams.pop(handle, None)
        self._stopped.add(handle)
        rid, choice, attempt = stream.identity
        message = "The output could not be made into text."
        return stream.reply_to, Failed(rid, choice, attempt, 500, "internal_error", message)

    def _stream_ends(self, ends: list[End]) -> dict[int, StreamEnd]:
        """Close the streams that this frame ends, and return their ends by handle."""
        stream_ends: dict[int, StreamEnd] = {}
        for end in ends:
            stream = self._streams.get(end.handle)
            if stream is not None:
                stream_ends[end.handle] = StreamEnd(end, stream, self._factory)
            elif end.handle not in self._stopped:
                self.counters["detok_unknown_handles"] += 1
            self._forget(end.handle)
        return stream_ends

    def _take_unusual(
        self, stream_end: StreamEnd | None, handle: int, index: int, token: int, logprobs: TokenLogprobs | None
    ) -> None:
        """Add a row to the end of its stream, or count why it is dropped."""
        stream = stream_end.stream if stream_end else self._streams.get(handle)
        if stream is None:
            self.counters["detok_late_rows" if handle in self._stopped else "detok_unknown_handles"] += 1
        elif index < stream.count or stream.matched is not None:
            self.counters["detok_duplicate_rows"] += 1
        elif index > stream.count:
            self.counters["detok_gaps"] += 1
        elif stream_end is not None:
            stream_end.take(token, logprobs)

    def _finish(self, stream_end: StreamEnd, items: Items) -> None:
        item = stream_end.item()
        if item is None:
            self.counters["detok_gaps"] += 1
        else:
            items.setdefault(stream_end.stream.reply_to, []).append(item)
