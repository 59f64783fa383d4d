"""The recommendation follows its stated criterion."""

import json
from pathlib import Path

import msgspec
import pytest

from quartet.cli.main import main
from quartet.simulator.advise import Candidate, choose
from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.report import Report, Summary, make_report
from quartet.simulator.request import Workload
from quartet.simulator.trace import write_trace
from quartet.wire.config import POLICIES, SchedulerConfig
from scheduler_proc.core.step_cost import StepCost

ENGINE = SimulatedEngine(cost=StepCost(1.0, 0.0, 0.0, 0.0, 0.0), kv_tokens=4096, context_length=4096, page_size=4)
REQUEST = Workload(arrival_s=0.0, max_tokens=2, output_tokens=2, own_tokens=4)
REPORT: Report = make_report(simulate([REQUEST], ENGINE, SchedulerConfig()), ENGINE, 64)


def candidate(flags: str, tokens_per_s: float, p99_s: float, finished: int = 1) -> Candidate:
    report = msgspec.structs.replace(REPORT, output_tokens_per_s=tokens_per_s, finished=finished)
    return Candidate(flags, report, Summary(p99_s / 2, p99_s / 2, p99_s, p99_s, p99_s))


def test_the_highest_throughput_of_the_eligible_wins() -> None:
    slow, fast, impatient = candidate("slow", 100, 1.0), candidate("fast", 150, 1.2), candidate("impatient", 300, 1.3)
    chosen, reason = choose([slow, fast, impatient])
    assert chosen is fast
    assert "1 of 3" in reason and "1.000 s" in reason


def test_equals_are_ordered_by_the_time_to_first_token_and_then_by_the_list() -> None:
    a, b, c = candidate("a", 100, 1.1), candidate("b", 99, 1.0), candidate("c", 99, 1.0)
    assert choose([a, b, c])[0] is b


def test_a_policy_that_refuses_requests_is_not_recommended() -> None:
    assert choose([candidate("refuses", 500, 0.1, finished=0), candidate("serves", 100, 1.0)])[0].flags == "serves"


def test_the_command_runs_every_policy_and_both_ways_of_priority(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t.jsonl"
    write_trace(
        trace,
        [
            msgspec.structs.replace(REQUEST, arrival_s=at / 100, prefix_group="g", prefix_tokens=64, priority=at % 2)
            for at in range(12)
        ],
    )
    assert main(["advise", str(trace), "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)
    assert len(advice["candidates"]) == 2 * len(POLICIES)
    assert advice["flags"] in [one["flags"] for one in advice["candidates"]]
    assert main(["advise", str(trace)]) == 0
    assert "policies" in capsys.readouterr().out
