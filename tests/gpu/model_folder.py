"""One model folder in every way of tests.gpu.model_ways, compared token for token; see tests.gpu.models_on_device."""

import itertools
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quartet.wire.frames import SamplingParams
from scheduler_proc.core.checkpoints import Spacing
from tests.golden.oracles import FOLDER, load_for_launch
from tests.gpu.model_ways import ENGINES, TORCH, Way, draw_params, greedy_params, make_prompts, ways
from tests.support.ahead import Seen, generate_ahead
from tests.support.local_engine import LocalEngine, make_config
from tests.support.token_judge import TokenJudge

NEAR_TIE = 1e-4
"""The largest gap in logits by which the expected token may beat the one found."""
LOGPROB_TOLERANCE = 2e-4
GOLDEN = FOLDER / "models"
_TOKENIZER = GOLDEN / "qwen3"
_NEW_TOKENS, _QUICK_NEW_TOKENS = 40, 4


@dataclass(frozen=True, slots=True)
class Departure:
    """Where a row first differs from the reference, and the gap in logits between the expected and the found token."""

    prompt: int
    prompt_tokens: int
    at: int
    expected: int
    found: int
    gap: float


@dataclass(slots=True)
class Outcome:
    """The result of one way. `problems` are errors other than wrong tokens; `steps` are counted by kind.

    `logprob_error` is the largest difference of a token's log-probability from that of TORCH, where known.
    """

    way: str
    rows: int = 0
    left: list[Departure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    most_decode_rows: int = 0
    late_compiles: int = 0
    logprob_error: float | None = None
    seconds: float = 0.0

    def is_wrong(self) -> bool:
        """Return whether anything differs by more than a near-tie."""
        return bool(self.problems) or any(not abs(departure.gap) < NEAR_TIE for departure in self.left)

    def cell(self) -> str:
        """Return how many of the rows are equal; then ~ if others differ at near-ties only, ! if there is an error."""
        mark = "!" if self.is_wrong() else "~" if self.left else ""
        return f"{self.rows - len(self.left)}/{self.rows}{mark}"

    def lines(self) -> Iterator[str]:
        """Yield the lines to print: a summary of the way, then its departures and problems."""
        steps = ", ".join(f"{count} {kind}" for kind, count in sorted(self.steps.items()))
        if self.logprob_error is not None:
            steps += f"; logprobs within {self.logprob_error:.1e}"
        if self.late_compiles:
            steps += f"; {self.late_compiles} late compiles"
        yield f"{self.way:36} {self.cell():>7} {self.seconds:6.1f} s  at most {self.most_decode_rows} rows; {steps}"
        yield from (f"    {departure}" for departure in self.left)
        yield from (f"    {problem}" for problem in self.problems)


class FolderRun:
    """Runs one folder in every way. `is_quick`: with few short prompts."""

    def __init__(self, name: str, path: Path, device: str, is_quick: bool) -> None:
        self._name, self._path, self._device, self._is_quick = name, path, device, is_quick
        self._oracles, self._context_length = load_for_launch(path) if (path / "oracle.json").exists() else ([], 0)
        if is_quick:
            self._oracles = self._oracles[2:3]
        vocab_size = json.loads((path / "config.json").read_text())["vocab_size"]
        self._prompts = make_prompts([oracle.prompt_ids for oracle in self._oracles], vocab_size, is_quick)
        numbers, new_tokens = range(len(self._prompts)), _QUICK_NEW_TOKENS if is_quick else _NEW_TOKENS
        self._params = {
            False: [greedy_params(number, new_tokens) for number in numbers],
            True: [draw_params(number, new_tokens) for number in numbers],
        }
        self._reference: dict[bool, list[list[int]]] = {}
        self._scored: tuple[list[list[int]], list[list[float]]] = [], []
        self._judge: TokenJudge | None = None
        self._current: tuple[str, LocalEngine] | None = None

    def run(self) -> dict[str, Any]:
        """Run everything; return the outcomes and the comparison of bfloat16."""
        self._enter("eager")
        outcomes = [self._make_reference()]
        outcomes += [self._run_way(way) for way in ways(self._is_quick)]
        bfloat16 = self._run_bfloat16()
        wrong = [outcome.way for outcome in outcomes if outcome.is_wrong()]
        return {
            "outcomes": [asdict(outcome) for outcome in outcomes],
            "bfloat16": bfloat16,
            "cells": {outcome.way: outcome.cell() for outcome in outcomes},
            "wrong": wrong + (["bfloat16"] if "problem" in bfloat16 else []),
        }

    def _enter(self, name: str) -> LocalEngine:
        """Return the fp32 engine of that name; the current one if it has that name and has not failed."""
        if self._current is None or self._current[0] != name:
            # Free the other engine and its graphs first.
            self._current = None
            self._current = name, self._engine(name)
        return self._current[1]

    def _engine(self, name: str, dtype: str = "float32") -> LocalEngine:
        settings = {"device": self._device, "attention_backend": "triton", **ENGINES[name]}
        config = make_config(self._path, dtype, tokenizer=_TOKENIZER, context_length=self._context_length, **settings)
        # Prompts are short, so that states are saved closely.
        engine = LocalEngine(config, spacing=Spacing(16, 16))
        assert (engine.runner._decode_graphs is not None) == ("cuda_graph_max_bs" in settings)
        return engine

    def _make_reference(self) -> Outcome:
        """Run one prompt at a time, one step at a time, each prompt in one chunk; compare with the oracle, if any."""
        begin, engine = time.perf_counter(), self._enter("eager")
        engine.max_in_flight = 1
        engine.restart(**Way("", "").settings)
        for draws, params in self._params.items():
            pairs = zip(self._prompts, params, strict=True)
            self._reference[draws] = [engine.generate([prompt], 1, **own)[0] for prompt, own in pairs]
        outcome = Outcome("reference against the oracle", late_compiles=engine.runner.late_compiles)
        for number, oracle in enumerate(self._oracles):
            output = self._reference[False][number][: len(oracle.output_ids)]
            self._compare(outcome, number, output, oracle.output_ids[: len(output)], draws=False)
        return self._reported(outcome, begin)

    def _run_way(self, way: Way) -> Outcome:
        outcome, seen, begin = Outcome(way.name), Seen(), time.perf_counter()
        try:
            engine = self._enter(way.engine)
            self._generate(engine, way, outcome, seen)
            outcome.late_compiles = engine.runner.late_compiles
        except Exception as error:  # a failed compile or launch is a result of this script
            outcome.problems.append(_describe(error))
            self._current = None
        outcome.steps, outcome.most_decode_rows = dict(seen.kinds), seen.most_rows
        if way.settings.get("enable_mixed_chunk") and not seen.kinds["mixed"]:
            outcome.problems.append("no step was mixed")
        return self._reported(outcome, begin)

    def _generate(self, engine: LocalEngine, way: Way, outcome: Outcome, seen: Seen) -> None:
        params = [{**own, "logprobs": 0} if way.scored else own for own in self._params[way.draws]]
        engine.max_in_flight = 2
        engine.restart(**way.settings)
        for batch in way.split(len(self._prompts)):
            prompts = [self._prompts[number] for number in batch]
            outputs, logprobs = generate_ahead(engine, prompts, [params[number] for number in batch], seen)
            for number, output in zip(batch, outputs, strict=True):
                self._compare(outcome, number, output, self._reference[way.draws][number], way.draws)
            if way.scored:
                self._compare_logprobs(outcome, batch, outputs, logprobs)
        has_pages = max(map(len, self._prompts)) > engine.runner.capacity.page_size
        if way.times > 1 and has_pages and not engine.cached_tokens():
            outcome.problems.append("nothing came from the tree")

    def _compare(self, outcome: Outcome, number: int, output: list[int], wanted: list[int], draws: bool) -> None:
        """Note where the output of prompt `number` first differs from `wanted`, and by what gap."""
        outcome.rows += 1
        if len(output) != len(wanted):
            outcome.problems.append(f"prompt {number}: {len(output)} tokens, not {len(wanted)}")
        pairs = zip(output, wanted, strict=False)
        at = next((at for at, (found, expected) in enumerate(pairs) if found != expected), None)
        if at is None:
            return
        if self._judge is None:
            self._judge = TokenJudge(self._path, _TOKENIZER)
        prompt, params = self._prompts[number], SamplingParams(**self._params[draws][number])
        gap = self._judge.gap(prompt + wanted[:at], wanted[at], output[at], params)
        outcome.left.append(Departure(number, len(prompt), at, wanted[at], output[at], gap))

    def _compare_logprobs(
        self, outcome: Outcome, batch: list[int], outputs: list[list[int]], logprobs: list[list[float]]
    ) -> None:
        """Compare log-probabilities with those of TORCH, as long as the tokens of a row are the same."""
        if outcome.way == TORCH:
            self._scored = outputs, logprobs
        worst = outcome.logprob_error or 0.0
        for number, output, found in zip(batch, outputs, logprobs, strict=True):
            torch_output, wanted = self._scored[0][number], self._scored[1][number]
            if not len(found) == len(output) == len(wanted):
                outcome.problems.append(f"prompt {number}: {len(found)} logprobs for {len(output)} tokens")
            pairs = zip(zip(output, torch_output, strict=False), zip(found, wanted, strict=False), strict=False)
            same = itertools.takewhile(lambda pair: pair[0][0] == pair[0][1], pairs)
            worst = max([worst, *(abs(one - other) for _, (one, other) in same)])
        outcome.logprob_error = worst
        if not worst <= LOGPROB_TOLERANCE:
            outcome.problems.append(f"logprobs differ by {worst:.2g}")

    def _run_bfloat16(self) -> dict[str, Any]:
        """Return how many rows and tokens graphs leave equal, and how far the rows without graphs are from fp32."""
        self._current, begin = None, time.perf_counter()
        try:
            outputs = [self._bfloat16_outputs(name) for name in ("eager", "graphs")]
        except Exception as error:  # as above
            return {"equal_tokens": 0, "tokens": 0, "problem": _describe(error)}
        beside = Outcome("")
        for output, wanted in zip(outputs[0], self._reference[False], strict=True):
            self._compare(beside, beside.rows, output, wanted, draws=False)
        rows = list(zip(*outputs, strict=True))
        tokens = [one == other for row in rows for one, other in zip(*row, strict=True)]
        found = {
            "equal_rows": sum(one == other for one, other in rows),
            "rows": len(rows),
            "equal_tokens": sum(tokens),
            "tokens": len(tokens),
            "rows_as_float32": beside.rows - len(beside.left),
            "largest_gap_to_float32": round(max((abs(one.gap) for one in beside.left), default=0.0), 4),
            "seconds": round(time.perf_counter() - begin, 1),
        }
        print(f"{self._name:10} bfloat16: {found}", flush=True)
        return found

    def _bfloat16_outputs(self, name: str) -> list[list[int]]:
        engine = self._engine(name, "bfloat16")
        engine.max_in_flight = 1
        engine.max_in_flight = 2
        engine.restart(**Way("", "").settings)
        return generate_ahead(engine, self._prompts, self._params[False], Seen())[0]

    def _reported(self, outcome: Outcome, begin: float) -> Outcome:
        outcome.seconds = round(time.perf_counter() - begin, 2)
        for line in outcome.lines():
            print(f"{self._name:10} {line}", flush=True)
        return outcome


def _describe(error: Exception) -> str:
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"[:300]
