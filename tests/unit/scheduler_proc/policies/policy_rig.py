"""A waiting queue of named requests and a tree, for tests of policies. Names are single letters in order of arrival."""

from dataclasses import replace
from typing import Any

import msgspec

from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import SamplingParams, Submit, pack_ids
from quartet.wire.ids import Rid
from scheduler_proc.core.policies import Policy, PolicyContext, make_policy
from scheduler_proc.core.radix import Node, RadixTree
from scheduler_proc.core.request import Request, RequestState


class Line:
    """A queue under one policy.

    Args:
        policy: its name.
        page_size: of the tree.
        has_tree: False for a disabled radix cache.
        config: further fields of SchedulerConfig.
    """

    def __init__(self, policy: str, page_size: int = 1, has_tree: bool = True, **config: Any) -> None:
        self.config = SchedulerConfig(schedule_policy=policy, **config)
        self.policy: Policy = make_policy(self.config)
        self.tree = RadixTree(page_size, self.config.radix_eviction_policy)
        self.waiting: list[Request] = []
        self.by_name: dict[str, Request] = {}
        self.context = PolicyContext(self.config, self.tree if has_tree else None, [], 0, 1)
        self.entries = 0

    def add(self, name: str, prompt: list[int] | None = None, priority: int = 0, **fields: Any) -> Request:
        """Queue a request; `fields` are of Submit, or max_new_tokens, or attributes to set."""
        self.entries += 1
        prompt = own_tokens(self.entries) if prompt is None else prompt
        max_new_tokens = fields.pop("max_new_tokens", 8)
        of_submit = {key: fields.pop(key) for key in list(fields) if key in Submit.__struct_fields__}
        rid = Rid(self.entries.to_bytes(16, "big"))
        params = SamplingParams(max_new_tokens=max_new_tokens)
        submit = Submit(rid, 0, 0, "api-0", "detok-0", pack_ids(prompt), b"", params)
        submit = msgspec.structs.replace(submit, **of_submit)
        request = Request(submit, max_new_tokens, (), self.entries, self.entries, 0.0)
        if self.config.enable_priority_scheduling:
            request.urgency = priority if self.config.schedule_low_priority_values_first else -priority
        for key, value in fields.items():
            setattr(request, key, value)
        self.by_name[name] = request
        self.waiting.append(request)
        return request

    def cache(self, ids: list[int], namespace: tuple[str, ...] = ("", "")) -> None:
        """Put a sequence into the tree."""
        self.tree.insert(pack_ids(ids), [1] * (len(ids) // self.tree.page_size), 0, namespace)

    def match(self, ids: list[int], namespace: tuple[str, ...] = ("", "")) -> Node:
        """Match as another request would; returns the node where the match ends."""
        return self.tree.match(pack_ids(ids), namespace)[1]

    def order(self, **changes: Any) -> str:
        """Run one pass's ordering; returns the names in order."""
        self.context = replace(self.context, pass_number=self.context.pass_number + 1)
        self.context = replace(self.context, **changes)
        self.policy.order(self.waiting, self.context)
        return self.names(self.waiting)

    def names(self, requests: list[Request]) -> str:
        """The names of requests, in order."""
        name_of = {id(request): name for name, request in self.by_name.items()}
        return "".join(name_of[id(request)] for request in requests)

    def admit(self, count: int = 1) -> str:
        """Order, take the first `count` off the queue, tell the policy; returns the names taken."""
        self.order()
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        for request in taken:
            request.move_to(RequestState.RUNNING)
        return self.names(taken)


def own_tokens(number: int, count: int = 3) -> list[int]:
    """Tokens that no other number shares."""
    return [100_000 + number * 1000 + i for i in range(count)]
