"""What one call of the scheduler sends: frames for processes, and the token columns gathered for each detokenizer."""

import msgspec

from quartet.wire.frames import Close, End, Open, TokenLogprobs, Tokens, pack_ids
from quartet.wire.ids import Handle
from scheduler_proc.core.radix import ID_BYTES
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


class Outbox:
    """Frames in the order in which they were put; token rows become one Tokens frame for each detokenizer."""

    def __init__(self) -> None:
        self._sent: list[Sent] = []
        self._columns: dict[str, Columns] = {}
        self._next_handle = 0

    def put(self, destination: str, frame: msgspec.Struct) -> None:
        """Send a frame."""
        self._sent.append((destination, frame))

    def open(self, request: Request, now: float) -> None:
        """Announce a request's current attempt to its detokenizer, with what the edge has and has not."""
        self._next_handle += 1
        request.handle = Handle(self._next_handle)
        request.is_open = True
        request.sent_count = len(request.output_ids)
        params = request.params
        frame = Open(
            request.handle,
            request.rid,
            request.choice,
            request.attempt,
            request.reply_to,
            request.prompt_key[-TAIL_TOKENS * ID_BYTES :],
            pack_ids(request.output_ids),
            request.delivered_count,
            params.stop,
            params.include_stop_in_output,
            params.skip_special_tokens,
            request.min_new_tokens,
            request.logprobs_after(request.delivered_count),
            request.timings(now),
        )
        self.put(request.detok, frame)

    def close(self, request: Request) -> None:
        """Have the detokenizer forget a request that does not end by itself."""
        if request.is_open:
            self.put(request.detok, Close(request.handle))
            request.is_open = False

    def columns(self, detok: str) -> Columns:
        """Return the rows of the current step for a detokenizer, to add to."""
        columns = self._columns.get(detok)
        if columns is None:
            columns = self._columns[detok] = Columns()
        return columns

    def token(self, request: Request, index: int, logprobs: TokenLogprobs | None) -> None:
        """Add the request's output token of that index."""
        columns = self.columns(request.detok)
        if logprobs is not None:
            columns.logprobs.append((len(columns.ids), logprobs))
        columns.handles.append(request.handle)
        columns.indices.append(index)
        columns.ids.append(request.output_ids[index])

    def rest(self, request: Request) -> None:
        """Add the request's outputs that have not been sent yet."""
        for index in range(request.sent_count, len(request.output_ids)):
            known = request.logprobs_after(index)
            self.token(request, index, known[0] if known else None)
        request.sent_count = len(request.output_ids)

    def end(self, request: Request, end: End) -> None:
        """Add the end of a request, after its tokens."""
        self.columns(request.detok).ends.append(end)
        request.is_open = False

    def flush_tokens(self, step: int) -> None:
        """Turn the gathered rows into frames."""
        for detok, columns in self._columns.items():
            if not columns.ids and not columns.ends:
                continue
            self.put(
                detok,
                Tokens(
                    step,
                    pack_ids(columns.handles),
                    pack_ids(columns.indices),
                    pack_ids(columns.ids),
                    columns.logprobs,
                    columns.ends,
                ),
            )
        self._columns.clear()

    def take(self) -> list[Sent]:
        """Return everything put since the last call."""
        sent, self._sent = self._sent, []
        return sent
