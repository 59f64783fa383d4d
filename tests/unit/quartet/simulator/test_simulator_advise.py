"""The recommendation follows its stated criterion, says how sure it is, and what it costs."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quartet.cli.main import main
from quartet.simulator.advice_report import header, rows, write_report
from quartet.simulator.advise import Advice, doubts, make_advice, ordered
from quartet.simulator.combinations import RESERVATIONS, combinations
from quartet.simulator.request import Workload
from quartet.simulator.trace import write_trace
from quartet.simulator.trials import Measured, Trial, difference, half_width
from quartet.simulator.windows import windows
from quartet.wire.config import SchedulerConfig
from quartet.wire.errors import ConfigError

REQUEST = Workload(arrival_s=0.0, max_tokens=2, output_tokens=2, own_tokens=4)
PLAIN = "--schedule-policy fcfs"
MEASURED = Measured(
    requests=10,
    finished=10,
    output_tokens_per_s=100.0,
    ttft_p50_s=0.5,
    ttft_p99_s=1.0,
    gap_p99_s=0.02,
    late_gaps=0.0,
    e2e_mean_s=2.0,
    e2e_p99_s=3.0,
    longest_wait_s=1.5,
    fairness=1.0,
    retractions=0,
    most_waiting=4,
)


def trial(flags: str, tokens_per_s: float = 100.0, p99_s: float = 1.0, jitter: float = 0.0, **more: Any) -> Trial:
    found = []
    for number in range(6):
        factor = 1 + jitter * (-1) ** number
        values = {"output_tokens_per_s": tokens_per_s, "ttft_p99_s": p99_s * factor, **more}
        found.append(msgspec.structs.replace(MEASURED, **values))
    return Trial(flags, found)


def advice(*trials: Trial, target_ms: float = 0.0, urgent: str | None = None) -> Advice:
    return make_advice([trial(PLAIN), *trials], [], urgent, target_ms)


def requests(count: int, step_s: float = 0.1, **fields: Any) -> list[Workload]:
    return [msgspec.structs.replace(REQUEST, arrival_s=at * step_s, **fields) for at in range(count)]


def test_throughput_comes_first_and_then_the_time_to_first_token() -> None:
    fast, sooner, slow = trial("fast", 150, 2.0), trial("sooner", 149, 1.5), trial("slow", 120, 0.5)
    assert [one.flags for one in ordered([fast, sooner, slow])] == ["sooner", "fast", "slow"]
    assert advice(fast, sooner, slow).flags == "sooner"


def test_a_configuration_that_serves_fewer_requests_is_not_recommended() -> None:
    assert advice(trial("refuses", 500, 0.1, finished=9)).flags == PLAIN


def test_with_a_target_too_many_late_gaps_rule_one_out_unless_all_have_them() -> None:
    late, on_time = trial("late", 100, 0.2, late_gaps=0.3), trial("on-time", 100, 0.8, late_gaps=0.002)
    assert ordered([late, on_time])[0] is on_time
    assert ordered([late, trial("later", 100, 0.8, late_gaps=0.4)])[0] is late


def test_with_a_target_the_reason_says_how_many_gaps_are_late() -> None:
    late = msgspec.structs.replace(MEASURED, late_gaps=0.25)
    found = make_advice([Trial(PLAIN, [late] * 6), trial("slack", 100, 1.0, gap_p99_s=0.01)], [], None, 50.0)
    assert found.flags == "slack" and "gaps above the target 0.00% instead of 25.00%" in found.reason


def test_of_those_as_good_the_one_with_the_fewest_flags_wins() -> None:
    found = advice(
        trial("--schedule-policy lpm --reservation full", 100, 0.500), trial("--schedule-policy lpm", 100, 0.505)
    )
    assert found.flags == "--schedule-policy lpm"
    assert "-49.5% +- 0.0%" in found.reason
    assert found.ties == ["--schedule-policy lpm --reservation full"]


def test_on_light_load_it_says_that_it_makes_no_difference() -> None:
    found = advice(trial("other", 100.5, 1.01), trial("another", 99.8, 0.99))
    assert found.is_indifferent and found.flags == PLAIN
    assert "makes no difference" in found.reason and "at most 4 requests wait" in found.reason


def test_a_difference_below_the_noise_between_windows_is_called_a_tie() -> None:
    noisy = trial("noisy", 100, 0.9, jitter=0.5)
    found = difference(noisy, trial(PLAIN), "ttft_p99_s")
    assert found.mean == pytest.approx(-0.1) and found.half_width > 0.4 and found.is_within(0.02)
    assert advice(noisy).is_indifferent


def test_one_window_has_no_interval_and_a_worse_run_on_it_is_a_difference() -> None:
    worse = Trial("worse", trial("worse", 50, 9.0).windows[:1])
    assert math.isinf(difference(worse, trial(PLAIN), "ttft_p99_s").half_width)
    assert not advice(worse).is_indifferent


def test_the_cost_names_the_throughput_lost_and_the_end_to_end_of_all() -> None:
    found = advice(trial("fastest", 101, 5.0, e2e_p99_s=2.0), trial("sooner", 100, 0.3))
    assert found.flags == "sooner"
    assert "1.0% of the highest throughput (fastest)" in found.cost
    assert "3.00 s, the shortest is 2.00 s (fastest)" in found.cost


def on_long_run(one: Trial, tokens_per_s: float, p99_s: float) -> Trial:
    long = msgspec.structs.replace(MEASURED, requests=900, finished=900)
    one.long = msgspec.structs.replace(long, output_tokens_per_s=tokens_per_s, ttft_p99_s=p99_s)
    return one


def test_the_long_run_decides_over_the_windows() -> None:
    plain = on_long_run(trial(PLAIN, 100, 1.0), 100, 90.0)
    short_queues, long_queues = on_long_run(trial("a", 110, 0.5), 90, 99.0), on_long_run(trial("b", 99, 1.1), 104, 40.0)
    found = make_advice([plain, short_queues, long_queues, trial("left the race", 80, 3.0)], [], None, 0.0)
    assert found.flags == "b" and "-55.6%" in found.reason and "104 (windows: 99 +- 0)" in found.reason


def test_more_than_a_twentieth_on_the_long_run_is_a_difference_although_the_windows_vary() -> None:
    plain, noisy = on_long_run(trial(PLAIN), 100, 1.0), on_long_run(trial("noisy", 100, 0.9, jitter=0.5), 100, 0.9)
    assert make_advice([plain, noisy], [], None, 0.0).flags == "noisy"
    assert make_advice([plain, on_long_run(noisy, 100, 0.96)], [], None, 0.0).is_indifferent


def test_the_interval_is_students() -> None:
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3))
    assert half_width([1.0]) == math.inf


def test_columns_say_which_class_they_are_of() -> None:
    found = advice(trial("other", 100, 0.3), urgent="priority 9", target_ms=50.0)
    assert {"TTFT p99, priority 9", "gaps > 50 ms", "e2e p99, all", "longest wait"} <= set(header(found))
    assert "p99 time to first token of priority 9" in found.reason
    assert all(len(row) == len(header(found)) for row in rows(found))


def test_a_short_trace_is_called_too_short() -> None:
    few, many = requests(12, 10.0), requests(400, 10.0)
    assert "too short to tell: it has 12 requests" in doubts(few, [few], trial(PLAIN))[0]
    assert doubts(many, [many], trial(PLAIN)) == []
    assert "requests last 2.0 s" in doubts(many, [requests(40)], trial(PLAIN))[0]


def test_windows_of_a_long_trace_keep_the_arrivals_and_those_of_a_short_one_every_request_once() -> None:
    long, short = (
        requests(100),
        [msgspec.structs.replace(one, own_tokens=at + 1) for at, one in enumerate(requests(20))],
    )
    found = windows(long, 4, 25)
    assert [len(one) for one in found] == [25] * 4
    assert all(one[0].arrival_s == 0 and one[-1].arrival_s == pytest.approx(2.4) for one in found)
    first, *others = windows(short, 3, 25)
    assert [one.own_tokens for one in first] == list(range(1, 21))
    for other in others:
        assert sorted(one.own_tokens for one in other) == list(range(1, 21)) and other != first
        assert all(one.arrival_s <= two.arrival_s for one, two in pairwise(other))
    assert windows([REQUEST], 2, 25) == [[REQUEST], [REQUEST]]


def test_what_a_trace_cannot_tell_apart_is_not_tried() -> None:
    plain = combinations(requests(3), SchedulerConfig())
    assert plain[0].flags == PLAIN and len(plain) == 4 * len(RESERVATIONS)
    assert not [one for one in plain if "lpm" in one.flags or "priority" in one.flags]
    rich = [*requests(3, prefix_group="a", prefix_tokens=8, priority=1, routing_key="k"), *requests(3, priority=2)]
    names = {one.flags for one in combinations(rich, SchedulerConfig(step_order="slack", tbt_target_ms=50.0))}
    assert len(names) == 8 * len(RESERVATIONS) * 3 * 2
    assert "--schedule-policy lpm --step-order slack --tbt-target-ms 50 --enable-priority-scheduling" in names


def test_separate_steps_are_tried_where_the_worker_mixes_and_a_target_says_what_a_gap_is_worth() -> None:
    given = SchedulerConfig(tbt_target_ms=50.0)
    separate = f"{PLAIN} --no-enable-mixed-chunk"
    assert separate in {one.flags for one in combinations(requests(3), given, 1344)}
    for config, mixed_tokens in ((given, 0), (SchedulerConfig(), 1344)):
        assert separate not in {one.flags for one in combinations(requests(3), config, mixed_tokens)}


def test_reports_are_markdown_or_html_by_the_ending(tmp_path: Path) -> None:
    found = advice(trial("<other>", 100, 0.3))
    write_report(found, tmp_path / "a.md", "title")
    write_report(found, tmp_path / "a.html", "title")
    assert "| * | <other> |" in (tmp_path / "a.md").read_text()
    assert "<td>&lt;other&gt;</td>" in (tmp_path / "a.html").read_text()
    with pytest.raises(ConfigError, match="must end in"):
        write_report(found, tmp_path / "a.pdf", "title")


def test_the_command_runs_every_combination(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, steps = tmp_path / "t.jsonl", tmp_path / "steps.jsonl"
    shared = {"prefix_group": "g", "prefix_tokens": 64}
    write_trace(trace, [msgspec.structs.replace(one, priority=at % 2) for at, one in enumerate(requests(12, **shared))])
    assert main(["advise", str(trace), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # Twelve requests fill no cache: each reservation is tried once.
    assert len(found["trials"]) == 2 * 7 + len(RESERVATIONS) - 1
    assert any("whose reservation changes nothing here" in note for note in found["notes"])
    assert all(one["long"]["requests"] == 12 for one in found["trials"] if len(one["windows"]) == 6)
    assert found["flags"] in [one["flags"] for one in found["trials"]]
    assert found["class_name"] == "priority 1" and "too short" in found["notes"][0]
    steps.write_text('{"prefill_tokens": 8, "seconds": 2}\n{"decode_rows": 1, "seconds": 1}\n')
    assert main(["advise", str(trace), "--fit", str(steps), "--report", str(tmp_path / "r.md")]) == 0
    assert "What it costs" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "r.md").exists()
