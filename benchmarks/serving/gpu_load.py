"""Latencies under load: prompts of 512 tokens, outputs of 128, Poisson arrivals over HTTP; and nano's 256 at once.

    python -m benchmarks.serving.gpu_load MODEL [--rates 8 16 40 56] [--seconds 20] [--burst]
        [--tree FOLDER ...] [--set SECTION.FIELD=VALUE ...] [--json FILE]

Each launch serves with default settings but for --set. With several --tree, folders
with other commits of this repository, each is launched in turn, so that their figures are of one machine and hour. The
client is `quartet bench serve` of this folder. *Pause* is the longest gap between two pieces of a stream.

Prints one JSON object {"launches": [...]}; times in ms, p50 and p99 over the requests of a rate.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.model_configs import MODELS, ROOT, TOKENIZER
from benchmarks.report import describe_host
from benchmarks.serving.full_vocabulary import write_tokenizer
from benchmarks.serving.gpu_http import free_port, late_compiles, nano_bodies, send_together, wait_until_ready
from benchmarks.serving.gpu_launch import add_arguments, make_config, parse_settings, report_launches
from benchmarks.serving.gpu_traffic import nano_lengths

PROMPT_TOKENS, OUTPUT_TOKENS, VOCABULARY = 512, 128, 10000
CLIENT_PROCESSES = 2
END_LIMIT_S = 20.0


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50 and p99 in ms."""
    ordered = sorted(values)
    return {
        name: round(1e3 * ordered[int(share * (len(ordered) - 1))], 1) for name, share in (("p50", 0.5), ("p99", 0.99))
    }


def figures(detailed: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one rate from the client's detailed result."""
    ttfts, gaps = detailed["ttfts"], detailed["itls"]
    spans = [sum(own) for own in gaps]
    return {
        "failed": detailed["failed"],
        "tokens_per_s": round(detailed["output_throughput"]),
        "ttft": percentiles(ttfts),
        "tpot": percentiles([span / (OUTPUT_TOKENS - 1) for span in spans]),
        "pause": percentiles([max(own) for own in gaps if own]),
        "e2e": percentiles([first + span for first, span in zip(ttfts, spans, strict=True)]),
        "client_cpu_share": round(detailed["client_cpu_share"], 2),
    }


def under_load(port: int, command: list[str], folder: Path) -> dict[str, Any]:
    """Run the client with more flags; return its figures."""
    result = folder / "detailed.json"
    flags = ["--port", str(port), "--dataset-name", "random-ids", "--vocab-size", str(VOCABULARY)]
    flags += ["--client-processes", str(CLIENT_PROCESSES), "--num-warmups", "4", "--disable-tqdm"]
    flags += ["--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", result.name]
    subprocess.run(
        [sys.executable, "-m", "quartet", "bench", "serve", *flags, *command],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=600,
    )
    return figures(json.loads(result.read_text()))


def poisson(port: int, rate: float, seconds: float, folder: Path) -> dict[str, Any]:
    """Return the figures at `rate` requests a second."""
    lengths = ["--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS)]
    # Another seed for each rate: no prompt is in the prefix cache.
    traffic = [
        "--request-rate",
        str(rate),
        "--num-prompts",
        str(round(rate * seconds)),
        "--seed",
        str(round(100 * rate)),
    ]
    return {"kind": "poisson", "rate": rate, **under_load(port, [*lengths, *traffic], folder)}


def burst(port: int, number: int) -> dict[str, Any]:
    """Return tokens per second and pauses of nano's requests, sent at once; each pass has prompts of its own."""
    draw = random.Random(2 + number)
    found = asyncio.run(send_together(port, nano_bodies(draw, nano_lengths()), 4))
    return {
        "kind": "burst",
        "tokens_per_s": found["tokens_per_s"],
        "pause": percentiles(found["pauses_s"]),
        "last_first_event_s": found["last_first_event_s"],
    }


def run_tree(tree: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Launch the server of one tree and run every workload on it."""
    settings = parse_settings(options.set)
    found: dict[str, Any] = {"model": options.model, "settings": settings, **describe_host(), "results": []}
    found["commit"] = options.commits.get(tree.name, found["commit"])
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        write_tokenizer(TOKENIZER, make_config(options.model, {}).require_model().vocab_size, folder)
        served = {"scheduler.disable_radix_cache": False, **settings, "model.tokenizer_path": name, "server.port": port}
        command = [sys.executable, "-m", "benchmarks.serving.gpu_launch", "--served", options.model, json.dumps(served)]
        supervisor = subprocess.Popen(command, stdout=sys.stderr, cwd=tree)
        try:
            found["ready_s"] = wait_until_ready(port, supervisor)
            for rate in options.rates:
                found["results"].append(poisson(port, rate, options.seconds, folder))
                print(tree.name, json.dumps(found["results"][-1]), file=sys.stderr, flush=True)
            for number in range(options.burst):
                found["results"].append(burst(port, number))
                print(tree.name, json.dumps(found["results"][-1]), file=sys.stderr, flush=True)
            found["compiles_after_ready"] = late_compiles(port)
        except (OSError, RuntimeError, TimeoutError, subprocess.SubprocessError) as error:
            found["error"] = repr(error)
        finally:
            supervisor.terminate()
            supervisor.wait(END_LIMIT_S)
    return found


def main() -> int:
    """Run every tree and report the launches."""
    parser = argparse.ArgumentParser(description="latencies under load over HTTP")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--rates", nargs="*", type=float, default=[8, 16, 40, 56])
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals at each rate")
    parser.add_argument("--burst", type=int, default=0, metavar="PASSES", help="nano's requests at once")
    parser.add_argument("--tree", nargs="*", type=Path, default=[ROOT], help="folders to launch, in turn")
    parser.add_argument("--commits", type=json.loads, default={}, help="JSON: commits of trees without git, by name")
    add_arguments(parser)
    options = parser.parse_args()
    return report_launches([run_tree(tree, options) for tree in options.tree], options.json)


if __name__ == "__main__":
    sys.exit(main())
