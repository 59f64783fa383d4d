"""What passes between the parts of a benchmark: requests that are to be sent, and what came of each."""

from typing import Any

import msgspec


class PlannedRequest(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """A request and the time at which to send it.

    Args:
        due_s: seconds from the start of the run.
        ids: the prompt as int32 little-endian token ids; empty if `text` is the prompt.
        text: the prompt as text.
        input_tokens: length of the prompt; 0 if only the server knows it.
        output_tokens: what the request asks for.
        priority: as in the API; None: the request names none.
    """

    output_tokens: int
    due_s: float = 0.0
    ids: bytes = b""
    text: str = ""
    input_tokens: int = 0
    priority: int | None = None


class Target(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Where requests go and what all of them have in common.

    Args:
        address: root URL of the server.
        backend: name of a route (quartet.bench.routes).
        model: what the requests call the model; empty: nothing.
        headers: HTTP headers of every request.
        temperature: of sampling.
        has_ignore_eos: requests run to their full length.
        extra_body: fields to add to every request.
    """

    address: str
    backend: str
    model: str = ""
    headers: dict[str, str] = {}
    temperature: float = 0.0
    has_ignore_eos: bool = True
    extra_body: dict[str, Any] = {}


class Record(msgspec.Struct, array_like=True, kw_only=True):
    """What one request came to. Times are seconds; `start_s` counts from the start of the run.

    Args:
        late_s: how long after its time the client began with the request; the schedule is kept if this is small.
        queued_s: how long the request then waited for a place under --max-concurrency.
        start_s: when it was sent.
        ttft_s: from then to the first event with output.
        latency_s: from then to the last event with output.
        itl_s: gaps between events with output.
        output_tokens: as the server counts them, else the events with output.
        text: the output, only if the server counts no tokens.
        failure: its kind in few words; empty if the request succeeded.
        message: what the server or the operating system said.
    """

    index: int
    start_s: float
    late_s: float = 0.0
    queued_s: float = 0.0
    ttft_s: float = 0.0
    latency_s: float = 0.0
    itl_s: list[float] = []
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    text: str = ""
    failure: str = ""
    message: str = ""
