"""Makes the steps that the simulator's GPU presets are fitted to from the measurements in benchmarks/results.

    python -m benchmarks.simulation.make_presets [--check]

Writes quartet/simulator/preset_steps.json and prints how far the fit is from each step. Decode steps are the gaps of
the whole engine, the median over the launches. A time to first token counts where the device decides it: from 1,024
tokens for the 8B model, from 4,096 for the small one. On the H100 no launch decodes at a second context, so the row at
4,096 is that at 1,040 plus what the attention kernel of each layer takes longer. The small model has none on the H200
either: there it is what the 8B model takes longer with the longer context, by layer, as both read 8 KV heads of 128.
"""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scheduler_proc.core.step_cost import MeasuredStep, fit_steps, pairs, residuals

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TARGET = ROOT / "quartet" / "simulator" / "preset_steps.json"
DECODE_CONTEXT = 1040
"""Context of the decode rows: 960 prompt tokens and half of 160 outputs."""
LAYERS = {"llama-3.1-8b": 32, "qwen3-0.6b": 28}
CONTEXT_LENGTH = {"llama-3.1-8b": 131_072, "qwen3-0.6b": 40_960}
FIRST_TOKEN_FROM = {"llama-3.1-8b": 1024, "qwen3-0.6b": 4096}
NAMES = {"llama-3.1-8b": "llama-8b", "qwen3-0.6b": "qwen3-0.6b"}
MIXED_TOKENS = {"llama-3.1-8b": 1344, "qwen3-0.6b": 4096}
"""What a worker on a GPU reports for the model (tests/unit/worker_proc/test_worker_step_sizes.py)."""
KV_TOKENS_H100 = {"llama-3.1-8b": 444_528, "qwen3-0.6b": 650_432}


def decode(rows: int, context: int, seconds: float, note: str) -> dict[str, Any]:
    """Return a decode step of `rows` rows with `context` tokens each."""
    return {
        "decode_rows": rows,
        "context_tokens": rows * context,
        "seconds": round(seconds, 7),
        "note": f"decode {rows} x {context}, {note}",
    }


def prefill(tokens: int, seconds: float, note: str) -> dict[str, Any]:
    """Return the step that computes a whole prompt of `tokens` tokens."""
    return {
        "prefill_tokens": tokens,
        "prefill_pairs": pairs(0, tokens),
        "seconds": round(seconds, 7),
        "note": f"first token of {tokens}, {note}",
    }


def of_launches(files: tuple[str, ...], model: str) -> Iterator[dict[str, Any]]:
    """Yield the median decode step of each batch and the median first token of each length over the launches."""
    steps: dict[int, list[float]] = {}
    firsts: dict[int, list[float]] = {}
    for file in files:
        for launch in read(file)["launches"]:
            for found in launch["results"] if launch["model"] == model else []:
                if found["kind"] == "decode":
                    steps.setdefault(found["batch"], []).append(found["step_ms"])
                elif found["kind"] == "ttft":
                    firsts.setdefault(found["prompt"], []).append(found["ttft_ms"])
    note = ", ".join(files)
    for rows, times in sorted(steps.items()):
        yield decode(rows, DECODE_CONTEXT, statistics.median(times) / 1e3, note)
    for tokens, times in sorted(firsts.items()):
        if tokens >= FIRST_TOKEN_FROM[model]:
            yield prefill(tokens, statistics.median(times) / 1e3, note)


def of_h100(model: str) -> Iterator[dict[str, Any]]:
    """Yield the steps on the H100."""
    kernel_us = {row["case"]: row["us"] for row in read("kernels-h100")["timings"]}
    longer_us = kernel_us["decode 256 x 4096 32/8 page 16"] - kernel_us["decode 256 x 1024 32/8 page 16"]
    for step in of_launches(("gpu-h100",), model):
        yield step
        if step.get("decode_rows") == 256:
            seconds = step["seconds"] + LAYERS[model] * longer_us / 1e6
            yield decode(256, 4096, seconds, f"and {LAYERS[model]} layers of the attention kernel in kernels-h100")


def of_h200(model: str) -> Iterator[dict[str, Any]]:
    """Yield the steps on the H200."""
    yield from of_launches(("restructured-h200", "found-by-trying-h200"), model)
    note = "beside-vllm-h200"
    written = read(note)
    for rows, found in written["decode_step_ms"][model].items():
        yield decode(int(rows), DECODE_CONTEXT, found["quartet"] / 1e3, note)
    measured = "llama-3.1-8b"
    for case, found in written["long_context_decode_step_ms"][measured].items():
        rows, context = (int(part.replace(",", "")) for part in case.split(" x "))
        longer_ms = found["quartet"] - written["decode_step_ms"][measured][str(rows)]["quartet"]
        step_ms = written["decode_step_ms"][model][str(rows)]["quartet"] + longer_ms * LAYERS[model] / LAYERS[measured]
        yield decode(rows, context, step_ms / 1e3, note if model == measured else f"{note}, by the 8B model's layers")
    for tokens, found in written["first_token_ms"][model].items():
        if int(tokens) >= FIRST_TOKEN_FROM[model]:
            yield prefill(int(tokens), found["quartet"] / 1e3, note)


def read(name: str) -> Any:
    """Return a file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def make() -> str:
    """Return the text of the file."""
    h200 = {found["model"]: found["kv_tokens"] for run in read("grammar-h200")["runs"] for found in run["models"]}
    presets = {}
    for model, name in NAMES.items():
        for device, kv_tokens, steps in (("h100", KV_TOKENS_H100, of_h100), ("h200", h200, of_h200)):
            presets[f"{name}-{device}"] = {
                "kv_tokens": kv_tokens[model],
                "context_length": CONTEXT_LENGTH[model],
                "mixed_tokens": MIXED_TOKENS[model],
                "steps": list(steps(model)),
            }
    return json.dumps(presets, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    """Write the file, or with --check say whether it is what the results give."""
    made = make()
    if arguments == ["--check"]:
        is_same = TARGET.read_text() == made
        print("as made" if is_same else f"{TARGET.name} is not what the results give: run the command without --check")
        return 0 if is_same else 1
    TARGET.write_text(made)
    for name, found in json.loads(made).items():
        steps = [MeasuredStep(**step) for step in found["steps"]]
        cost = fit_steps(steps)
        print(name, cost)
        for step, error in residuals(cost, steps):
            print(f"{step.seconds * 1e3:9.2f} ms {error:+7.1%}  {step.note}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
