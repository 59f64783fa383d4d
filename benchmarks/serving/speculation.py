"""Time per output token with drafts and without, one stream: of text that repeats its prompt, and of other text.

    python -m benchmarks.serving.speculation MODEL [--tokens 8] [--quoted 0.6] [--passes 3] [--json FILE]

MODEL is smollm2, whose prompts are a text and its beginning once more, which it goes on to repeat, or one of
benchmarks/models. Of those the weights are random, and the outputs of attention and MLP zero: each token follows from
the one before it, at the cost of the whole model. The prompt then holds pieces of the answer, `--quoted` of it in all.
Each pass is a process of its own; those with drafts and without alternate and must say the same.
"""

import argparse
import dataclasses
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch

from benchmarks.model_configs import FOLDER, MODELS, ROOT, TOKENIZER
from benchmarks.report import describe_host, report
from benchmarks.serving.gpu_launch import SETTINGS
from quartet import LLM, SamplingParams
from worker_proc import loading
from worker_proc.weights.dummy import dummy_tensors

OUTPUT, PROMPT, PIECE = 256, 1024, 32
FIRST_WORDS = 40


def markov_tensors(*arguments: Any) -> Any:
    """Random weights with which a token follows from the one before it alone."""
    tensors = dummy_tensors(*arguments)
    layers = (
        dataclasses.replace(layer, output=torch.zeros_like(layer.output), down=torch.zeros_like(layer.down))
        for layer in tensors.layers
    )
    return dataclasses.replace(tensors, layers=layers)


def make(model: str, most: int) -> LLM:
    """Return an engine with at most `most` drafted tokens."""
    if model == "smollm2":
        return LLM(model, speculative_tokens=most, max_total_tokens=16384)
    fields = {"model.tokenizer_path": str(TOKENIZER), **SETTINGS}
    keywords = {name.partition(".")[2]: value for name, value in fields.items() if not name.startswith("server.")}
    keywords.update(speculative_tokens=most, max_total_tokens=65536)
    with mock.patch.object(loading, "dummy_tensors", markov_tensors):
        return LLM(str(FOLDER / model), **keywords)


def prompts_of(model: str, llm: LLM, quoted: float) -> dict[str, Any]:
    """Return a prompt whose answer quotes it, and one whose answer does not."""
    if model == "smollm2":
        words = (ROOT / "docs" / "add-a-model.md").read_text().split()
        text = " ".join(words[:220])
        return {"quoting": f"{text}\n\n{' '.join(words[:FIRST_WORDS])}", "other": "Once upon a time"}
    draw = random.Random(3)
    plain = [draw.randrange(1000, 100_000) for _ in range(PROMPT)]
    (answer,) = llm.generate([plain], SamplingParams(max_new_tokens=OUTPUT, temperature=0.0, ignore_eos=True))
    pieces = [list(answer.ids[at : at + PIECE]) for at in range(0, OUTPUT, PIECE)]
    draw.shuffle(pieces)
    held = [token for piece in pieces[: round(quoted * len(pieces))] for token in piece]
    return {"quoting": [*plain[: PROMPT - len(held) - 1], *held, plain[-1]], "other": plain}


def measured(llm: LLM, prompt: Any) -> tuple[float, list[int]]:
    """Return milliseconds per output token, the first left out, and the ids."""
    one = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True)
    llm.generate([prompt], one)
    started = time.perf_counter()
    llm.generate([prompt], one)
    first = time.perf_counter()
    (answer,) = llm.generate([prompt], SamplingParams(max_new_tokens=OUTPUT, temperature=0.0, ignore_eos=True))
    spent_s = time.perf_counter() - first - (first - started)
    return 1e3 * spent_s / (OUTPUT - 1), list(answer.ids)


def one_pass(model: str, most: int, quoted: float) -> None:
    """Measure one engine and print what was found."""
    llm = make(model, most)
    found = {name: measured(llm, prompt) for name, prompt in prompts_of(model, llm, quoted).items()}
    print(json.dumps(found), flush=True)


def run_pass(model: str, most: int, quoted: float) -> dict[str, Any]:
    """Return what a pass in a process of its own has found: by prompt, milliseconds a token and the ids."""
    arguments = [model, "--tokens", str(most), "--quoted", str(quoted), "--one-pass"]
    command = [sys.executable, "-m", "benchmarks.serving.speculation", *arguments]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="speculative decoding")
    parser.add_argument("model", choices=["smollm2", *MODELS])
    parser.add_argument("--tokens", type=int, nargs="*", default=[8])
    parser.add_argument("--quoted", type=float, default=0.6)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--json", default="")
    parser.add_argument("--one-pass", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one_pass:
        one_pass(options.model, options.tokens[0], options.quoted)
        return
    times: dict[str, list[float]] = {}
    answers: dict[str, set[tuple[int, ...]]] = {}
    for _ in range(options.passes):
        for most in (0, *options.tokens):
            for name, (ms, ids) in run_pass(options.model, most, options.quoted).items():
                times.setdefault(f"{name} {most}", []).append(round(ms, 3))
                answers.setdefault(name, set()).add(tuple(ids))
    rows = {name: statistics.median(found) for name, found in times.items()}
    for name, ms in rows.items():
        base = rows[f"{name.split()[0]} 0"]
        print(f"{name:12} {ms:8.2f} ms a token, {ms / base:.2f} of none", flush=True)
    are_equal = {name: len(found) == 1 for name, found in answers.items()}
    result = {"host": describe_host(), "model": options.model, "quoted": options.quoted, "ms": times}
    report({**result, "outputs_are_equal": are_equal}, options.json)


if __name__ == "__main__":
    main()
