"""The receiving end of a scheduler in tests: plays api process and detokenizer, checks the order of every token."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from quartet.runtime.core import Metrics, Sent
from quartet.wire.codec import Source
from quartet.wire.frames import (
    Accepted,
    ApiInbound,
    Close,
    DetokInbound,
    End,
    Failed,
    Open,
    Rejected,
    Submit,
    Tokens,
    unpack_ids,
)
from quartet.wire.ids import Rid


@dataclass
class ClientStream:
    """What has been received of one (rid, choice). `ending` is the reason of its end, or the code of its error."""

    submit: Submit
    outputs: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ending: str | None = None
    end: End | None = None


class StreamClient:
    """A core for the addresses api-0 and detok-0. Frames that concern no stream are kept in `other`."""

    inbound: Any = ApiInbound | DetokInbound

    def __init__(self) -> None:
        self.streams: dict[tuple[Rid, int], ClientStream] = {}
        self.handles: dict[int, tuple[Rid, int]] = {}
        self.other: list[msgspec.Struct] = []

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        match frame:
            case Open():
                self._open(frame)
            case Tokens():
                self._tokens(frame)
            case Close():
                self.handles.pop(frame.handle, None)
            case Rejected() | Failed():
                stream = self.streams[frame.rid, frame.choice]
                assert stream.ending is None, "a request ended twice"
                stream.ending = frame.code
            case Accepted():
                pass
            case _:
                self.other.append(frame)
        return []

    def tick(self, now: float) -> list[Sent]:
        return []

    def next_deadline(self) -> float | None:
        return None

    def is_idle(self) -> bool:
        return all(stream.ending is not None for stream in self.streams.values())

    def metrics(self) -> Metrics:
        return Metrics({}, {})

    def _open(self, frame: Open) -> None:
        stream = self.streams[frame.rid, frame.choice]
        assert frame.attempt == stream.submit.attempt
        self.handles[frame.handle] = (frame.rid, frame.choice)
        known = unpack_ids(frame.output_ids)
        assert known[: frame.delivered_count] == stream.outputs[: frame.delivered_count]
        assert len(stream.outputs) == frame.delivered_count
        stream.outputs += known[frame.delivered_count :]

    def _tokens(self, frame: Tokens) -> None:
        handles = unpack_ids(frame.handles)
        for handle, index, token_id in zip(handles, unpack_ids(frame.indices), unpack_ids(frame.ids), strict=True):
            stream = self.streams[self.handles[handle]]
            assert stream.ending is None, "a token after the end"
            assert index == len(stream.outputs), "tokens out of order"
            stream.outputs.append(token_id)
        for row, one in frame.logprobs:
            self.streams[self.handles[handles[row]]].logprobs.append(one.logprob)
        for end in frame.ends:
            stream = self.streams[self.handles.pop(end.handle)]
            assert stream.ending is None, "a request ended twice"
            assert end.count == len(stream.outputs)
            stream.ending, stream.end = end.reason, end
