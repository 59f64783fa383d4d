"""A journal with one request, the output that comes for it, and what its client has been given."""

from typing import Any

from quartet.client.journal import Entry, Journal
from quartet.wire.frames import DeltaItem, HeldRequest, SamplingParams, Submit, pack_ids
from quartet.wire.frames import unpack_ids as ids_of
from quartet.wire.ids import Rid

RID = Rid(b"r" * 16)
OTHER = Rid(b"s" * 16)


def submit(rid: Rid = RID, choice: int = 0, detok: str = "detok-0", deadline_s: float | None = None) -> Submit:
    return Submit(
        rid, choice, 0, "api-0", detok, pack_ids([1, 2]), b"", SamplingParams(seed=5), priority=3, deadline_s=deadline_s
    )


def text_of(token: int) -> str:
    """Return a token's text: none, one or several characters."""
    return chr(97 + token % 26) * (token % 4)


def item(index: int, ids: list[int], before: list[int] = [], **fields: Any) -> DeltaItem:  # noqa: B006
    """Return new output `ids` that follow the ids `before`."""
    assert len(before) == index
    offset = sum(len(text_of(token)) for token in before)
    defaults: dict[str, Any] = {
        "rid": RID, "choice": 0, "attempt": 0, "index": index, "ids": pack_ids(ids),
        "text": "".join(map(text_of, ids)), "offset": offset,
    }  # fmt: skip
    return DeltaItem(**{**defaults, **fields})


def held(entry: Entry[Any], is_running: bool = True, steps: int = 0, attempt: int | None = None) -> HeldRequest:
    frame = entry.submit
    return HeldRequest(frame.rid, frame.choice, frame.attempt if attempt is None else attempt, is_running, steps)


class JournalRig:
    """A journal with one request, and what its client has been given."""

    def __init__(self, deadline_s: float | None = None) -> None:
        self.journal: Journal[str] = Journal()
        self.journal.add(submit(deadline_s=deadline_s), "client", deadline_s, 0.0)
        self.ids: list[int] = []
        self.text = ""

    @property
    def entry(self) -> Entry[str]:
        return self.journal.entries[RID, 0]

    def take(self, taken: DeltaItem, now: float = 0.0) -> DeltaItem | None:
        result = self.journal.take(taken, now)
        if result is None:
            return None
        assert result[0] is self.entry
        self.ids += ids_of(result[1].ids)
        self.text += result[1].text
        return result[1]
