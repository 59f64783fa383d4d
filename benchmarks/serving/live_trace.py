"""Runs a scenario on the real processes over HTTP and prints the metrics that `quartet simulate` prints.

    python -m benchmarks.serving.live_trace rag [--set NAME=VALUE ...] [--model smollm2] [any flag of quartet serve]
    python -m benchmarks.serving.live_trace FILE [--first MINUTES] [--speed X] ...

FILE is a trace; of it only the requests that fit into the engine's context are sent. The engine gets the size of the
scenario (KV, slots); prompts are synthetic ids. `--compare` also simulates the same requests with the preset `--preset`
and prints both.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from benchmarks.serving.served import get, served
from quartet.cli.options import add_options
from quartet.settings import build_config
from quartet.simulator.cost import fit
from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.presets import preset
from quartet.simulator.prompts import PromptMaker
from quartet.simulator.report import make_report
from quartet.simulator.request import Workload
from quartet.simulator.scenarios import Scenario, make_scenario
from quartet.simulator.trace_source import TraceOptions, load_trace
from quartet.wire.frames import unpack_ids
from scheduler_proc.core.step_cost import StepCost

IDS_KEPT_FREE = 1000
SNAPSHOT_S = 1.2
"""How long until the metrics cover everything that has ended: they are published each second."""


async def run_one(session: aiohttp.ClientSession, url: str, start_s: float, request: Workload, ids: list[int]) -> Any:
    """Send one request at its time; returns (class, ttft, e2e, cached, input and output tokens, id)."""
    await asyncio.sleep(max(0.0, start_s + request.arrival_s - time.perf_counter()))
    body: dict[str, Any] = {
        "prompt": ids,
        "max_tokens": request.output_tokens,
        "temperature": 0,
        # Fixes the length as ignore_eos would, which changes how much the scheduler reserves.
        "min_tokens": request.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.priority is not None:
        body["priority"] = request.priority
    arrived = time.perf_counter()
    first = 0.0
    usage: dict[str, Any] = {}
    name = ""
    async with session.post(url + "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter()
                chunk = json.loads(line[6:])
                usage, name = chunk.get("usage") or usage, chunk["id"].rpartition("-")[2]
    ended = time.perf_counter()
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return request.label, first - arrived, ended - arrived, cached, len(ids), usage["completion_tokens"], name


async def run_all(url: str, scenario: Scenario) -> dict[str, Any]:
    """Run every request and return the metrics."""
    maker = PromptMaker()
    prompts = [[token + IDS_KEPT_FREE for token in unpack_ids(maker.make(one))] for one in scenario.requests]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        start_s = time.perf_counter() + 0.5
        rows = await asyncio.gather(
            *(run_one(session, url, start_s, one, ids) for one, ids in zip(scenario.requests, prompts, strict=True))
        )
        duration_s = time.perf_counter() - start_s
    by_class: dict[str, list[float]] = {}
    for label, _, e2e, *_ in rows:
        by_class.setdefault(label, []).append(e2e)
    return {
        "ids": [row[6] for row in rows],
        "requests": len(rows),
        "duration_s": round(duration_s, 3),
        "output_tokens_per_s": round(sum(row[5] for row in rows) / duration_s, 2),
        "prefix_hit_rate": round(sum(row[3] for row in rows) / sum(row[4] for row in rows), 4),
        "ttft_s": summary([row[1] for row in rows]),
        "tpot_s": summary([(row[2] - row[1]) / (row[5] - 1) for row in rows if row[5] > 1]),
        "e2e_s": summary([row[2] for row in rows]),
        "e2e_s_by_class": {label: summary(values) for label, values in sorted(by_class.items())},
    }


def summary(values: list[float]) -> dict[str, float]:
    """Return mean and percentiles."""
    values = sorted(values)
    at = lambda share: round(values[min(len(values) - 1, int(share * len(values)))], 4)  # noqa: E731
    return {"mean": round(sum(values) / len(values), 4), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99)}


def counters(url: str) -> dict[str, float]:
    """Return the scheduler's counters from /metrics."""
    time.sleep(SNAPSHOT_S)
    text = get(url + "/metrics").decode()
    wanted = {
        "retractions": "num_retracted_requests",
        "preemptions": "num_preempted_requests",
        **{name: name for name in ("recomputed_tokens", "prefill_steps", "decode_steps")},
    }
    found: dict[str, float] = {}
    for line in text.splitlines():
        for name, exported in wanted.items():
            if line.startswith(f"quartet_{exported}_total"):
                found[name] = found.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    return found


def main(argv: list[str]) -> int:
    """Run the scenario live, and simulate it with --compare."""
    parser = argparse.ArgumentParser(description="run a scenario on the live engine")
    parser.add_argument("scenario")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--preset", default="smollm2-cpu")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="simulate the same requests too")
    parser.add_argument("--first", type=float, default=0.0, help="minutes of a trace")
    parser.add_argument("--speed", type=float, default=1.0, help="let a trace arrive so many times as fast")
    parser.add_argument("--steps", default="", help="measured steps (fit_step_cost) in place of the preset")
    parser.add_argument("--schedule-policy", default="fcfs")
    arguments, flags = parser.parse_known_args(argv)
    given = dict(pair.split("=", 1) for pair in arguments.set)
    engine = preset(arguments.preset)
    if arguments.steps:
        engine = msgspec.structs.replace(engine, cost=fit(Path(arguments.steps)))
    if Path(arguments.scenario).is_file():
        options = TraceOptions(first_minutes=arguments.first, speed=arguments.speed)
        scenario = of_trace(Path(arguments.scenario), options, engine)
    else:
        scenario = make_scenario(arguments.scenario, engine, arguments.seed, given)
    size = ["--max-total-tokens", str(scenario.engine.kv_tokens)]
    if scenario.max_running_requests:
        size += ["--max-running-requests", str(scenario.max_running_requests)]
    with served(arguments.model, "--schedule-policy", arguments.schedule_policy, *size, *flags) as url:
        live = asyncio.run(run_all(url, scenario)) | counters(url)
        ids = live.pop("ids")
        if arguments.compare:
            live["admission_order"] = admission_order(url, ids)
    print(json.dumps({"live": live, "policy": arguments.schedule_policy, "flags": flags, "set": given}))
    if arguments.compare:
        print(json.dumps({"simulated": simulated(scenario, arguments.schedule_policy, flags)}))
    return 0


def of_trace(path: Path, options: TraceOptions, engine: SimulatedEngine) -> Scenario:
    """Return the requests of a trace that fit into the engine's context."""
    found = [one for one in load_trace(path, options) if one.input_tokens + one.output_tokens < engine.context_length]
    return Scenario(name=path.stem, engine=engine, requests=found)


def admission_order(url: str, ids: list[str]) -> list[int]:
    """Return the numbers of the requests in the order in which they first took a slot, from the engine's trace.

    Requests that enter in the same step stand in the order of their numbers. The trace holds the last thousand.
    """
    trace = json.loads(get(url + "/trace"))
    rows = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    admitted: dict[str, tuple[float, int]] = {}
    for order, event in enumerate(trace["traceEvents"]):
        if event["name"] == "admitted":
            admitted.setdefault(rows[event["tid"]].partition("/")[0], (event["ts"], order))
    return sorted(range(len(ids)), key=lambda number: admitted[ids[number][:8]][0])


def simulated(scenario: Scenario, policy: str, flags: list[str]) -> dict[str, Any]:
    """Simulate the same requests with the same settings; the limit of each request is its true length."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    given = vars(parser.parse_args(flags)) | {"scheduler.schedule_policy": policy}
    config = build_config(given, {})
    engine = scenario.engine
    if config.worker.simulated_worker:
        step_s = config.worker.simulated_step_ms / 1000
        engine = msgspec.structs.replace(engine, cost=StepCost(step_s, 0.0, 0.0, 0.0, 0.0), is_cpu=False)
    slots = config.scheduler.max_running_requests or scenario.max_running_requests
    scheduler = msgspec.structs.replace(config.scheduler, max_running_requests=slots)
    requests = [msgspec.structs.replace(one, max_tokens=one.output_tokens) for one in scenario.requests]
    run = simulate(requests, engine, scheduler)
    report = msgspec.to_builtins(make_report(run, engine, 512))
    times = [outcome.admitted_s for outcome in run.outcomes]
    report["admission_order"] = sorted(range(len(times)), key=lambda number: times[number])
    wanted = ("duration_s", "output_tokens_per_s", "prefix_hit_rate", "ttft_s", "tpot_s", "e2e_s_by_class")
    return {
        name: report[name] for name in (*wanted, "retractions", "preemptions", "recomputed_tokens", "admission_order")
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
