"""One request of a workload: when it comes, what its prompt shares, how long its output will turn out."""

import msgspec


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One request. It is also one line of a trace file.

    The prompt is given in one of three ways: `prompt_ids`; or `prefix_group` with `prefix_tokens` shared by the whole
    group, then `own_tokens` that are unshared; or `page_hashes`, each the hash of everything up to the end of one
    page of `page_tokens` tokens, with the prompt's length in `prompt_tokens` (a recorded trace: no text, no ids).

    Args:
        arrival_s: seconds from the start of the trace.
        max_tokens: what the client allows.
        output_tokens: the true length of the output, at most `max_tokens`; less means that it stops by itself.
        priority: as in the API; None: the client named none.
        tenant: the owner of the request; prefixes are not shared between tenants.
        session: the conversation of which it is a turn; the engine is told.
        gap_s: it is sent so many seconds after the end of its session's turn before, if that is not None and there is
            one; `arrival_s` then only says in which order.
        routing_key, weight: as in the API.
        class_name: what reports call it; default: its priority, else "all".
        id: by which `quartet why` finds it.
    """

    arrival_s: float
    max_tokens: int
    output_tokens: int
    prompt_ids: list[int] | None = None
    prefix_group: str | None = None
    prefix_tokens: int = 0
    own_tokens: int = 0
    page_hashes: list[str] | None = None
    page_tokens: int = 0
    prompt_tokens: int = 0
    priority: int | None = None
    tenant: str = ""
    session: str = ""
    gap_s: float | None = None
    routing_key: str = ""
    weight: float = 1.0
    class_name: str = msgspec.field(default="", name="class")
    id: str = ""

    @property
    def input_tokens(self) -> int:
        """Return the length of the prompt in tokens."""
        if self.prompt_ids is not None:
            return len(self.prompt_ids)
        if self.page_hashes is not None:
            return self.prompt_tokens
        return self.prefix_tokens + self.own_tokens

    @property
    def label(self) -> str:
        """Return the class that reports put the request in."""
        if self.class_name:
            return self.class_name
        return "all" if self.priority is None else f"priority {self.priority}"
