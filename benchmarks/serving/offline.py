"""The offline engine beside the served path: the same requests through `LLM` in one process and through the processes.

    python -m benchmarks.serving.offline MODEL [--nano] [--streams 8] [--prompt 32] [--output 64] [--passes 3]
                                               [--set SECTION.FIELD=VALUE] [--json FILE]

MODEL is smollm2 or one of benchmarks/models (random weights). The requests are ids, greedy, and end by length; with
--nano they are nano-vllm's 256. The two paths alternate, each in processes of its own; the served one is measured by a
client in the place of the api process, so neither pays for HTTP. Prints output tokens per second of each pass.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from typing import Any

from benchmarks.model_configs import FOLDER, MODELS, ROOT, TOKENIZER
from benchmarks.report import describe_host, report
from benchmarks.serving.gpu_launch import SETTINGS, add_arguments, parse_settings, run_launch
from benchmarks.serving.gpu_traffic import NANO_TEMPERATURE, draw_ids, nano_lengths

SMOLLM2 = {
    "model.model_path": "smollm2",
    "model.load_format": "auto",
    "model.context_length": 0,
    "model.tokenizer_path": "",
    "worker.max_total_tokens": 32768,
}


def run_offline(model: str, lengths: list[tuple[int, int]], temperature: float, settings: dict[str, Any]) -> None:
    """Run one pass on LLM and print its tokens per second and seconds of processor time."""
    from quartet import LLM, SamplingParams

    fields = {"model.model_path": str(FOLDER / model), "model.tokenizer_path": str(TOKENIZER), **SETTINGS, **settings}
    keywords = {name.partition(".")[2]: value for name, value in fields.items() if not name.startswith("server.")}
    llm = LLM(keywords.pop("model_path"), **keywords)
    draw = random.Random(1)

    def requests(wanted: list[tuple[int, int]]) -> tuple[list[list[int]], list[SamplingParams]]:
        prompts = [draw_ids(draw, prompt) for prompt, _ in wanted]
        return prompts, [
            SamplingParams(max_new_tokens=output, temperature=temperature, ignore_eos=True) for _, output in wanted
        ]

    llm.generate(*requests([(300, 8)] * 4))
    prompts, params = requests(lengths)
    started, spent = time.perf_counter(), time.process_time()
    tokens = sum(len(answer.ids) for answer in llm.generate(prompts, params))
    tokens_per_s, cpu_s = tokens / (time.perf_counter() - started), time.process_time() - spent
    print(json.dumps({"tokens_per_s": round(tokens_per_s, 1), "cpu_s": round(cpu_s, 3)}), flush=True)


def offline_pass(arguments: list[str]) -> float:
    """Return the tokens per second of one pass on LLM, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serving.offline", *arguments, "--one-pass"]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: float = json.loads(finished.stdout.splitlines()[-1])["tokens_per_s"]
    return found


def main(arguments: list[str]) -> int:
    """Measure both paths in turn."""
    parser = argparse.ArgumentParser(description="offline beside served")
    parser.add_argument("model", choices=("smollm2", *MODELS))
    parser.add_argument("--nano", action="store_true", help="nano-vllm's requests")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--one-pass", action="store_true", help=argparse.SUPPRESS)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    settings = {**(SMOLLM2 if options.model == "smollm2" else {}), **parse_settings(options.set)}
    lengths = nano_lengths() if options.nano else [(options.prompt, options.output)] * options.streams
    if options.one_pass:
        run_offline(options.model, lengths, NANO_TEMPERATURE if options.nano else 0.0, settings)
        return 0
    shape = {"streams": options.streams, "prompt": options.prompt, "output": options.output}
    workload = {"kind": "nano", "passes": 1} if options.nano else {"kind": "batch", **shape, "passes": 1}
    folder = options.model if options.model in MODELS else MODELS[0]
    found: dict[str, list[float]] = {"offline": [], "served": []}
    for _ in range(options.passes):
        found["offline"].append(offline_pass(arguments))
        (served,) = run_launch(folder, [workload], settings)["results"]
        found["served"].append(served["passes_found"][0]["tokens_per_s"])
    facts = {"model": options.model, "requests": "nano" if options.nano else shape, **describe_host(), **found}
    report({"offline": facts}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
