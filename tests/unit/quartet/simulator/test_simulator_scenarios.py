"""Scenarios have the shape that they promise, and the same seed gives the same run."""

import inspect
import json
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from quartet.cli.main import main
from quartet.simulator.capacity import capacity, fcfs
from quartet.simulator.driver import simulate
from quartet.simulator.plots import shown_requests
from quartet.simulator.presets import preset
from quartet.simulator.scenarios import SCENARIOS, make_scenario
from quartet.wire.config import SchedulerConfig
from quartet.wire.errors import ConfigError

ENGINE = preset("llama-8b-h100")
SMALL = {"steady": {"rate": "20"}, "priority": {"rate": "10"}}


def test_rag_is_shuffled_groups_at_once_with_room_for_some_prefixes() -> None:
    scenario = make_scenario("rag", ENGINE, 3, {})
    groups = [request.prefix_group for request in scenario.requests]
    assert len(groups) == 100 and len(set(groups)) == 8
    assert max(map(groups.count, set(groups))) - min(map(groups.count, set(groups))) == 1
    assert groups[:16] != sorted(groups[:16])
    assert {(one.arrival_s, one.prefix_tokens, one.own_tokens, one.output_tokens) for one in scenario.requests} == {
        (0.0, 2048, 64, 16)
    }
    assert scenario.engine.kv_tokens == 2.5 * 2048 + 16 * 80


def test_priority_has_two_classes_at_the_wanted_share_of_capacity() -> None:
    scenario = make_scenario("priority", ENGINE, 0, {"requests": "2000"})
    high = [request for request in scenario.requests if request.class_name == "high"]
    assert len(high) / 2000 == pytest.approx(0.2, abs=0.03)
    assert {request.input_tokens for request in scenario.requests} == {512}
    rate = 2000 / scenario.requests[-1].arrival_s
    at_once = [msgspec.structs.replace(one, arrival_s=0.0, priority=None) for one in scenario.requests[:200]]
    assert rate == pytest.approx(0.95 * capacity(scenario.engine, at_once, fcfs(8)), rel=0.1)


def test_overload_has_kv_for_its_share_of_peak_demand_and_long_tailed_outputs() -> None:
    scenario = make_scenario("overload", ENGINE, 0, {"requests": "150"})
    full = make_scenario("overload", ENGINE, 0, {"requests": "150", "kv_share": "1"})
    assert scenario.engine.kv_tokens / full.engine.kv_tokens == pytest.approx(0.6, abs=0.01)
    outputs = sorted(request.output_tokens for request in scenario.requests)
    assert outputs[75] == pytest.approx(256, rel=0.3)
    assert outputs[15] < 0.5 * outputs[75] and outputs[-15] == 512
    assert {request.max_tokens for request in scenario.requests} == {512}


def test_cold_start_sends_one_cold_request_into_an_even_stream() -> None:
    scenario = make_scenario("cold-start", ENGINE, 0, {"requests": "100"})
    cold = [at for at, request in enumerate(scenario.requests) if request.class_name == "cold"]
    assert cold == [32] and len(scenario.requests) == 101
    assert scenario.requests[32].input_tokens == scenario.requests[0].input_tokens
    stream = [request.arrival_s for request in scenario.requests[33:]]
    gaps = [later - earlier for earlier, later in pairwise(stream)]
    assert min(gaps) == pytest.approx(max(gaps)) and scenario.requests[32].arrival_s == 0


def test_long_prompts_disturb_streams_that_decode() -> None:
    scenario = make_scenario("long-prompts", ENGINE, 0, {"requests": "3"})
    assert [request.class_name for request in scenario.requests] == ["stream"] * 16 + ["long"] * 3
    assert {request.input_tokens for request in scenario.requests[16:]} == {65_536}
    assert len(make_scenario("long-prompts", ENGINE, 0, {"requests": "0"}).requests) == 16


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_seed_gives_the_same_requests_and_every_one_ends(name: str) -> None:
    given = {"requests": "40", **SMALL.get(name, {})}
    first, second = (make_scenario(name, ENGINE, 5, given) for _ in range(2))
    assert first == second
    config = SchedulerConfig(max_running_requests=first.max_running_requests)
    run = simulate(first.requests, first.engine, config)
    assert all(outcome.is_finished for outcome in run.outcomes)
    if name in ("rag", "priority", "overload", "steady"):
        assert make_scenario(name, ENGINE, 6, given).requests != first.requests


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"group": "8"}, "--scenario-set group: scenario rag has requests, rate, groups"),
        ({"groups": "x"}, "--scenario-set groups: 'x' is not an integer"),
        ({"groups": "-1"}, "--scenario-set groups: -1 must be 1 or more"),
        ({"own_tokens": "-1"}, "--scenario-set own_tokens: -1 must be 0 or more"),
        ({"requests": "0"}, "--requests: scenario rag has none"),
        ({"groups": "0"}, "--scenario-set groups: 0 must be 1 or more"),
        ({"running": "0"}, "--scenario-set running: 0 must be 1 or more"),
        ({"rate": "nan"}, "--scenario-set rate: nan is not a finite number"),
        ({"rate": "inf"}, "--scenario-set rate: inf is not a finite number"),
        ({"prefix_tokens": "0", "own_tokens": "0"}, "--scenario-set prefix_tokens, own_tokens: 0 of both"),
    ],
)
def test_a_wrong_parameter_is_named(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make_scenario("rag", ENGINE, 0, given)
    assert str(raised.value).startswith(message)


SMALLEST = {
    "rag": {"requests": "20"},
    "priority": {"requests": "20", "rate": "10"},
    "overload": {"requests": "20"},
    "cold-start": {"requests": "40"},
    "long-prompts": {"requests": "2", "streams": "2", "stream_output_tokens": "64", "input_tokens": "2000"},
    "steady": {"requests": "20", "rate": "10"},
}


@pytest.mark.parametrize(
    ("scenario", "name"),
    [
        (scenario, name)
        for scenario, function in SCENARIOS.items()
        for name in inspect.signature(function).parameters
        if name not in ("engine", "seed")
    ],
)
def test_zero_of_a_parameter_is_simulated_or_refused_by_name(
    scenario: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**SMALLEST[scenario], name: "0"}
    given = {key: value for key, value in given.items() if (name, key) != ("load", "rate")}
    settings = [text for key, value in given.items() for text in ("--scenario-set", f"{key}={value}")]
    code = main(["simulate", "--scenario", scenario, "--json", *settings])
    out, err = capsys.readouterr()
    if code:
        assert err.startswith(("quartet: --scenario-set " + name, "quartet: --requests: ")) and err.count("\n") == 1
    else:
        assert json.loads(out)["requests"] > 0


def test_the_extremes_of_each_class_are_drawn() -> None:
    scenario = make_scenario("cold-start", ENGINE, 0, {"requests": "900"})
    run = simulate(scenario.requests, scenario.engine, SchedulerConfig(schedule_policy="lpm", max_running_requests=8))
    shown = shown_requests(run.outcomes, 5)
    assert sum(outcome.request.label == "cold" for outcome in shown) == 1
    slowest = max(run.outcomes, key=lambda outcome: outcome.end_s - outcome.arrival_s)
    assert slowest in shown and len(shown) <= 900 / 5 + 8
    assert [outcome.arrival_s for outcome in shown] == sorted(outcome.arrival_s for outcome in shown)


def simulated(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["simulate", *arguments]) == 0
    return capsys.readouterr().out


def test_the_command_prints_the_same_object_for_the_same_seed(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--scenario", "rag", "--requests", "30", "--json")
    first, again, other = (simulated(capsys, *flags, "--seed", seed) for seed in ("1", "1", "2"))
    assert first == again != other
    found = json.loads(first)
    keys = ("output_tokens_per_s", "prefix_hit_rate", "e2e_s_by_class", "retractions", "recomputed_tokens")
    assert found["finished"] == 30 and all(key in found for key in keys)
    assert set(found["ttft_s"]) >= {"mean", "p50", "p90", "p99"} <= set(found["e2e_s"])


def test_scheduling_flags_and_the_engines_size_reach_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--scenario", "rag", "--requests", "30", "--json", "--disable-radix-cache", "--max-total-tokens", "9000")
    found = json.loads(simulated(capsys, *flags, "--max-running-requests", "3", "--page-size", "64"))
    assert found["prefix_hit_rate"] == 0
    assert (found["kv_tokens"], found["max_running_requests"], found["page_size"]) == (8960, 3, 64)


def test_a_saved_trace_gives_the_same_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = str(tmp_path / "rag.jsonl")
    size = ("--json", "--max-total-tokens", "6400", "--max-running-requests", "16")
    first = json.loads(simulated(capsys, "--scenario", "rag", "--requests", "20", "--save-trace", file, *size))
    assert json.loads(simulated(capsys, "--trace", file, *size)) == first


def test_people_get_a_table_and_plots(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = simulated(capsys, "--scenario", "rag", "--requests", "20", "--plot", str(tmp_path))
    assert "prefix hit rate" in out and "time to first token" in out
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["requests.png", "requests.svg", "timeline.png", "timeline.svg"]
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "requests.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--scenario", "rag", "--preset", "x"], "--preset: 'x' is not one of llama-8b-h100"),
        (["simulate", "--trace", "none.jsonl"], "none.jsonl: No such file"),
        (["simulate", "--scenario", "rag", "--scenario-set", "groups"], "'groups' is not name=value"),
        (["advise", "none.jsonl"], "none.jsonl: No such file"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
