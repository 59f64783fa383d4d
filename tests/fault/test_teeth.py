"""With one protection switched off at a time, the nemesis in memory turns red: the tests would notice (case 64).

A mutant is one line of the program changed. Each is run over seeds of the nemesis until the first that fails.
"""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from detok_proc.core import DetokCore
from quartet.client.journal import Journal
from quartet.client.trials import Trials
from quartet.wire.ids import Role
from scheduler_proc.core.delivery import Delivery
from scheduler_proc.core.prefill import PrefillPass
from scheduler_proc.core.prompt_scores import PromptScores
from scheduler_proc.core.suspects import Suspects
from scheduler_proc.worker_session import WorkerSession
from tests.fault import test_frame_faults as frame_faults
from tests.fault import test_poison_in_memory as poison
from tests.fault.nemesis import FLAGS, Nemesis
from tests.support.mutant import mutant
from tests.support.request_kinds import REAL, SIMULATED, Kind, make_engine, prepared
from tests.support.server import Server
from tests.support.shaking import Shaking, shake
from tests.support.tiny_runner import tiny_runner
from worker_proc.session import Session

pytestmark = pytest.mark.slow
PROMPTS = [[10 + i, 20, 30, *range(40, 40 + 31 * i)] for i in range(5)]
SEEDS = 150

Mutation = tuple[type[Any], str, str, str]
SHAKEN: dict[str, tuple[str, Mutation]] = {
    "journal: index": ("greedy", (Journal, "take", "if item.index != have:", "if False:")),
    "journal: attempt": ("noisy", (Journal, "take", "or entry.submit.attempt != item.attempt", "")),
    "journal: text before the cut": ("n = 4", (Journal, "_trim", "text=item.text[skip:]", "text=item.text")),
    "journal: logprobs before the cut": ("logprobs", (Journal, "_trim", "item.logprobs[known:]", "item.logprobs")),
    "detok: scheduler's epoch": ("greedy", (DetokCore, "handle", "source.epoch < self._scheduler_epoch", "False")),
    "detok: index": ("greedy", (DetokCore, "_on_tokens", "or index != stream.count ", "")),
    "trials: what waits": ("greedy", (Trials, "note_progress", "key in self._waiting or ", "")),
    "open: min_new_tokens": ("min_tokens", (Delivery, "open", "request.min_new_tokens", "0")),
    "open: logprobs": (
        "logprobs",
        (Delivery, "open", "stream.logprobs_from(stream.delivered_count, len(request.output_ids))", "[]"),
    ),
    "open: prompt tail": ("greedy", (Delivery, "open", "request.prompt_key[-TAIL_TOKENS * ID_BYTES :]", 'b""')),
    "open: what is known of the prompt": (
        "prompt logprobs",
        (Delivery, "open", "scores.frames(stream.handle, request.prompt_key)", "[]"),
    ),
    "scores: from the beginning": ("prompt logprobs", (PromptScores, "restart", "self._scored = 0", "return")),
    "admission: cached tokens": (
        "n = 4",
        (PrefillPass, "_note_admission", "min(cached, request.prompt_tokens)", "cached"),
    ),
}
"""By name: the kind of request that is shaken, and what is changed."""
FENCES: dict[str, tuple[Role, Mutation]] = {
    "scheduler: worker's epoch": (
        Role.WORKER,
        (WorkerSession, "check", "source.epoch != self._worker_epoch", "False"),
    ),
    "worker: scheduler's epoch": (
        Role.SCHEDULER,
        (Session, "accepts_step", "source_epoch != self.scheduler_epoch", "False"),
    ),
}
"""Frames that these drop would do no harm, since step numbers and generations never come again; they are counted."""
SHAKEN_MODEL: dict[str, tuple[str, Mutation]] = {
    "penalties: outputs are no prompt": (
        "seeded, penalties",
        (PrefillPass, "_enter", "request.prompt_tokens,", "request.total_tokens,"),
    ),
    "min_new_tokens: outputs are no prompt": (
        "min_tokens",
        (PrefillPass, "_enter", "request.prompt_tokens,", "request.total_tokens,"),
    ),
    "seed": ("n = 4", (PrefillPass, "_enter", "request.choice,", "0,")),
}
"""Needs a model: the simulated worker looks at neither of them."""


def first_red(kind: str, kinds: dict[str, Kind], calm: Any, runner: Any = None, seeds: int = SEEDS) -> int | None:
    """Return the first seed whose run fails, or None."""
    made, expected = calm
    for seed in range(seeds):
        chance = random.Random(f"{kind} {seed}")
        try:
            engine = make_engine(kind, chance, runner)
            for history in shake(engine, made, expected, chance, Shaking()):
                history.check()
            engine.check_nothing_left()
        except Exception:
            return seed
    return None


@pytest.mark.parametrize("name", SHAKEN)
def test_a_mutant_is_found(name: str) -> None:
    kind, mutation = SHAKEN[name]
    calm = prepared(kind, SIMULATED, PROMPTS)
    with mutant(*mutation):
        assert first_red(kind, SIMULATED, calm) is not None, "the tests have not noticed"


@pytest.mark.parametrize("name", FENCES)
def test_a_fence_that_is_down_is_found(name: str) -> None:
    role, mutation = FENCES[name]
    with mutant(*mutation), pytest.raises(AssertionError):
        frame_faults.test_frames_of_a_dead_incarnation(role)


def test_quarantine_that_is_off_is_found() -> None:
    with mutant(Suspects, "on_death", "at_fault.append(request)", "pass"), pytest.raises(AssertionError):
        poison.test_a_poison_request_is_found_and_nothing_else_is_hurt()


REAPING_OFF = """
import sys
if "serve" in sys.orig_argv:
    from quartet.supervisor.supervisor import Supervisor
    from tests.support.mutant import mutant
    held = mutant(Supervisor, "_check", "child.kill()", "slot.child = None; slot.restarts += 1; self._start(slot)")
    held.__enter__()
"""


@pytest.mark.e2e
async def test_reaping_that_is_off_is_found(tmp_path: Path) -> None:
    """A hung process is given a successor while it lives."""
    (tmp_path / "sitecustomize.py").write_text(REAPING_OFF)
    with Server(*FLAGS, env={"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}) as server:
        report = await Nemesis(server, 4, clients=4, tokens=60, gap_s=0.8, pool=8).run(8.0)
    assert any("processes instead of" in leak for leak in report.leaks), report.lines()


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in SHAKEN.values()}))
def test_the_original_is_green(kind: str) -> None:
    assert first_red(kind, SIMULATED, prepared(kind, SIMULATED, PROMPTS), seeds=40) is None


@pytest.mark.parametrize("name", SHAKEN_MODEL)
def test_a_mutant_is_found_with_a_model(name: str) -> None:
    kind, mutation = SHAKEN_MODEL[name]
    runner = tiny_runner()
    calm = prepared(kind, REAL, PROMPTS, runner)
    with mutant(*mutation):
        assert first_red(kind, REAL, calm, runner, 20) is not None, "the tests have not noticed"
