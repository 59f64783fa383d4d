"""quartet bench serve: sends a workload to a running server and reports throughput and latencies.

Flags and rows are those of vLLM's and SGLang's clients, so their commands and results can be compared with ours.
"""

import argparse
import asyncio
import datetime
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from quartet.bench.datasets import as_texts, make_requests
from quartet.bench.fleet import Measured, measure
from quartet.bench.metrics import client_facts, client_warnings, figures
from quartet.bench.plan import PlannedRequest, Record, Target
from quartet.bench.report import print_result
from quartet.bench.routes import ROUTES
from quartet.bench.schedule import arrival_times
from quartet.cli.bench_output import (
    add_output_arguments,
    details,
    goodput_bounds,
    result_path,
    save,
    wanted_figures,
)
from quartet.cli.bench_workload import (
    ABOVE_0,
    COUNT,
    SHARE,
    SIZE,
    add_workload_arguments,
    vocabulary_of,
    workload_options,
)
from quartet.cli.engine_client import DEFAULT_URL, EngineClient, default_key
from quartet.runtime.failure_box import complain
from quartet.wire.errors import ConfigError, EngineError


class Model(msgspec.Struct):
    """One entry of ModelList."""

    id: str


class ModelList(msgspec.Struct):
    """What GET /v1/models gives."""

    data: list[Model]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add server, workload, traffic and output."""
    _add_server_arguments(parser)
    add_workload_arguments(parser)
    traffic = parser.add_argument_group("traffic")
    traffic.add_argument(
        "--request-rate", type=ABOVE_0, default=math.inf, metavar="X", help="requests a second; default: all at once"
    )
    traffic.add_argument(
        "--burstiness", type=ABOVE_0, metavar="X", help="1: Poisson (default); less: bursts; more: steadier"
    )
    traffic.add_argument("--max-concurrency", type=COUNT, default=0, metavar="N", help="most requests in flight")
    traffic.add_argument("--seed", type=SIZE, default=0, metavar="N", help="of prompts, lengths and arrivals")
    traffic.add_argument("--num-warmups", "--warmup-requests", type=SIZE, default=1, metavar="N", help="default: 1")
    traffic.add_argument(
        "--client-processes", type=COUNT, default=1, metavar="N", help="processes that send; default: 1"
    )
    add_output_arguments(parser)


def _add_server_arguments(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("server")
    url = os.environ.get("QUARTET_URL", DEFAULT_URL)
    key = default_key() or os.environ.get("OPENAI_API_KEY", "")
    server.add_argument("--backend", choices=sorted(ROUTES), default="openai", help="route (default: %(default)s)")
    server.add_argument("--base-url", "--url", dest="url", default=url, help="with or without /v1; %(default)s")
    server.add_argument("--host", help="with --port, in place of --base-url")
    server.add_argument("--port", type=COUNT, help="of the server, in place of --base-url")
    server.add_argument("--api-key", default=key, help="key to send (or QUARTET_API_KEY, OPENAI_API_KEY)")
    server.add_argument("--header", action="append", default=[], metavar="NAME=VALUE", help="HTTP header; repeatable")
    server.add_argument("--model", "--served-model-name", default="", help="default: the server's first")
    server.add_argument(
        "--tokenizer", default="", metavar="MODEL", help="folder, .gguf, smollm2; text datasets need it"
    )
    server.add_argument("--vocab-size", type=COUNT, default=0, metavar="N", help="ids below are drawn; 32000")
    server.add_argument("--temperature", type=SHARE, default=0.0, metavar="X", help="default: 0, greedy")
    server.add_argument(
        "--ignore-eos", action=argparse.BooleanOptionalAction, default=True, help="outputs of full length"
    )
    server.add_argument("--disable-ignore-eos", action="store_false", dest="ignore_eos", help="as --no-ignore-eos")
    server.add_argument(
        "--extra-body", "--extra-request-body", type=json.loads, default={}, metavar="JSON", help="fields to add"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and report; returns 1 if no request succeeded. Raises ConfigError, ModelError or EngineError."""
    metrics, percentiles = wanted_figures(arguments)
    goodput = goodput_bounds(arguments.goodput)
    requests = plan_requests(arguments)
    target = _target(arguments)
    _warm_up(target, requests, arguments.num_warmups)
    measured = _measure(arguments, target, requests)
    result = make_result(arguments, target, measured, percentiles, goodput)
    if arguments.json:
        print(msgspec.json.encode(result).decode())
    else:
        print_result(result, metrics, percentiles)
    for warning in client_warnings(result, requests[-1].due_s > 0):
        complain(f"quartet: {warning}")
    if arguments.save_detailed:
        result |= details(measured.records)
    if path := result_path(arguments, result):
        save(result, path, arguments.append_result)
    if arguments.plot:
        from quartet.bench.plots import save_plots

        save_plots(measured.records, Path(arguments.plot), f"{target.model} {arguments.dataset_name}")
    return 0 if result["completed"] else 1


def plan_requests(arguments: argparse.Namespace) -> list[PlannedRequest]:
    """Return the requests in the order of their times; raises ConfigError or ModelError."""
    rate = arguments.request_rate
    if arguments.burstiness and (math.isinf(rate) or arguments.dataset_name == "trace"):
        raise ConfigError("--burstiness shapes the arrivals of --request-rate, which is not given or a trace's own")
    vocabulary = vocabulary_of(arguments.tokenizer, arguments.vocab_size)
    requests = make_requests(workload_options(arguments, arguments.seed, rate), vocabulary)
    if any(one.ids for one in requests) and not ROUTES[arguments.backend].takes_ids:
        vocabulary.require(f"--backend {arguments.backend} takes text")
        requests = as_texts(requests, vocabulary)
    if arguments.dataset_name == "trace":
        return requests
    times = arrival_times(len(requests), rate, arguments.burstiness or 1.0, arguments.seed)
    return [msgspec.structs.replace(one, due_s=due_s) for one, due_s in zip(requests, times, strict=True)]


def _target(arguments: argparse.Namespace) -> Target:
    url = arguments.url
    if arguments.host or arguments.port:
        url = f"http://{arguments.host or '127.0.0.1'}:{arguments.port or DEFAULT_URL.rpartition(':')[2]}"
    headers = {"Authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
    for pair in arguments.header:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--header: {pair!r} is not NAME=VALUE")
        headers[name.strip()] = value
    if not isinstance(arguments.extra_body, dict):
        raise ConfigError("--extra-body is not a JSON object")

    async def first_model() -> str:
        async with EngineClient(url, arguments.api_key) as engine:
            models = (await engine.get("/v1/models", ModelList)).data
        if not models:
            raise EngineError(f"{url} serves no model; give --model")
        return models[0].id

    return Target(
        address=EngineClient(url).address,
        backend=arguments.backend,
        model=arguments.model or asyncio.run(first_model()),
        headers=headers,
        temperature=arguments.temperature,
        has_ignore_eos=arguments.ignore_eos,
        extra_body=arguments.extra_body,
    )


def _warm_up(target: Target, requests: Sequence[PlannedRequest], count: int) -> None:
    """Send `count` requests; raises EngineError if the first fails. Their prompts are those of the workload reversed,
    so that they leave no prefix of it in a cache."""
    if not count:
        return
    warm_ups = [
        msgspec.structs.replace(one, due_s=0.0, text=one.text[::-1], ids=_reversed_ids(one.ids))
        for one in requests[:count]
    ]
    first = measure(target, warm_ups).records[0]
    if first.failure:
        raise EngineError(f"the first request to {target.address} failed: {first.failure}: {first.message}")


def _reversed_ids(ids: bytes) -> bytes:
    # Little endian ids are big endian ones when all bytes are reversed.
    return b"".join(ids[at : at + 4] for at in range(len(ids) - 4, -1, -4))


def _measure(arguments: argparse.Namespace, target: Target, requests: Sequence[PlannedRequest]) -> Measured:
    columns = TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    is_shown = not arguments.disable_tqdm and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown, transient=True) as bars:
        bar = bars.add_task("", total=len(requests))
        return measure(
            target,
            requests,
            arguments.max_concurrency,
            arguments.client_processes,
            lambda ended: bars.update(bar, completed=ended),
        )


def make_result(
    arguments: argparse.Namespace,
    target: Target,
    measured: Measured,
    percentiles: Sequence[float],
    goodput_ms: dict[str, float],
) -> dict[str, Any]:
    """Return the result of a run under the names of vLLM's client, and what it was run with."""
    rate = "inf" if math.isinf(arguments.request_rate) else arguments.request_rate
    examples: dict[str, str] = {}
    for record in measured.records:
        if record.failure:
            examples.setdefault(record.failure, record.message)
    _count_texts(arguments, measured.records)
    return {
        "date": datetime.datetime.now().strftime("%Y%m%d-%H%M%S"),
        "backend": arguments.backend,
        "model_id": target.model,
        "tokenizer_id": arguments.tokenizer or None,
        "dataset_name": arguments.dataset_name,
        "num_prompts": len(measured.records),
        "seed": arguments.seed,
        "request_rate": "trace" if arguments.dataset_name == "trace" else rate,
        "burstiness": arguments.burstiness or 1.0,
        "max_concurrency": arguments.max_concurrency or None,
        **figures(measured.records, measured.duration_s, percentiles, goodput_ms),
        **client_facts(measured.records, measured.cpu_shares),
        "error_examples": examples,
    }


def _count_texts(arguments: argparse.Namespace, records: Sequence[Record]) -> None:
    """Count the tokens of outputs for which the server counts none, as far as a tokenizer is given."""
    if not arguments.tokenizer or not any(record.text for record in records):
        return
    vocabulary = vocabulary_of(arguments.tokenizer)
    for record in records:
        if record.text:
            record.output_tokens = vocabulary.count(record.text)
