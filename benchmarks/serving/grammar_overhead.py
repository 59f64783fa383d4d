"""What constrained rows cost a batch: decode steps of which some rows follow a JSON schema, two steps in flight.

    python -m benchmarks.serving.grammar_overhead [MODEL ...] [--rows 64] [--constrained 0 8 64] [--json FILE]
    python -m benchmarks.serving.grammar_overhead --tiny [--rows 8] [--constrained 0 1 8]

The runner alone, in this process; the numbers of constrained rows take turns, so that a change of the clock meets all
of them. Prints for each: the median and mean time of a step, tokens a second, the loss against the first number, the
processor time of this thread a step, and the host's time in what comes late, the masks and the launches of their
sampling, which passes while the device runs the forward pass. `--tiny` takes a model of two layers on the CPU.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.model_configs import FOLDER, MODELS, TINY_MODELS, TOKENIZER
from benchmarks.report import describe_host, report
from benchmarks.serving.full_vocabulary import write_tokenizer
from benchmarks.serving.gpu_launch import add_arguments, make_config, parse_settings
from quartet.wire.frames import Chunk, Enter, Grammar, SamplingParams, Step, pack_ids
from quartet.wire.ids import Epoch
from worker_proc.loading import load_runner
from worker_proc.runner import ModelRunner

EPOCH = Epoch(0)
CONTEXT, STEPS, WARM_UP_STEPS, ROUNDS = 256, 100, 20, 3
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 40},
                "country": {"enum": ["DE", "FR", "JP", "US"]},
            },
            "required": ["street", "country"],
            "additionalProperties": False,
        },
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
    },
    "required": ["name", "age", "address", "tags"],
    "additionalProperties": False,
}
# One object after the other, so that no row comes to its end.
SOURCE = "start: line{400}\nline: object /\\n/\nobject: %json " + json.dumps(SCHEMA)


class Batch:
    """Rows in decode, of which the first `constrained` have a grammar."""

    def __init__(self, runner: ModelRunner, rows: int, constrained: int) -> None:
        self._runner, self._number = runner, 0
        page_size = runner.capacity.page_size
        pages_each = -(-(CONTEXT + WARM_UP_STEPS + STEPS + 4) // page_size)
        enters = []
        for slot in range(rows):
            pages = pack_ids(list(range(1 + slot * pages_each, 1 + (slot + 1) * pages_each)))
            ids = pack_ids([(7 * slot + at) % 500 for at in range(CONTEXT)])
            grammar = Grammar("llguidance", SOURCE) if slot < constrained else None
            params = SamplingParams(temperature=1.0, seed=slot, ignore_eos=grammar is None, grammar=grammar)
            enters.append(Enter(slot, 1, ids, CONTEXT, CONTEXT - 1, pages, params, 0))
        self._launch(enters, [Chunk(slot, 1, True) for slot in range(rows)], decode=False).wait()

    def _launch(self, enters: list[Enter], chunks: list[Chunk], decode: bool) -> Any:
        self._number += 1
        return self._runner.launch(Step(EPOCH, self._number, b"", enters, b"", chunks, decode), EPOCH)

    def run(self, steps: int) -> tuple[list[float], list[float], list[float]]:
        """Return the times of the steps, the thread's times in them, and the host's times in what comes late, in
        seconds.

        As the worker's core does: the next step is launched, the one before is waited for, and its result sent; then
        the constrained rows of the next step are sampled."""
        ends, spent, late = [], [], []
        before = self._launch([], [], decode=True)
        for _ in range(steps + 1):
            following = self._launch([], [], decode=True)
            result = before.wait()
            assert not result.grammar_errors and not result.bad_rows
            ends.append(time.perf_counter())
            spent.append(time.thread_time())
            following.is_done()
            late.append(time.perf_counter() - ends[-1])
            before = following
        before.wait()
        steps_s, spent_s = ([later - earlier for earlier, later in pairwise(times)] for times in (ends, spent))
        return steps_s, spent_s, late


def measure(model: str, rows: int, counts: list[int], settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return one result for each number of constrained rows."""
    vocab_size = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    write_tokenizer(TOKENIZER, vocab_size, folder)
    config = make_config(model, {"model.tokenizer_path": str(folder), **settings})
    runner = load_runner(config, lambda: None)
    runner.allocate(runner.capacity.page_count)
    with torch.inference_mode():
        for kv in runner._caches:
            kv.normal_()
    started = time.perf_counter()
    compiled = runner.grammars.matcher(SOURCE)
    assert compiled.matcher is not None, compiled.error
    first_compile_s = time.perf_counter() - started
    found: dict[int, tuple[list[float], list[float], list[float]]] = {count: ([], [], []) for count in counts}
    for _ in range(ROUNDS):
        for count in counts:
            runner.reset()
            batch = Batch(runner, rows, count)
            batch.run(WARM_UP_STEPS)
            for kept, times in zip(found[count], batch.run(STEPS), strict=True):
                kept.extend(times)
    results = [summary(rows, count, *found[count]) for count in counts]
    for one in results:
        one["loss_percent"] = round(100 * (one["step_us"] / results[0]["step_us"] - 1), 2)
    facts = {"vocab_size": vocab_size, "first_compile_s": round(first_compile_s, 3), **runner.facts()}
    facts["compiles_after_ready"] = runner.late_compiles
    return {"model": model, "rows": rows, **facts, "results": results}


def summary(rows: int, constrained: int, steps: list[float], spent: list[float], late: list[float]) -> dict[str, Any]:
    """Return what is reported of one number of constrained rows."""
    return {
        "constrained": constrained,
        "step_us": round(1e6 * statistics.median(steps), 1),
        "mean_step_us": round(1e6 * statistics.fmean(steps), 1),
        "tokens_per_s": round(rows / statistics.median(steps)),
        "cpu_us": round(1e6 * statistics.median(spent), 1),
        "late_us": round(1e6 * statistics.median(late), 1),
        "p99_late_us": round(1e6 * statistics.quantiles(late, n=100)[98], 1),
    }


def main() -> int:
    """Measure each model and print one JSON object."""
    parser = argparse.ArgumentParser(description="what constrained rows cost a batch")
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--constrained", type=int, nargs="*", default=[0, 8, 64])
    parser.add_argument("--tiny", action="store_true", help="a model of two layers on the CPU")
    add_arguments(parser)
    options = parser.parse_args()
    models, settings = [str(FOLDER / model) for model in options.models], parse_settings(options.set)
    if options.tiny:
        models = [str(TINY_MODELS / "qwen3")]
        tokens = options.rows * (CONTEXT + 2 * STEPS)
        settings = {"worker.device": "cpu", "worker.max_total_tokens": tokens, "model.context_length": 0, **settings}
    found = []
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(model, options.rows, options.constrained, settings, Path(folder)))
    report({**describe_host(), "settings": settings, "models": found}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
