"""KV-cache events as routers read them: changes of pages become vLLM's events, in messages of bounded size. Sans-IO.

A page is named by a hash of its tokens and of all before it, within its namespace: the same prefix has the same hash in
every process of the engine, and consumers need no other property of it. Hashes are positive and fit into 63 bits.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from quartet.wire.frames import ID_BYTES, unpack_ids
from scheduler_proc.core.page_log import PageChange, PagesCleared, PagesRemoved, PagesStored

MOST_EVENTS = 1024
"""Events of one message; some consumers refuse messages of more than 4096."""
MOST_TOKENS = 1 << 18
"""Tokens of one event, and tokens after which a message ends: two megabytes, where consumers refuse 16."""
MEDIUM = "GPU"
"""Where pages lie. Consumers know no other name for the memory that the model computes with."""
_POSITIVE = (1 << 63) - 1

Event = dict[str, Any]


class EventWriter:
    """Keeps the hash of each page that is stored, and writes messages.

    Args:
        page_size: tokens of a page.
        encoding: `map` or `array`.
    """

    def __init__(self, page_size: int, encoding: Literal["map", "array"]) -> None:
        self._page_size = page_size
        self._is_map = encoding == "map"
        self._hashes: dict[int, int] = {}
        self._encode = msgspec.msgpack.Encoder().encode

    def messages(self, changes: Iterable[PageChange], wall_time_s: float) -> Iterator[bytes]:
        """Yield the payload of each message that tells of the changes: time, events, rank."""
        events, tokens = list[Event](), 0
        for event in self._merged(changes):
            events.append(event)
            tokens += len(event.get("token_ids", ()))
            if len(events) == MOST_EVENTS or tokens >= MOST_TOKENS:
                yield self._payload(events, wall_time_s)
                events, tokens = [], 0
        if events:
            yield self._payload(events, wall_time_s)

    def _payload(self, events: list[Event], wall_time_s: float) -> bytes:
        shaped = events if self._is_map else [list(event.values()) for event in events]
        return self._encode([wall_time_s, shaped, 0])

    def _merged(self, changes: Iterable[PageChange]) -> Iterator[Event]:
        """Yield the events; pages that leave one after the other are one event."""
        gone: list[int] = []
        for change in changes:
            if isinstance(change, PagesRemoved):
                gone += [self._hashes.pop(page) for page in change.pages]
                continue
            if gone:
                yield _removed(gone)
                gone = []
            match change:
                case PagesCleared():
                    self._hashes.clear()
                    yield {"type": "AllBlocksCleared"}
                case PagesStored():
                    yield from self._stored(change)
        if gone:
            yield _removed(gone)

    def _stored(self, change: PagesStored) -> Iterator[Event]:
        parent = self._hashes[change.parent_page] if change.parent_page else None
        salt = change.namespace[1] if len(change.namespace) > 1 else ""
        page_bytes, most = self._page_size * ID_BYTES, MOST_TOKENS // self._page_size
        for first in range(0, len(change.pages), most):
            pages = change.pages[first : first + most]
            key = change.key[first * page_bytes : (first + len(pages)) * page_bytes]
            state = _seed(change.namespace) if parent is None else parent
            hashes = list[int]()
            for at in range(0, len(key), page_bytes):
                state = _hash(state, key[at : at + page_bytes])
                hashes.append(state)
            self._hashes.update(zip(pages, hashes, strict=True))
            yield {
                "type": "BlockStored",
                "block_hashes": hashes,
                "parent_block_hash": parent,
                "token_ids": unpack_ids(key),
                "block_size": self._page_size,
                "lora_id": None,
                "medium": MEDIUM,
                "lora_name": None,
                # As in vLLM the salt belongs to the first page alone, whose hash it enters.
                **({"extra_keys": [[salt], *[None] * (len(pages) - 1)]} if salt and parent is None else {}),
            }
            parent = state


def _removed(hashes: list[int]) -> Event:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": MEDIUM}


def _seed(namespace: tuple[str, ...]) -> int:
    return _hash(0, repr(namespace).encode()) if any(namespace) else 0


def _hash(before: int, data: bytes) -> int:
    digest = hashlib.blake2b(data, digest_size=8, salt=before.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big") & _POSITIVE
