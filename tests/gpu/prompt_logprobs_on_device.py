"""Log-probabilities of prompts on a CUDA device against plain torch on the CPU, beside requests that run as graphs.

    python -m tests.gpu.prompt_logprobs_on_device [--device cuda|cpu]

The tiny Qwen3 in float32: prompts of 1 to 260 ids, in one chunk, in chunks of 64 and of 48, and in steps mixed with
decode rows. Every number is within TOLERANCE, each rank too but for ties, and the plain requests beside them give the
same ids as on the CPU. Exit code 1 for any other difference.
"""

import argparse
import random
import sys
from typing import Any

from quartet.client.request import GenerateRequest
from quartet.wire.frames import IdsPrompt, SamplingParams, pack_ids
from tests.support.faulty_engine import FaultyEngine
from tests.support.history import Choice
from tests.support.local_engine import make_config
from tests.support.memory_engine import MODEL
from worker_proc.contract import Runner
from worker_proc.loading import load_runner

TOLERANCE = 2e-4
LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 100, 128, 129, 260)
WAYS: dict[str, dict[str, Any]] = {
    "one chunk": {"chunked_prefill_size": -1},
    "chunks of 64": {"chunked_prefill_size": 64},
    "chunks of 48, mixed": {"chunked_prefill_size": 48, "enable_mixed_chunk": True},
    "decode first": {"chunked_prefill_size": 64, "step_order": "decode_first"},
}


def requests() -> list[GenerateRequest]:
    """Return a scored request and a plain one of each length, each with ids of its own."""
    chance, made = random.Random(7), []
    for number, length in enumerate(LENGTHS):
        for scored in (-1, number % 4):
            ids = [chance.randrange(3, 500) for _ in range(length)]
            params = SamplingParams(max_new_tokens=12, temperature=0.0, ignore_eos=True, prompt_logprobs=scored)
            made.append(GenerateRequest(prompt=IdsPrompt(pack_ids(ids)), params=params))
    return made


def answers(runner: Runner, **scheduler: Any) -> list[Choice]:
    """Run all requests together; returns their only choices."""
    engine = FaultyEngine(random.Random(0), runner, **scheduler)
    histories = [engine.begin(request) for request in requests()]
    engine.finish(histories, limit_s=600.0)
    for history in histories:
        history.check()
    return [history.choices[0] for history in histories]


def differences(found: Choice, wanted: Choice) -> tuple[float, list[str]]:
    """Return the largest difference of a number, and what else differs."""
    wrong = [] if found.ids == wanted.ids else ["other ids"]
    if len(found.prompt) != len(wanted.prompt):
        return 0.0, [*wrong, f"{len(found.prompt)} tokens scored of {len(wanted.prompt)}"]
    worst = 0.0
    for position, (one, other) in enumerate(zip(found.prompt, wanted.prompt, strict=True)):
        values = [(one.logprob, other.logprob)]
        values += [(a[2], b[2]) for a, b in zip(one.top, other.top, strict=True)]
        worst = max(worst, *(abs(a - b) for a, b in values))
        is_rank_near = abs(one.rank - other.rank) <= 1
        if one.token != other.token or not is_rank_near or (one.rank < 0) != (other.rank < 0):
            wrong.append(f"position {position}: {one.token} rank {one.rank}, not {other.token} rank {other.rank}")
    return worst, wrong


def main() -> int:
    """Compare every way with the CPU; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    wanted = answers(load_runner(make_config(MODEL, max_total_tokens=8192), lambda: None), **WAYS["one chunk"])
    runner = load_runner(make_config(MODEL, device=device, max_total_tokens=8192), lambda: None)
    failed = False
    for name, settings in WAYS.items():
        found = [differences(*pair) for pair in zip(answers(runner, **settings), wanted, strict=True)]
        worst, wrong = max(number for number, _ in found), [one for _, more in found for one in more]
        tokens = sum(len(choice.prompt) for choice in wanted)
        print(f"{device}, {name}: {tokens} tokens, at most {worst:.1e} from the CPU; {len(wrong)} other differences")
        print("".join(f"    {line}\n" for line in wrong[:10]), end="")
        failed |= bool(wrong) or worst > TOLERANCE
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
