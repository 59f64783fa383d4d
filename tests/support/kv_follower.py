"""A consumer of KV-cache events that shares no code with the publisher: knows msgpack, and what vLLM writes."""

import collections
from typing import Any

import msgspec

Prefix = tuple[str, tuple[int, ...]]
"""Salt of a sequence, and its tokens up to the end of a page."""
STORED = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name")
NAMES = {"BlockStored": (*STORED, "extra_keys"), "BlockRemoved": ("block_hashes", "medium"), "AllBlocksCleared": ()}


class Follower:
    """Holds the prefixes that the engine holds, if the messages are true: whole pages, parents before children."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.prefixes: dict[int, Prefix] = {}
        self.parents: dict[int, int | None] = {}

    def take(self, payload: bytes) -> None:
        """Apply one message."""
        wall_time_s, events, rank = msgspec.msgpack.decode(payload)
        assert isinstance(wall_time_s, float) and rank == 0 and 0 < len(events) <= 4096
        for event in events:
            fields = event if isinstance(event, dict) else named(event)
            match fields["type"]:
                case "AllBlocksCleared":
                    self.prefixes.clear()
                    self.parents.clear()
                case "BlockRemoved":
                    self.remove(fields)
                case "BlockStored":
                    self.store(fields)

    def store(self, fields: dict[str, Any]) -> None:
        """Add the pages of an event."""
        assert set(STORED) <= fields.keys() and fields["medium"] == "GPU" and fields["block_size"] == self.page_size
        hashes, parent, ids = fields["block_hashes"], fields["parent_block_hash"], fields["token_ids"]
        assert hashes and len(ids) == len(hashes) * self.page_size
        first, *others = fields.get("extra_keys") or [None] * len(hashes)
        assert len(others) == len(hashes) - 1 and not any(others) and not (first and parent)
        salt, tokens = (first[0] if first else "", ()) if parent is None else self.prefixes[parent]
        for at, page in enumerate(hashes):
            assert 0 <= page < 1 << 63 and page not in self.prefixes
            tokens = (*tokens, *ids[at * self.page_size : (at + 1) * self.page_size])
            self.prefixes[page], self.parents[page], parent = (salt, tokens), parent, page

    def remove(self, fields: dict[str, Any]) -> None:
        """Take pages out; none that stays may continue one that goes."""
        for page in fields["block_hashes"]:
            del self.prefixes[page], self.parents[page]
        assert fields["block_hashes"] and fields["medium"] == "GPU"
        assert all(parent is None or parent in self.prefixes for parent in self.parents.values())

    def held(self) -> "collections.Counter[Prefix]":
        """Return every prefix that ends with a page; those of tenants that share none count each."""
        return collections.Counter(self.prefixes.values())


def named(event: list[Any]) -> dict[str, Any]:
    """Return the fields of an event in the form of an array, whose last ones may be missing."""
    kind, *values = event
    return {"type": kind, **dict(zip(NAMES[kind], values, strict=False))}


def held_by(tree: Any) -> "collections.Counter[Prefix]":
    """Return the same of a radix tree."""
    found = collections.Counter[Prefix]()
    pending: list[tuple[str, tuple[int, ...], Any]] = [("", (), node) for node in tree.root.children.values()]
    while pending:
        salt, tokens, node = pending.pop()
        if isinstance(node.child_key, tuple):
            salt = (*node.child_key[0], "", "")[1]
        ids = memoryview(node.key).cast("i").tolist()
        for at in range(0, len(ids), tree.page_size):
            tokens = (*tokens, *ids[at : at + tree.page_size])
            found[salt, tokens] += 1
        pending += [(salt, tokens, child) for child in node.children.values()]
    return found
