"""Token ids for requests that name only what they share.

Each prefix group, each own part and each page hash is one id, repeated: two prompts then agree exactly as far as the
workload says, at the cost of a bytes multiplication.

    0      1      2 ...
    EOS    output one for each name, in the order of their first use
"""

from quartet.simulator.request import Workload
from quartet.wire.frames import pack_ids

EOS_ID = 0
OUTPUT_ID = 1
FIRST_ID = 2


class PromptMaker:
    """Makes prompt ids as int32 bytes. One per run, so that the same workload gives the same ids."""

    def __init__(self) -> None:
        self._ids: dict[str, bytes] = {}
        self._next = FIRST_ID

    def make(self, request: Workload) -> bytes:
        """Return the prompt of `request`; its own part is unlike any other made before."""
        if request.prompt_ids is not None:
            return pack_ids(request.prompt_ids)
        if request.page_hashes is not None:
            return self._from_hashes(request)
        shared = b""
        if request.prefix_group is not None:
            shared = self._named("group " + request.prefix_group) * request.prefix_tokens
        return shared + self._fresh() * (request.own_tokens + (0 if shared else request.prefix_tokens))

    def _from_hashes(self, request: Workload) -> bytes:
        assert request.page_hashes is not None
        pages = [self._named("page " + name) * request.page_tokens for name in request.page_hashes]
        tail = request.prompt_tokens - len(pages) * request.page_tokens
        return b"".join(pages) + self._fresh() * tail

    def _named(self, name: str) -> bytes:
        known = self._ids.get(name)
        if known is None:
            known = self._ids[name] = self._fresh()
        return known

    def _fresh(self) -> bytes:
        self._next += 1
        return pack_ids([self._next - 1])
