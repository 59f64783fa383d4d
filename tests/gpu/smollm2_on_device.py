"""SmolLM2 on a CUDA device against the committed oracle: fp32 exactly, bf16 up to near-ties; then served over HTTP.

    python -m tests.gpu.smollm2_on_device MODEL [--json FILE]

MODEL is the GGUF file or `smollm2`. Exit code 1 for any other difference.
"""

import argparse
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.golden.oracles import FOLDER, NEAR_TIE, Oracle, load
from tests.support.local_engine import LocalEngine, make_config
from tests.support.server import Server

NEW_TOKENS = 64


def first_divergence(oracle: Oracle, output: list[int]) -> int | None:
    """Return where `output` first leaves the oracle, or None."""
    for at, (got, wanted) in enumerate(zip(output, oracle.output_ids, strict=False)):
        if got != wanted:
            return at
    return None if len(output) == len(oracle.output_ids) else len(output)


def compare(oracles: list[Oracle], outputs: list[list[int]], near_tie: float) -> dict[str, Any]:
    """Return how many rows are equal, which differ and where, and which differ where the oracle has no near-tie."""
    left = {
        oracle.name: (at, oracle.margins[at] if at < len(oracle.margins) else None)
        for oracle, output in zip(oracles, outputs, strict=True)
        if (at := first_divergence(oracle, output)) is not None
    }
    wrong = [name for name, (_, margin) in left.items() if margin is None or margin > near_tie]
    return {"equal": len(oracles) - len(left), "of": len(oracles), "left": left, "wrong": wrong}


def run_local(model: str, dtype: str, oracles: list[Oracle]) -> dict[str, Any]:
    """Run the scheduler core and the runner in this process: together, from the cache, in small chunks, and alone."""
    engine = LocalEngine(make_config(model, dtype, device="cuda", max_total_tokens=65536))
    prompts = [oracle.prompt_ids for oracle in oracles]
    near_tie = 0.0 if dtype == "float32" else NEAR_TIE
    results: dict[str, Any] = {}
    for name, chunk, is_sharing in (("chunks of 512", 512, True), ("chunks of 16, no tree", 16, False)):
        engine.restart(chunked_prefill_size=chunk, disable_radix_cache=not is_sharing)
        results[f"together, {name}"] = compare(oracles, engine.generate(prompts, NEW_TOKENS), near_tie)
        if is_sharing:
            results[f"again from the cache, {name}"] = compare(oracles, engine.generate(prompts, NEW_TOKENS), near_tie)
    engine.restart(disable_radix_cache=True)
    alone = [engine.generate([prompt], NEW_TOKENS)[0] for prompt in prompts]
    results["each alone"] = compare(oracles, alone, near_tie)
    return results


def run_served(model: str, oracles: list[Oracle]) -> dict[str, Any]:
    """Serve in fp32 and compare the text of greedy completions with the text of the oracle's ids."""
    from tokenizers import Tokenizer

    folder = make_config(model).require_model().folder
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    wrong = []
    with Server(model, "--dtype", "float32") as server:
        for oracle in oracles:
            body = {
                "prompt": oracle.prompt_ids,
                "max_tokens": NEW_TOKENS,
                "temperature": 0,
                "ignore_eos": True,
                "skip_special_tokens": False,
            }
            request = urllib.request.Request(
                server.url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=120) as response:
                text = json.load(response)["choices"][0]["text"]
            if text != tokenizer.decode(oracle.output_ids, skip_special_tokens=False):
                wrong.append(oracle.name)
        ready = next(line for line in server.output if "ready at" in line)
    return {"equal": len(oracles) - len(wrong), "of": len(oracles), "wrong": wrong, "ready_line": ready}


def main() -> int:
    """Run everything; print one JSON object."""
    parser = argparse.ArgumentParser(description="SmolLM2 on a CUDA device against the oracle")
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    oracles = load(FOLDER / "smollm2_oracle.json")
    results = {
        "float32": run_local(arguments.model, "float32", oracles),
        "bfloat16": run_local(arguments.model, "bfloat16", oracles),
        "served float32": {"http": run_served(arguments.model, oracles)},
    }
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n")
    return 1 if any(case["wrong"] for group in results.values() for case in group.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
