"""Drives the detokenizer's core as the scheduler would, and puts its Deltas together as an api process does."""

from dataclasses import dataclass, field
from typing import Any

from detok_proc.core import DetokCore
from detok_proc.incremental import DecoderFactory
from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.frames import (
    ApiInbound,
    Close,
    Delta,
    DeltaItem,
    End,
    Failed,
    Finish,
    Open,
    Stopped,
    Timings,
    Tokens,
    pack_ids,
    unpack_ids,
)
from quartet.wire.ids import Epoch, Handle, Rid, Role

BOOT_ID = 7
TIMINGS = Timings(cached_tokens=3)


@dataclass
class Heard:
    """The output of one stream as its api process receives it; checks that nothing is missing or doubled."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    items: list[DeltaItem] = field(default_factory=list)

    def take(self, item: DeltaItem) -> None:
        assert self.finish is None
        assert item.index == len(self.ids)
        assert item.offset == len(self.text)
        self.ids += unpack_ids(item.ids)
        self.text += item.text
        self.finish = item.finish
        self.items.append(item)


class Rig:
    """One core, the streams of its api processes, and the Stopped frames it sent."""

    def __init__(self, factory: DecoderFactory) -> None:
        self.core = DetokCore(factory)
        self.heard: dict[bytes, Heard] = {}
        self.stopped: list[Stopped] = []
        self.failed: dict[bytes, Failed] = {}
        self.deltas: list[tuple[str, Delta]] = []
        self.epoch = 1
        self.now = 0.0

    def send(self, frame: Any, epoch: int | None = None) -> None:
        """Give the core one frame; its answers go over the wire format and to the streams they belong to."""
        source = Source(Role.SCHEDULER, 0, Epoch(epoch or self.epoch))
        encoder = Encoder(Source(Role.DETOK, 0, Epoch(1)), BOOT_ID)
        decoder: Decoder[Any] = Decoder(ApiInbound | Stopped, BOOT_ID)
        for destination, answer in self.core.handle(source, frame, self.now):
            _, again = decoder.decode(encoder.encode(answer))
            if isinstance(again, Stopped):
                assert destination == "scheduler-0"
                self.stopped.append(again)
                continue
            if isinstance(again, Failed):
                self.failed[again.rid] = again
                continue
            self.deltas.append((destination, again))
            for item in again.items:
                self.heard.setdefault(item.rid, Heard()).take(item)

    def open(self, handle: int = 1, **more: Any) -> Heard:
        """Open a stream named after its handle; returns what will be heard of it."""
        fields: dict[str, Any] = {
            "rid": rid_of(handle),
            "choice": 0,
            "attempt": 1,
            "reply_to": "api-0",
            "prompt_tail": b"",
            "output_ids": b"",
            "delivered_count": 0,
            "stop": (),
            "include_stop_in_output": False,
            "skip_special_tokens": True,
        }
        heard = self.heard.setdefault(rid_of(handle), Heard())
        self.send(Open(handle=Handle(handle), **{**fields, **more}))
        return heard

    def tokens(self, rows: list[tuple[int, int, int]], ends: list[End] | None = None, **more: Any) -> None:
        """Send one Tokens frame of (handle, index, id) rows."""
        handles, indices, ids = (pack_ids([row[column] for row in rows]) for column in range(3))
        self.send(Tokens(0, handles, indices, ids, more.get("logprobs", []), ends or []))

    def close(self, handle: int = 1) -> None:
        """Close a stream."""
        self.send(Close(Handle(handle)))


def rid_of(handle: int) -> Rid:
    """Return the request id that the rig gives to a handle's stream."""
    return Rid(handle.to_bytes(16, "little"))


def end_of(count: int, handle: int = 1, reason: str = "length", matched: int | None = None, hidden: int = 0) -> End:
    """Return an End."""
    return End(Handle(handle), reason, matched, hidden, count, TIMINGS)
