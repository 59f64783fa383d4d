import json
from pathlib import Path

import msgspec
import pytest

from quartet.bench.compare import compare, noise_of, read_runs
from quartet.bench.metrics import by_second, client_facts, client_warnings, figures
from quartet.bench.plan import PlannedRequest, Record, Target
from quartet.bench.routes import ROUTES
from quartet.bench.stream import ResponseStream
from quartet.wire.errors import ConfigError
from quartet.wire.frames import pack_ids


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def received(backend: str, *parts: tuple[float, bytes], input_tokens: int = 3) -> Record:
    """Return the record of a response to a request sent at 10 s."""
    stream = ResponseStream(ROUTES[backend].read)
    for now_s, data in parts:
        stream.feed(data, now_s)
    record = Record(index=0, start_s=0.0, input_tokens=input_tokens)
    stream.finish(record, 10.0)
    return record


def text(*texts: str) -> bytes:
    return b"".join(event(choices=[{"text": one}]) for one in texts)


USAGE = event(
    choices=[],
    usage={"prompt_tokens": 5, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}},
)
DONE = b"data: [DONE]\n\n"


def test_times_are_those_of_events_with_output() -> None:
    whole = text("a")
    record = received(
        "openai", (11.0, b": comment\n\n" + whole[:9]), (11.5, whole[9:]), (12.0, text("", "c")), (14.0, USAGE + DONE)
    )
    assert (record.ttft_s, record.latency_s, record.itl_s) == (1.5, 2.0, [0.5, 0.0])
    assert (record.input_tokens, record.output_tokens, record.cached_tokens) == (5, 4, 2)
    assert record.failure == "" and record.text == ""


def test_without_usage_events_count_and_the_text_is_kept() -> None:
    record = received("openai", (11.0, text("a", "b")), (12.0, DONE))
    assert (record.input_tokens, record.output_tokens, record.text) == (3, 2, "ab")


def test_the_opening_event_of_a_chat_is_no_output_and_thinking_is() -> None:
    deltas = [{"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "a"}, {"content": ""}, {}]
    parts = [(11.0 + number, event(choices=[{"delta": delta}])) for number, delta in enumerate(deltas)]
    record = received("openai-chat", *parts, (17.0, DONE))
    assert (record.ttft_s, record.itl_s, record.output_tokens) == (2.0, [1.0, 1.0], 3)


def test_tokens_of_one_event_share_its_gap_on_the_native_route() -> None:
    counts = [(11.0, 1), (12.0, 3), (13.0, 3)]
    parts = [(at, event(text="x" * n, meta_info={"completion_tokens": n, "prompt_tokens": 9})) for at, n in counts]
    record = received("sglang", *parts, (14.0, DONE))
    assert (record.itl_s, record.latency_s) == ([0.5, 0.5], 2.0)
    assert (record.input_tokens, record.output_tokens) == (9, 3)


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        (text("a"), "cut short"),
        (text("a") + event(error={"message": "gone", "code": 500}) + DONE, "error event"),
        (USAGE + DONE, "no output"),
    ],
)
def test_what_is_no_whole_response_is_a_failure(data: bytes, failure: str) -> None:
    record = received("openai", (11.0, data))
    assert record.failure == failure and record.message


def test_an_event_that_is_none_is_an_error() -> None:
    with pytest.raises(msgspec.MsgspecError):
        received("openai", (11.0, b"data: <html>\n"))


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("vllm", {"prompt": [7, 8], "max_tokens": 4, "ignore_eos": True, "model": "m", "top_p": 0.5, "priority": 2}),
        ("sglang", {"input_ids": [7, 8], "stream": True, "top_p": 0.5, "priority": 2}),
    ],
)
def test_bodies(backend: str, expected: dict[str, object]) -> None:
    target = Target(address="", backend=backend, model="m", extra_body={"top_p": 0.5})
    body = ROUTES[backend].body(target, PlannedRequest(ids=pack_ids([7, 8]), output_tokens=4, priority=2))
    assert expected.items() <= body.items()
    sampling = body.get("sampling_params", body)
    assert sampling["ignore_eos"] and sampling["temperature"] == 0.0


def records() -> list[Record]:
    """Return two that succeeded, with TPOT 100 and 200 ms, and two that failed."""
    return [
        Record(index=0, start_s=0.0, ttft_s=0.1, latency_s=0.4, itl_s=[0.1, 0.2], input_tokens=10, output_tokens=4),
        Record(index=1, start_s=1.0, ttft_s=0.3, latency_s=1.3, itl_s=[1.0], input_tokens=20, output_tokens=6),
        Record(index=2, start_s=1.0, failure="HTTP 503", input_tokens=99),
        Record(index=3, start_s=1.0, failure="HTTP 503", late_s=0.5),
    ]


def test_figures() -> None:
    found = figures(records(), 2.0, [50.0, 99.0], {"ttft": 200, "e2el": 1000})
    assert (found["completed"], found["failed"], found["errors_by_kind"]) == (2, 2, {"HTTP 503": 2})
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (30, 10)
    assert (found["request_throughput"], found["output_throughput"], found["total_token_throughput"]) == (1, 5, 20)
    assert found["mean_ttft_ms"] == pytest.approx(200) and found["p99_ttft_ms"] == pytest.approx(298)
    assert found["mean_tpot_ms"] == pytest.approx(150) and found["p50_tpot_ms"] == pytest.approx(150)
    assert found["mean_itl_ms"] == pytest.approx(1300 / 3) and found["median_e2el_ms"] == pytest.approx(850)
    assert found["request_goodput"] == 0.5
    assert found["max_concurrent_requests"] == 1


def test_a_single_token_has_no_tpot_and_meets_every_bound() -> None:
    found = figures(
        [Record(index=0, start_s=0.0, ttft_s=0.1, latency_s=0.1, output_tokens=1)], 1.0, [99.0], {"tpot": 1}
    )
    assert found["mean_tpot_ms"] is None and found["request_goodput"] == 1.0


def test_a_run_without_success_has_no_latencies() -> None:
    found = figures(records()[2:], 1.0)
    assert found["completed"] == 0 and found["mean_ttft_ms"] is None and found["max_output_tokens_per_s"] == 0


def test_by_second() -> None:
    tokens, active = by_second(records()[:2])
    assert list(tokens) == [3, 1, 1, 0] and list(active) == [1, 1, 1, 0]


def test_a_client_that_is_late_or_busy_says_so() -> None:
    facts = client_facts(records(), [0.2, 0.95])
    assert facts["p99_lateness_ms"] == pytest.approx(485) and facts["client_processes"] == 2
    late, busy = client_warnings(facts, True)
    assert "late" in late and "95%" in busy and "--client-processes 4" in busy
    assert client_warnings(facts, False) == [busy]
    assert not client_warnings(facts | {"p99_lateness_ms": 1.0, "client_cpu_share": 0.1}, True)


def side(*values: float) -> list[dict[str, object]]:
    return [{"request_throughput": one, "mean_ttft_ms": 100 / one, "completed": 5, "backend": "x"} for one in values]


def test_a_difference_counts_if_it_exceeds_the_noise() -> None:
    rows = {row.name: row for row in compare(side(10, 10.2, 9.8), side(12, 12.1, 12.2))}
    assert rows.keys() == {"request_throughput", "mean_ttft_ms", "completed"}
    assert rows["request_throughput"].verdict == rows["mean_ttft_ms"].verdict == "better"
    assert rows["request_throughput"].percent == pytest.approx(21)
    assert rows["completed"].verdict == "noise"
    (back, *_) = compare(side(12, 12.1, 12.2), side(10, 10.2, 9.8))
    assert back.verdict == "worse"
    assert compare(side(10, 13, 8), side(11, 9, 12))[0].verdict == "noise"


def test_the_noise_is_welchs_interval() -> None:
    """scipy.stats.ttest_ind([10, 10.2, 9.8], [12, 12.4, 12.2], equal_var=False).confidence_interval(): 2.2 +- 0.453."""
    assert noise_of([10, 10.2, 9.8], [12, 12.4, 12.2]) == pytest.approx(0.453, rel=0.02)
    assert noise_of([10], [12, 12.1]) is None
    assert compare(side(10), side(12))[0].verdict == ""


def _file(folder: Path, text: str) -> Path:
    path = folder / "one.json"
    path.write_text(text)
    return path


def test_results_are_read_from_files_folders_and_other_clients(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text('{"mean_e2e_latency_ms": 5}\n{"mean_e2e_latency_ms": 6}\n')
    (tmp_path / "run.json").write_text('{\n"mean_e2el_ms": 7\n}')
    assert sorted(run["mean_e2el_ms"] for run in read_runs(tmp_path)) == [5, 6, 7]
    (other,) = compare([{"total_token_throughput": 4}], read_runs(_file(tmp_path, '{"total_throughput": 5}')))
    assert (other.name, other.percent) == ("total_token_throughput", 25)
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(ConfigError, match="holds no results"):
        read_runs(tmp_path / "text.json")
    with pytest.raises(ConfigError, match="No such file"):
        read_runs(tmp_path / "absent.json")
