"""Generations that have to follow the schemas of json_schemas: asks a server for ten of each, and judges every one."""

import concurrent.futures
import json
from typing import Any

from tests.support.json_schemas import EXAMPLES, SCHEMAS
from tests.support.server import Server
from tests.support.valid_json import problem

RUNS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "stream": True},
    {"temperature": 1, "seed": 5, "n": 4},
    {"temperature": 1, "seed": 6, "n": 4, "stream": True},
]
"""Of each schema: greedy and sampled, whole and streamed; ten choices in all."""


def body_of(name: str, run: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    """Return the chat request for one schema."""
    wanted = {"name": name, "schema": SCHEMAS[name], "strict": True}
    asked = f"Answer with JSON of this schema, and no more: {json.dumps(SCHEMAS[name], ensure_ascii=False)}"
    if name in EXAMPLES:
        asked = f"Repeat this: {EXAMPLES[name]}"
    return {
        "messages": [{"role": "user", "content": asked}],
        "response_format": {"type": "json_schema", "json_schema": wanted},
        "max_tokens": max_tokens,
        **run,
    }


def ask(server: Server, body: dict[str, Any]) -> list[tuple[str, str]]:
    """Return text and finish reason of each choice."""
    status, answer = server.post("/v1/chat/completions", body, timeout_s=600)
    assert status == 200, answer
    if not body.get("stream"):
        return [(choice["message"]["content"], choice["finish_reason"]) for choice in answer["choices"]]
    texts, ends = [""] * body.get("n", 1), [""] * body.get("n", 1)
    events = [line[6:] for line in answer.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    for choice in (choice for event in map(json.loads, events) for choice in event["choices"]):
        texts[choice["index"]] += choice["delta"].get("content") or ""
        ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
    return list(zip(texts, ends, strict=True))


def problems(server: Server, max_tokens: int = 400, width: int = 8) -> tuple[int, list[str]]:
    """Return how many outputs there were, and what is wrong with each that is not as its schema says."""
    jobs = [(name, run) for name in SCHEMAS for run in RUNS]
    with concurrent.futures.ThreadPoolExecutor(width) as threads:
        answers = list(threads.map(lambda job: ask(server, body_of(job[0], job[1], max_tokens)), jobs))
    count, found = 0, []
    for (name, run), choices in zip(jobs, answers, strict=True):
        count += len(choices)
        for text, end in choices:
            wrong = problem(text, SCHEMAS[name]) if end == "stop" else f"it ended by {end}"
            if wrong is not None:
                found.append(f"{name} {run}: {wrong}: {text[:400]}")
    return count, found
