"""What one call of the scheduler sends: frames in order, and the token columns gathered for each detokenizer."""

import msgspec

from quartet.wire.frames import (
    ID_BYTES,
    Accepted,
    Close,
    End,
    Failed,
    Open,
    ScoredChunk,
    Step,
    Submit,
    TokenLogprobs,
    Tokens,
    pack_ids,
)
from quartet.wire.ids import Handle
from scheduler_proc.core.request import Request

Sent = tuple[str, msgspec.Struct]
TAIL_TOKENS = 16


class Columns:
    """One detokenizer's rows of the current step."""

    def __init__(self) -> None:
        self.handles: list[int] = []
        self.indices: list[int] = []
        self.ids: list[int] = []
        self.logprobs: list[tuple[int, TokenLogprobs]] = []
        self.ends: list[End] = []


class Delivery:
    """Sends frames in the order in which they are put; token rows become one Tokens frame for each detokenizer.

    Args:
        stream_interval: outputs that are gathered before they are sent.
    """

    def __init__(self, stream_interval: int) -> None:
        self.stream_interval = stream_interval
        self._sent: list[Sent] = []
        self._columns: dict[str, Columns] = {}
        self._last_handle = 0
        self._last_step = 0

    def take(self) -> list[Sent]:
        """Return everything put since the last call."""
        sent, self._sent = self._sent, []
        return sent

    def put(self, destination: str, frame: msgspec.Struct) -> None:
        """Send a frame."""
        self._sent.append((destination, frame))

    def send_step(self, worker: str, step: Step) -> None:
        """Send a step to its worker."""
        self._last_step = step.step
        self.put(worker, step)

    # The stream of one request

    def accept(self, request: Request) -> None:
        """Tell the API process that the request's current attempt is queued."""
        stream = request.stream
        frame = Accepted(request.rid, request.choice, stream.attempt, request.max_new_tokens)
        self.put(stream.reply_to, frame)

    def open(self, request: Request, now: float) -> None:
        """Announce the request's current attempt to its detokenizer: outputs so far, and how many are delivered."""
        stream = request.stream
        self._last_handle += 1
        stream.handle = Handle(self._last_handle)
        stream.is_open = True
        stream.sent_count = len(request.output_ids)
        params, scores = request.params, request.prompt_scores if stream.wants_prompt else None
        frame = Open(
            stream.handle,
            request.rid,
            request.choice,
            stream.attempt,
            stream.reply_to,
            request.prompt_key[-TAIL_TOKENS * ID_BYTES :],
            pack_ids(request.output_ids),
            stream.delivered_count,
            params.stop,
            params.include_stop_in_output,
            params.skip_special_tokens,
            request.min_new_tokens,
            stream.logprobs_from(stream.delivered_count, len(request.output_ids)),
            request.timings(now),
            tuple(marker.id for marker in params.markers if marker.id >= 0),
            [] if scores is None else scores.frames(stream.handle, request.prompt_key),
        )
        self.put(stream.detok, frame)

    def rebind(self, request: Request, submit: Submit) -> None:
        """Close the stream of an earlier attempt and give the request the addresses of a later one."""
        self.close(request)
        request.stream.bind(submit)

    def close(self, request: Request) -> None:
        """Have the detokenizer forget a request that does not end by itself."""
        stream = request.stream
        if stream.is_open:
            self.put(stream.detok, Close(stream.handle))
            stream.is_open = False

    def fail(self, request: Request, status: int, code: str, message: str) -> None:
        """Tell the API process that the request has failed."""
        stream = request.stream
        self.put(stream.reply_to, Failed(request.rid, request.choice, stream.attempt, status, code, message))

    def take_scores(self, request: Request, chunk: ScoredChunk) -> None:
        """More of the request's prompt is scored: keep it, and send it."""
        stream, scores = request.stream, request.prompt_scores
        if scores is not None and scores.add(chunk) and stream.wants_prompt:
            self.put(stream.detok, scores.newest(stream.handle, request.prompt_key))

    # Tokens

    def columns(self, detok: str) -> Columns:
        """Return the rows of the current step for a detokenizer, to add to."""
        columns = self._columns.get(detok)
        if columns is None:
            columns = self._columns[detok] = Columns()
        return columns

    def take_output(self, request: Request, logprobs: TokenLogprobs | None, now: float) -> None:
        """The request has one more output: send it, or keep it until the interval is full."""
        stream = request.stream
        if stream.first_token_s < 0:
            stream.first_token_s = now
            request.timeline.note(now, "first_token", {})
        if logprobs is not None:
            stream.logprobs.append(logprobs)
        count = len(request.output_ids)
        if self.stream_interval == 1:
            # Results sends plain rows at once and keeps no count of them.
            stream.sent_count = count - 1
        if count - stream.sent_count >= self.stream_interval:
            self.send_rest(request)

    def send_rest(self, request: Request) -> None:
        """Add the request's outputs that have not been sent yet."""
        stream, outputs = request.stream, request.output_ids
        columns = self.columns(stream.detok)
        for index in range(stream.sent_count, len(outputs)):
            known = stream.logprobs_from(index, len(outputs))
            if known:
                columns.logprobs.append((len(columns.ids), known[0]))
            columns.handles.append(stream.handle)
            columns.indices.append(index)
            columns.ids.append(outputs[index])
        stream.sent_count = len(outputs)

    def send_held_back(self, request: Request) -> None:
        """Send what the stream interval has held back of a request that is about to fail."""
        if request.stream.is_open and self.stream_interval > 1:
            self.send_rest(request)
            self.flush_tokens()

    def end(self, request: Request, reason: str, matched_stop: int | None, hidden: int, now: float) -> None:
        """Add the end of a request that ends by itself, after its last tokens."""
        self.send_rest(request)
        stream = request.stream
        end = End(stream.handle, reason, matched_stop, hidden, len(request.output_ids), request.timings(now))
        self.columns(stream.detok).ends.append(end)
        stream.is_open = False

    def flush_tokens(self, step: int | None = None) -> None:
        """Turn the gathered rows into frames, which bear the number of `step` or else of the last step sent."""
        number = self._last_step if step is None else step
        for detok, columns in self._columns.items():
            if not columns.ids and not columns.ends:
                continue
            frame = Tokens(
                number,
                pack_ids(columns.handles),
                pack_ids(columns.indices),
                pack_ids(columns.ids),
                columns.logprobs,
                columns.ends,
            )
            self.put(detok, frame)
        self._columns.clear()
