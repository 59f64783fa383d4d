"""Kills at random moments for each kind of request, in memory: how many answers differ from an undisturbed run.

    python -m tests.fault.exactness --kills 1000

Kinds that the simulated worker can tell apart run on it; all kinds run on the tiny Qwen3 on the CPU, too, whose seeds,
penalties and log-probabilities are real. Half of the dead processes lose what waits in their inbox; frames of the dead
come again.
"""

import argparse
import random
import sys
import time
from dataclasses import dataclass

from tests.support.request_kinds import REAL, SIMULATED, Kind, make_engine, prepared
from tests.support.shaking import Shaking, shake
from tests.support.tiny_runner import tiny_runner
from worker_proc.contract import Runner

PROMPTS = [[10 + i, 20, 30, *range(40, 40 + 31 * i)] for i in range(5)]


@dataclass
class Count:
    """What came of one kind. `kills` are deaths, `differences` answers that differed, failed or never ended."""

    kills: int = 0
    requests: int = 0
    differences: int = 0
    leaks: int = 0


def count_kind(kind: str, kinds: dict[str, Kind], kills: int, runner: Runner | None) -> Count:
    """Shake one kind of request until `kills` processes have died."""
    made, expected = prepared(kind, kinds, PROMPTS, runner)
    count, seed = Count(), 0
    while count.kills < kills:
        chance = random.Random(f"{kind} {seed}")
        engine = make_engine(kind, chance, runner)
        count.requests += len(made)
        try:
            histories = shake(engine, made, expected, chance, Shaking())
        except AssertionError as error:
            print(f"{kind}, seed {seed}: {error}")
            count.differences += 1
        else:
            wrong = [history for history in histories if history.error is not None or not history.is_over]
            count.differences += len(wrong)
            try:
                engine.check_nothing_left()
            except AssertionError as error:
                print(f"{kind}, seed {seed}: left behind: {error}")
                count.leaks += 1
        count.kills += engine.deaths.total()
        seed += 1
    return count


def main() -> int:
    """Print a table; exit code 1 if any answer differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--only", choices=("simulated", "model"))
    arguments = parser.parse_args()
    bad = 0
    print("| worker | kind | kills | requests | differences | left behind | s |\n|---|---|---|---|---|---|---|")
    for worker, kinds in (("simulated", SIMULATED), ("model", REAL)):
        if arguments.only not in (None, worker):
            continue
        for kind in kinds:
            start = time.monotonic()
            found = count_kind(kind, kinds, arguments.kills, tiny_runner() if worker == "model" else None)
            row = (found.kills, found.requests, found.differences, found.leaks, round(time.monotonic() - start))
            print(f"| {worker} | {kind} | " + " | ".join(f"{number:,}" for number in row) + " |", flush=True)
            bad += found.differences + found.leaks
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
