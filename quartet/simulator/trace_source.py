"""A trace by its file: the recorded format or a public one, scaled and cut as the command line asks."""

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from quartet.simulator import public_traces
from quartet.simulator.capacity import poisson
from quartet.simulator.request import Workload
from quartet.simulator.trace import TraceError, fault_of, read_trace

AZURE = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"}
ARRIVALS = {"arrival_ms", "input_tokens", "output_tokens"}
AGENT_SESSIONS = {"agent", "session", "turn", "start_ms", "input_chars", "shared_prefix_chars", "output_chars"}
CODING_SESSIONS = {"session", "round", "start_ms", "input_tokens", "cached_prefix_tokens", "output_tokens"}
LENGTHS = {"input_tokens", "output_tokens"}
FORMATS = "recorded JSONL, Azure CSV, Mooncake JSONL or CSV, ServeGen JSON, CSV of agent sessions, CSV of lengths"
HEAD_BYTES = 4096


class NoTimesError(TraceError):
    """The trace does not say when requests arrive, and no rate is given."""


class TraceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is made of a trace.

    Args:
        speed: how many times as fast requests arrive; none is dropped.
        first_minutes: only what arrives in so many minutes of the trace; 0: all of it.
        rate: arrivals a second, Poisson, where the trace has none: of requests, or of sessions.
        max_tokens: what every client asks for, if the trace does not say; 0: what the answer had.
        seed: of what is drawn.
    """

    speed: float = 1.0
    first_minutes: float = 0.0
    rate: float = 0.0
    max_tokens: int = 0
    seed: int = 0


def load_trace(path: Path, options: TraceOptions = TraceOptions()) -> list[Workload]:  # noqa: B008
    """Return the requests of a file in the order of arrival; raises TraceError."""
    until_s = options.first_minutes * 60 or float("inf")
    try:
        requests = [one for one in _read(path, options, until_s) if one.arrival_s < until_s]
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error
    except (LookupError, ValueError, TypeError) as error:
        # json and csv raise ValueErrors of their own.
        raise TraceError(f"{path}: {type(error).__name__}: {error}; a trace is one of {FORMATS}") from error
    if not requests:
        raise TraceError(
            f"{path}: no requests" + (f" in {options.first_minutes:g} minutes" if options.first_minutes else "")
        )
    changed = [_changed(one, options) for one in requests]
    for number, one in enumerate(changed, 1):
        if fault := fault_of(one):
            raise TraceError(f"{path}, request {number}: {fault}")
    return sorted(changed, key=lambda one: one.arrival_s)


def _changed(request: Workload, options: TraceOptions) -> Workload:
    max_tokens = max(request.output_tokens, options.max_tokens) if options.max_tokens else request.max_tokens
    return msgspec.structs.replace(request, arrival_s=request.arrival_s / options.speed, max_tokens=max_tokens)


def _read(path: Path, options: TraceOptions, until_s: float) -> Iterable[Workload]:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if b'"hash_ids"' in head:
        return public_traces.mooncake(path.read_bytes().splitlines())
    if b'"clients"' in head or b'"ServeGen' in head:
        return public_traces.servegen(json.loads(path.read_bytes()), options.seed, until_s)
    if head.lstrip().startswith(b"{"):
        return read_trace(path)
    return _csv(path, options)


def _csv(path: Path, options: TraceOptions) -> Iterator[Workload]:
    columns, rows = public_traces.read_columns(path.read_text().splitlines())
    names = set(columns)
    if names >= AZURE:
        return public_traces.azure(rows)
    if names >= ARRIVALS:
        return public_traces.arrivals(rows)
    if names >= AGENT_SESSIONS:
        return _started(public_traces.agent_sessions(rows), options)
    if names >= CODING_SESSIONS:
        return _started(public_traces.coding_sessions(rows), options)
    if names >= LENGTHS:
        return _arriving(list(public_traces.lengths(rows)), options)
    raise ValueError(f"unknown columns {', '.join(columns)[:100]}")


def _arriving(requests: list[Workload], options: TraceOptions) -> Iterator[Workload]:
    """Give requests without times Poisson arrivals."""
    times = poisson(random.Random(options.seed), len(requests), _needed_rate(options, "requests"))
    return (msgspec.structs.replace(one, arrival_s=at) for one, at in zip(requests, times, strict=True))


def _started(turns: Iterator[Workload], options: TraceOptions) -> Iterator[Workload]:
    """Let sessions, whose turns have times of their own, begin one after the other."""
    rng, start_s = random.Random(options.seed), 0.0
    rate = _needed_rate(options, "sessions")
    for number, (_, each) in enumerate(itertools.groupby(turns, key=lambda turn: turn.session)):
        start_s += rng.expovariate(rate) if number else 0.0
        for turn in each:
            yield msgspec.structs.replace(turn, arrival_s=start_s + turn.arrival_s)


def _needed_rate(options: TraceOptions, what: str) -> float:
    if not options.rate:
        raise NoTimesError(f"the trace does not say when {what} arrive: give --rate, in {what} a second")
    return options.rate
