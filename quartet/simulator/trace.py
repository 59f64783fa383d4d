"""Workloads as files: one JSON object a line, as `Workload` describes it. Holds no text, ever.

{"arrival_s": 0.5, "max_tokens": 128, "output_tokens": 40, "prefix_group": "a", "prefix_tokens": 2048, "own_tokens": 64}
{"arrival_s": 0.7, "max_tokens": 16, "output_tokens": 16, "prompt_ids": [5, 6, 7], "priority": 3, "tenant": "t"}
{"arrival_s": 0.9, "max_tokens": 16, "output_tokens": 9, "page_hashes": ["9f3c", "01bb"], "page_tokens": 16,
 "prompt_tokens": 40}                                           (on one line; what a server records)
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from quartet.simulator.request import Workload
from quartet.wire.errors import QuartetError


class TraceError(QuartetError):
    """A trace cannot be used. The message names file, line and field."""


def read_trace(path: Path) -> list[Workload]:
    """Return the requests of a trace in the order of arrival; raises TraceError."""
    decoder = msgspec.json.Decoder(Workload)
    requests = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise TraceError(f"{path}, line {number}: {error}") from error
        wrong = fault_of(request)
        if wrong:
            raise TraceError(f"{path}, line {number}: {wrong}")
        requests.append(request)
    if not requests:
        raise TraceError(f"{path}: no requests")
    return sorted(requests, key=lambda request: request.arrival_s)


def write_trace(path: Path, requests: Iterable[Workload]) -> None:
    """Write requests as JSONL, replacing the file."""
    encode = msgspec.json.Encoder().encode
    path.write_bytes(b"".join(encode(request) + b"\n" for request in requests))


def fault_of(request: Workload) -> str:
    """Say what is wrong with a request, naming field, value and bound; empty if nothing is."""
    if not 0 <= request.arrival_s < float("inf"):
        return f"arrival_s {request.arrival_s} must be 0 or more and finite"
    if request.gap_s is not None and not 0 <= request.gap_s < float("inf"):
        return f"gap_s {request.gap_s} must be 0 or more and finite"
    if request.max_tokens < 1:
        return f"max_tokens {request.max_tokens} must be at least 1"
    if not 1 <= request.output_tokens <= request.max_tokens:
        return f"output_tokens {request.output_tokens} must be between 1 and max_tokens {request.max_tokens}"
    return _prompt_fault(request)


def _prompt_fault(request: Workload) -> str:
    ways = [
        name
        for name, is_given in (
            ("prompt_ids", request.prompt_ids is not None),
            ("prefix_tokens and own_tokens", request.prefix_tokens != 0 or request.own_tokens != 0),
            ("page_hashes", request.page_hashes is not None),
        )
        if is_given
    ]
    if len(ways) != 1:
        given = " as well as ".join(ways) or "none"
        return f"give the prompt as prompt_ids, as prefix_tokens and own_tokens, or as page_hashes: {given} given"
    if request.input_tokens < 1:
        return "the prompt is empty"
    if min(request.prefix_tokens, request.own_tokens) < 0:
        return f"prefix_tokens {request.prefix_tokens} and own_tokens {request.own_tokens} must be 0 or more"
    if request.prompt_ids is not None and not all(0 <= one < 1 << 31 for one in request.prompt_ids):
        return "prompt_ids must be between 0 and 2147483647"
    if request.page_hashes is not None:
        if request.page_tokens < 1:
            return f"page_tokens {request.page_tokens} must be at least 1"
        if len(request.page_hashes) != request.prompt_tokens // request.page_tokens:
            return (
                f"{len(request.page_hashes)} page_hashes for {request.prompt_tokens} prompt_tokens "
                f"in pages of {request.page_tokens}: {request.prompt_tokens // request.page_tokens} expected"
            )
    return ""
