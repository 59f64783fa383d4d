"""SGLang's serving benchmark, and through it the requests of vLLM's: every request succeeds, its tokens are counted."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import ARGUMENTS, KEY, MODEL, check, equal, main

REQUESTS, INPUT, OUTPUT = 12, 64, 16
STUBS = Path(__file__).resolve().parent / "stubs"


def benchmark(url: str, backend: str, *more: str) -> dict[str, float]:
    """Run the benchmark and return its results."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sglang.benchmark.serving", "--backend", backend, "--base-url", url]
        command += ["--dataset-name", "random-ids", "--num-prompts", str(REQUESTS), "--max-concurrency", "3"]
        command += ["--random-input-len", str(INPUT), "--random-output-len", str(OUTPUT), "--random-range-ratio", "1"]
        command += ["--model", ARGUMENTS.folder, "--tokenizer", ARGUMENTS.folder, "--served-model-name", MODEL]
        command += ["--output-file", f"{folder}/results.jsonl", "--disable-tqdm", *more]
        variables = {**os.environ, "OPENAI_API_KEY": KEY, "PYTHONPATH": str(STUBS)}
        finished = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=80)
        assert finished.returncode == 0, finished.stderr[-1500:] + finished.stdout[-1500:]
        return json.loads(Path(folder, "results.jsonl").read_text().splitlines()[-1])


def succeeds(url: str, backend: str, *more: str) -> None:
    result = benchmark(url, backend, *more)
    equal(result["completed"], REQUESTS)
    equal(result["total_output_tokens"], REQUESTS * OUTPUT)
    assert result["median_ttft_ms"] > 0 and result["output_throughput"] > 0


for name in ("sglang", "sglang-oai", "sglang-oai-chat", "vllm", "vllm-chat"):
    check(f"backend {name}", on="model")(lambda url, name=name: succeeds(url, name))


@check("backend sglang: prompts of ids, log-probabilities, an empty cache first")
def generate(url: str) -> None:
    succeeds(url, "sglang", "--tokenize-prompt", "--return-logprob", "--flush-cache")


if __name__ == "__main__":
    main("sglang benchmark", "sglang")
