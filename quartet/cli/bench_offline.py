"""quartet bench offline: throughput of the engine in this process, or the latency of a batch.

Every setting of the engine is the flag that `quartet serve` has; --seed draws the workload, too.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from quartet.bench.datasets import Options, make_requests
from quartet.bench.vocabulary import Vocabulary
from quartet.cli.bench_output import save
from quartet.cli.bench_workload import COUNT, SIZE, add_workload_arguments, workload_options
from quartet.cli.options import add_options
from quartet.settings import OFFLINE, SETTINGS, meaning_of, parse_value
from quartet.wire.errors import ConfigError

PERCENTILES = (10.0, 25.0, 50.0, 75.0, 90.0, 99.0)
BATCHED = ("random-ids", "random")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the workload, what to measure, and the engine's settings."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder, .gguf file, hub id, or smollm2 (the default)"
    )
    add_workload_arguments(parser)
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--batch-size", type=COUNT, metavar="N", help="measure the latency of batches of N prompts, not throughput"
    )
    group.add_argument("--num-iters", type=COUNT, default=10, metavar="N", help="batches to measure (default: 10)")
    group.add_argument("--num-iters-warmup", type=SIZE, default=2, metavar="N", help="batches before (default: 2)")
    group.add_argument(
        "--ignore-eos", action=argparse.BooleanOptionalAction, default=True, help="outputs of full length"
    )
    group.add_argument("--result-filename", default="", metavar="FILE", help="write the result as JSON")
    group.add_argument("--json", action="store_true", help="print the result as one JSON object")
    add_options(parser, OFFLINE)


def run(arguments: argparse.Namespace) -> int:
    """Measure and report; returns the exit code. Raises ConfigError, ModelError or EngineError."""
    settings = engine_settings(vars(arguments), arguments.model)
    options = workload_options(arguments, int(settings.get("random_seed", 0)))
    options = msgspec.structs.replace(options, is_timed=False)
    if arguments.speed is not None:
        raise ConfigError("--speed changes times of arrival, and the offline engine gets all requests at once")
    if arguments.batch_size and (options.dataset_name not in BATCHED or options.num_prompts):
        raise ConfigError("--batch-size makes its own prompts: leave --num-prompts out, and take --dataset-name random")
    from quartet.bench.offline import measure_latency, measure_throughput
    from quartet.checkpoint.tokenizer_files import tokenizer_folder
    from quartet.checkpoint.tokenizer_loading import load_tokenizer
    from quartet.llm import LLM

    llm = LLM(**settings)
    size = llm.config.require_model().vocab_size
    vocabulary = Vocabulary(size, load_tokenizer(tokenizer_folder(llm.config)))
    facts: dict[str, Any] = {"model_id": llm.config.model.model_path, "dataset_name": options.dataset_name}
    if arguments.batch_size:
        batches = arguments.num_iters + arguments.num_iters_warmup
        requests = make_requests(_with_prompts(options, batches * arguments.batch_size), vocabulary)
        parts = [requests[number::batches] for number in range(batches)]
        facts |= {"batch_size": arguments.batch_size}
        facts |= measure_latency(llm, parts, arguments.num_iters_warmup, PERCENTILES)
    else:
        requests = make_requests(options, vocabulary)
        # Compiled kernels and the like are no part of the throughput; other ids leave no prefix in the cache.
        warm_up = make_requests(
            Options(seed=options.seed + 1, num_prompts=4, random_input_len=16, random_output_len=8), vocabulary
        )
        measure_throughput(llm, warm_up, True, False)
        facts |= measure_throughput(llm, requests, arguments.ignore_eos, sys.stderr.isatty())
    if arguments.json:
        print(msgspec.json.encode(facts).decode())
    else:
        print_facts(facts)
    if arguments.result_filename:
        save(facts, Path(arguments.result_filename))
    return 0


def _with_prompts(options: Options, count: int) -> Options:
    return msgspec.structs.replace(options, num_prompts=count)


def engine_settings(arguments: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """Return the settings that were given as keywords of LLM; raises ConfigError."""
    found = {
        name.partition(".")[2]: value for name, value in arguments.items() if "." in name and value not in (None, [])
    }
    for pair in arguments.get("scheduler_set") or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--scheduler-set: {pair!r} is not name=value")
        found[name.strip().replace("-", "_")] = value
    size = SETTINGS["page_size"]
    page_size = parse_value(size.type, found.get("page_size", size.default), "--page-size")
    for flag, value in arguments.get("other_flags") or []:
        found |= meaning_of(flag, value, f"{flag} {value}".rstrip(), page_size)
    if model is not None:
        if "model_path" in found:
            raise ConfigError(f"the model is given twice: {model} and {found['model_path']}")
        found["model_path"] = model
    return {"model" if name == "model_path" else name: value for name, value in found.items()}


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print one row a figure."""
    for name, value in facts.items():
        print(f"{name:<24} {value:,.2f}" if isinstance(value, float) else f"{name:<24} {value}")
