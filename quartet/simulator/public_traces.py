"""Readers of public traces: each turns one format into Workloads. No text is in them, and none of their data is here.

Azure LLM inference      TIMESTAMP,ContextTokens,GeneratedTokens; or arrival_ms,input_tokens,output_tokens
Mooncake (FAST'25)       {"timestamp", "input_length", "output_length", "hash_ids"} a line; or the columns of Azure
                         and `blocks512`, the same ids as runs: `0 14-27`
lengths alone            input_tokens,output_tokens: arrivals have to be made up
agent sessions           agent,session,turn,start_ms,input_chars,shared_prefix_chars,output_chars; or
                         session,round,start_ms,input_tokens,cached_prefix_tokens,output_tokens
ServeGen                 one JSON object with `clients`: rates in windows of time, lengths as quantiles
"""

import csv
import json
import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from quartet.simulator.request import Workload

BLOCK_TOKENS = 512
"""Tokens of a Mooncake block; the last block of a prompt may be incomplete and is shared with none."""
CHARACTERS_PER_TOKEN = 4
SESSION_PAGE_TOKENS = 16
WINDOW_S = 600.0
Columns = dict[str, str]


def azure(rows: Iterable[Columns]) -> Iterator[Workload]:
    """Read the Azure LLM inference trace as it is published (Patel et al., ISCA 2024)."""
    first: datetime | None = None
    for row in rows:
        # Seven digits of a second are one more than Python reads.
        at = datetime.fromisoformat(row["TIMESTAMP"][:26])
        first = first or at
        yield _plain((at - first).total_seconds(), row["ContextTokens"], row["GeneratedTokens"])


def arrivals(rows: Iterable[Columns]) -> Iterator[Workload]:
    """Read arrival_ms, input_tokens, output_tokens, and `blocks512` if there is one."""
    for row in rows:
        at_s = int(row["arrival_ms"]) / 1000
        if "blocks512" in row:
            yield _blocks(at_s, int(row["input_tokens"]), int(row["output_tokens"]), _runs(row["blocks512"]))
        else:
            yield _plain(at_s, row["input_tokens"], row["output_tokens"])


def lengths(rows: Iterable[Columns]) -> Iterator[Workload]:
    """Read input_tokens and output_tokens; every request arrives at 0."""
    return (_plain(0.0, row["input_tokens"], row["output_tokens"]) for row in rows)


def mooncake(lines: Iterable[bytes]) -> Iterator[Workload]:
    """Read the Mooncake traces as they are published (Qin et al., FAST 2025)."""
    for line in lines:
        if line.strip():
            one = json.loads(line)
            yield _blocks(one["timestamp"] / 1000, one["input_length"], one["output_length"], one["hash_ids"])


def agent_sessions(rows: Iterable[Columns]) -> Iterator[Workload]:
    """Read turns of agent sessions in characters (LMCache). Times count from the start of the session."""
    turns = _Turns()
    for row in rows:
        tokens, shared, output = (
            int(row[name]) // CHARACTERS_PER_TOKEN for name in ("input_chars", "shared_prefix_chars", "output_chars")
        )
        yield turns.next(f"{row['agent']}-{row['session']}", int(row["start_ms"]), tokens, shared, output)


def coding_sessions(rows: Iterable[Columns]) -> Iterator[Workload]:
    """Read rounds of coding agents in tokens (TraceLab). Times count from the start of the session."""
    turns = _Turns()
    for row in rows:
        tokens, shared, output = (int(row[name]) for name in ("input_tokens", "cached_prefix_tokens", "output_tokens"))
        yield turns.next(row["session"], int(row["start_ms"]), tokens, shared, output)


class _Turns:
    """Makes the turns of sessions. A turn begins with the shared part of the longest of the earlier ones."""

    def __init__(self) -> None:
        self._longest: dict[str, list[str]] = {}
        self._count = 0

    def next(self, session: str, start_ms: int, tokens: int, shared: int, output_tokens: int) -> Workload:
        self._count += 1
        longest = self._longest.setdefault(session, [])
        before = longest[: min(shared, tokens) // SESSION_PAGE_TOKENS]
        own = range(len(before), tokens // SESSION_PAGE_TOKENS)
        pages = [*before, *(f"{self._count}.{page}" for page in own)]
        if len(pages) >= len(longest):
            self._longest[session] = pages
        output = max(1, output_tokens)
        return Workload(
            arrival_s=start_ms / 1000,
            max_tokens=output,
            output_tokens=output,
            page_hashes=pages,
            page_tokens=SESSION_PAGE_TOKENS,
            prompt_tokens=max(1, tokens),
            session=session,
        )


def servegen(trace: dict[str, Any], seed: int, until_s: float) -> Iterator[Workload]:
    """Draw the requests of ServeGen's clients up to `until_s` (Xiang et al., arXiv 2505.09999); each is a tenant.

    Times between arrivals are drawn from the family and parameters of the client's window, lengths from the quantiles
    of its window of lengths, linearly between them.
    """
    for client in trace["clients"]:
        rng = random.Random(f"{seed}:{client['client']}")
        starts = [window[0] for window in client["lengths"]]
        for start_s, _, _, family, shape, scale in client["windows"]:
            if start_s >= until_s:
                break
            draw = rng.gammavariate if family == "Gamma" else lambda a, b, rng=rng: rng.weibullvariate(b, a)
            at_s = start_s + draw(shape, scale)
            while at_s < min(start_s + WINDOW_S, until_s):
                _, inputs, outputs = client["lengths"][max(0, bisect_right(starts, at_s) - 1)]
                shares = trace["quantiles"]
                input_tokens, output_tokens = (_quantile(shares, found, rng.random()) for found in (inputs, outputs))
                yield _plain(at_s, input_tokens, output_tokens, f"client-{client['client']}")
                at_s += draw(shape, scale)


def read_columns(lines: Iterable[str]) -> tuple[list[str], Iterator[Columns]]:
    """Return the names of a CSV file's columns, and its rows."""
    reader = csv.DictReader(lines, strict=True)
    return list(reader.fieldnames or ()), reader


def _plain(at_s: float, input_tokens: int | str, output_tokens: int | str, tenant: str = "") -> Workload:
    output = max(1, int(output_tokens))
    return Workload(
        arrival_s=at_s, max_tokens=output, output_tokens=output, own_tokens=max(1, int(input_tokens)), tenant=tenant
    )


def _blocks(at_s: float, input_tokens: int, output_tokens: int, blocks: Sequence[int]) -> Workload:
    output = max(1, output_tokens)
    return Workload(
        arrival_s=at_s,
        max_tokens=output,
        output_tokens=output,
        page_hashes=[str(block) for block in blocks[: input_tokens // BLOCK_TOKENS]],
        page_tokens=BLOCK_TOKENS,
        prompt_tokens=input_tokens,
    )


def _runs(text: str) -> list[int]:
    blocks: list[int] = []
    for run in text.split():
        first, _, last = run.partition("-")
        blocks += range(int(first), int(last or first) + 1)
    return blocks


def _quantile(shares: Sequence[float], values: Sequence[int], share: float) -> int:
    at = min(bisect_right(shares, share), len(shares) - 1)
    if at == 0:
        return int(values[0])
    part = (share - shares[at - 1]) / (shares[at] - shares[at - 1])
    return int(values[at - 1] + (values[at] - values[at - 1]) * part)
