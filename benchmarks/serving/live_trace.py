"""Runs a scenario on the real processes over HTTP and prints the metrics that `quartet simulate` prints.

    python -m benchmarks.serving.live_trace rag [--set NAME=VALUE ...] [--model smollm2] [any flag of quartet serve]
    python -m benchmarks.serving.live_trace FILE [--first MINUTES] [--speed X | --load SHARE --minutes M] ...

FILE is a trace; of it only the requests that fit into the engine's context are sent. With --load it arrives so fast
that it is that share of what the simulated engine can take with fcfs, for M minutes. The engine gets the size of the
scenario (KV, slots); prompts are synthetic ids. `--compare` also simulates the same requests and prints both, with the
preset `--preset` or, given `--fit`, with step costs measured on the engine itself as `quartet advise --fit URL` does.
"""

import argparse
import asyncio
import gc
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from benchmarks.serving.served import get, served
from quartet.cli.calibration import calibrated
from quartet.cli.options import add_options
from quartet.cli.simulate import sized_engine
from quartet.settings import build_config
from quartet.simulator.capacity import UNBOUNDED_QUEUE, at_speed, capacity, speed_for
from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.presets import preset
from quartet.simulator.prompts import PromptMaker
from quartet.simulator.report import make_report, summarise
from quartet.simulator.request import Workload
from quartet.simulator.scenarios import Scenario, make_scenario
from quartet.simulator.trace_source import TraceOptions, load_trace
from quartet.wire.config import Config, SchedulerConfig
from quartet.wire.frames import unpack_ids
from scheduler_proc.core.step_cost import StepCost

IDS_KEPT_FREE = 1000
JSON = {"Content-Type": "application/json"}
LOAD_REQUESTS = 600
"""Of the beginning of a trace, by which capacity is measured; fewer if fewer arrive."""
FEWEST_REQUESTS = 30
TOLD_REQUESTS = 1000
SNAPSHOT_S = 1.2
"""How long until the metrics cover everything that has ended: they are published each second."""


def body_of(request: Workload, prompt: bytes) -> bytes:
    """Return the body that asks for a request; `prompt` is what PromptMaker gives."""
    body: dict[str, Any] = {
        "prompt": [token + IDS_KEPT_FREE for token in unpack_ids(prompt)],
        "max_tokens": request.output_tokens,
        "temperature": 0,
        # Fixes the length as ignore_eos would, which changes how much the scheduler reserves.
        "min_tokens": request.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.priority is not None:
        body["priority"] = request.priority
    return msgspec.json.encode(body)


async def run_one(session: aiohttp.ClientSession, url: str, start_s: float, request: Workload, body: bytes) -> Any:
    """Send one request at its time; returns (class, ttft, e2e, cached, input and output tokens, id)."""
    await asyncio.sleep(max(0.0, start_s + request.arrival_s - time.perf_counter()))
    arrived = time.perf_counter()
    first = 0.0
    usage: dict[str, Any] = {}
    name = ""
    async with session.post(url + "/v1/completions", data=body, headers=JSON) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter()
                chunk = json.loads(line[6:])
                usage, name = chunk.get("usage") or usage, chunk["id"].rpartition("-")[2]
    ended = time.perf_counter()
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return (
        request.label,
        first - arrived,
        ended - arrived,
        cached,
        usage["prompt_tokens"],
        usage["completion_tokens"],
        name,
    )


async def run_all(url: str, scenario: Scenario) -> dict[str, Any]:
    """Run every request and return the metrics."""
    maker = PromptMaker()
    bodies = [body_of(one, maker.make(one)) for one in scenario.requests]
    # A collection that walks the bodies would delay what is being measured.
    gc.freeze()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        start_s = time.perf_counter() + 0.5
        rows = await asyncio.gather(
            *(run_one(session, url, start_s, one, body) for one, body in zip(scenario.requests, bodies, strict=True))
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
    """Return mean and percentiles, as the simulator does."""
    return {name: round(value, 5) for name, value in msgspec.to_builtins(summarise(values)).items()}


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
    parser.add_argument("--load", type=float, default=0.0, help="in place of --speed: share of capacity")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long requests arrive with --load")
    parser.add_argument("--fit", action="store_true", help="measure step costs on the engine first")
    arguments, flags = parser.parse_known_args(argv)
    config = config_of(flags)
    engine = engine_of(arguments, config)
    scenario, speed = scenario_of(arguments, engine, config)
    size = ["--max-total-tokens", str(scenario.engine.kv_tokens)]
    if scenario.max_running_requests:
        size += ["--max-running-requests", str(scenario.max_running_requests)]
    with served(arguments.model, *size, *flags) as url:
        if arguments.fit:
            engine, _ = calibrated(url, engine)
            scenario, speed = scenario_of(arguments, engine, config)
        before = counters(url)
        live = asyncio.run(run_all(url, scenario))
        live |= {name: value - before.get(name, 0.0) for name, value in counters(url).items()}
        ids = live.pop("ids")
        if arguments.compare:
            live["admission_order"] = admission_order(url, ids)
    print(json.dumps({"live": live, "flags": flags, "set": arguments.set, "speed": speed}))
    if arguments.compare:
        print(json.dumps({"simulated": simulated(scenario, config)}))
    return 0


def config_of(flags: list[str]) -> Config:
    """Return the configuration that flags of `quartet serve` give."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    return build_config(vars(parser.parse_args(flags)), {})


def engine_of(arguments: argparse.Namespace, config: Config) -> SimulatedEngine:
    """Return the engine that is simulated; steps of the simulated worker all take the same time."""
    engine = sized_engine(preset(arguments.preset), config)
    if config.worker.simulated_worker:
        step_s = config.worker.simulated_step_ms / 1000
        return msgspec.structs.replace(engine, cost=StepCost(step_s, 0.0, 0.0, 0.0, 0.0), is_cpu=False, mixed_tokens=0)
    return engine


def scenario_of(arguments: argparse.Namespace, engine: SimulatedEngine, config: Config) -> tuple[Scenario, float]:
    """Return the requests with the engine that they want, and how many times as fast a trace arrives."""
    path = Path(arguments.scenario)
    if not path.is_file():
        given = dict(pair.split("=", 1) for pair in arguments.set)
        found = make_scenario(arguments.scenario, engine, arguments.seed, given)
        return msgspec.structs.replace(found, engine=sized_engine(found.engine, config)), 1.0
    trace = load_trace(path, TraceOptions(first_minutes=arguments.first))
    requests = [one for one in trace if one.input_tokens + one.output_tokens < engine.context_length]
    speed = arguments.speed
    if arguments.load:
        plain = {"schedule_policy": "fcfs", "max_queued_requests": UNBOUNDED_QUEUE}
        scheduler = msgspec.structs.replace(config.scheduler, **plain)
        speed = speed_of(arguments, engine, requests[:LOAD_REQUESTS], scheduler)
    requests = spread(at_speed(requests, speed))
    if arguments.load:
        requests = [one for one in requests if one.arrival_s < 60 * arguments.minutes]
    return Scenario(name=path.stem, engine=engine, requests=requests), speed


def speed_of(
    arguments: argparse.Namespace, engine: SimulatedEngine, requests: list[Workload], scheduler: SchedulerConfig
) -> float:
    """Return how many times as fast the trace arrives: --load is a share of what the engine can take of the requests
    that come within --minutes, since the beginning of a trace may be thinner than what follows."""
    at_once = [msgspec.structs.replace(one, arrival_s=0.0) for one in requests]
    count = int(arguments.load * 60 * arguments.minutes * capacity(engine, at_once, scheduler))
    return speed_for(arguments.load, engine, requests[: max(count, FEWEST_REQUESTS)], scheduler)


def spread(requests: list[Workload]) -> list[Workload]:
    """Spread requests that arrive at one moment over the time to the next: a trace whose clock has coarse ticks does
    not say in which order they came, and two runs would each choose their own."""
    groups = [list(group) for _, group in itertools.groupby(requests, key=lambda one: one.arrival_s)]
    starts = [group[0].arrival_s for group in groups]
    ends = [*starts[1:], starts[-1]] if starts else []
    return [
        msgspec.structs.replace(one, arrival_s=start + (end - start) * at / len(group))
        for group, start, end in zip(groups, starts, ends, strict=True)
        for at, one in enumerate(group)
    ]


def admission_order(url: str, ids: list[str]) -> list[int]:
    """Return the numbers of the requests in the order in which they first took a slot, from the engine's trace.

    Requests that enter in the same step stand in the order of their numbers. Empty for more than the thousand requests
    of which the engine tells.
    """
    if len(ids) > TOLD_REQUESTS:
        return []
    trace = json.loads(get(url + "/trace"))
    rows = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    admitted: dict[str, tuple[float, int]] = {}
    for order, event in enumerate(trace["traceEvents"]):
        if event["name"] == "admitted":
            admitted.setdefault(rows[event["tid"]].partition("/")[0], (event["ts"], order))
    return sorted(range(len(ids)), key=lambda number: admitted[ids[number][:8]][0])


def simulated(scenario: Scenario, config: Config) -> dict[str, Any]:
    """Simulate the same requests with the same settings; the limit of each request is its true length."""
    slots = config.scheduler.max_running_requests or scenario.max_running_requests
    scheduler = msgspec.structs.replace(config.scheduler, max_running_requests=slots)
    requests = [msgspec.structs.replace(one, max_tokens=one.output_tokens) for one in scenario.requests]
    run = simulate(requests, scenario.engine, scheduler)
    report = msgspec.to_builtins(make_report(run, scenario.engine, 512))
    times = [outcome.admitted_s for outcome in run.outcomes]
    report["admission_order"] = sorted(range(len(times)), key=lambda number: times[number])
    wanted = ("duration_s", "output_tokens_per_s", "prefix_hit_rate", "ttft_s", "tpot_s", "e2e_s_by_class")
    return {
        name: report[name] for name in (*wanted, "retractions", "preemptions", "recomputed_tokens", "admission_order")
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
