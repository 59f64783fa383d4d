"""`quartet bench serve` beside vLLM's client: the same requests to one server, in turn, and the figures of both.

    python -m benchmarks.serving.client_agreement SOURCE --python .clients/sglang/bin/python --tokenizer FOLDER

SOURCE and the interpreter are those of vllm_client.py; FOLDER has the tokenizer.json of the served model. The server's
worker is simulated, so a step takes a fixed time. Seed, rate and lengths of a pair are the same, and both clients draw
the same arrivals and lengths from them. Prints the comparison, and how far the figures differ that either client's
definitions give for one and the same run: that of vLLM's client, which saves the times of every request.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.served import served
from quartet.bench.compare import compare, print_comparison, read_runs
from quartet.bench.metrics import METRICS, figures
from quartet.bench.plan import Record

STEP_MS = 50
LOAD = "--num-prompts 60 --random-input-len 64 --random-output-len 32 --random-range-ratio 0.3 --request-rate 6"
CLIENT = Path(__file__).with_name("vllm_client.py")
FACTS = ("mean", "median", "std", "p99")


def run_pair(arguments: argparse.Namespace, url: str, seed: int, folder: Path) -> None:
    """Run both clients; each writes its result into a folder of its own."""
    load = [*LOAD.split(), "--dataset-name", "random", "--seed", str(seed), "--disable-tqdm"]
    load += ["--base-url", url, "--tokenizer", arguments.tokenizer, "--save-result", "--save-detailed"]
    other = [arguments.python, str(CLIENT), arguments.source, "--backend", "openai", "--model", "smollm2"]
    other += ["--ignore-eos", "--percentile-metrics", "ttft,tpot,itl,e2el"]
    own = [sys.executable, "-m", "quartet", "bench", "serve"]
    for name, command in (("vllm", other), ("quartet", own)):
        where = ["--result-dir", str(folder / name), "--result-filename", f"{seed}.json"]
        (folder / name).mkdir(exist_ok=True)
        subprocess.run([*command, *load, *where], check=True, stdout=subprocess.DEVNULL)


def furthest(run: dict[str, Any]) -> tuple[float, str]:
    """Return by how much of its value a figure of vLLM's client differs at most from ours of the same times."""
    records = [
        Record(index=0, start_s=start, ttft_s=ttft, latency_s=latency, itl_s=itl, output_tokens=output)
        for start, ttft, latency, itl, output in zip(
            *(run[name] for name in ("start_times", "ttfts", "latencies", "itls", "output_lens")), strict=True
        )
    ]
    own = figures(records, run["duration"])
    names = [f"{fact}_{metric}_ms" for fact in FACTS for metric in METRICS]
    names += ["request_throughput", "output_throughput", "max_output_tokens_per_s", "max_concurrent_requests"]
    return max((abs(own[name] - run[name]) / run[name], name) for name in names)


def main(given: Sequence[str]) -> int:
    """Run the pairs and print both comparisons."""
    parser = argparse.ArgumentParser(description="two clients beside each other")
    parser.add_argument("source")
    parser.add_argument("--python", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--pairs", type=int, default=6)
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder, served("--simulated-worker", f"--simulated-step-ms={STEP_MS}") as url:
        for seed in range(1, arguments.pairs + 1):
            run_pair(arguments, url, seed, Path(folder))
        sides = [read_runs(Path(folder) / name) for name in ("vllm", "quartet")]
    print_comparison(compare(*sides), "vllm", "quartet")
    share, name = max(furthest(dict(run)) for run in sides[0])
    print(f"same run, both definitions: {name} differs most, by {share:.2e} of its value")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
