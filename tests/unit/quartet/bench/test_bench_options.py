from typing import Any

import pytest

from quartet.bench.plan import Record
from quartet.cli.bench_offline import engine_settings
from quartet.cli.main import main
from quartet.wire.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--speed", "2"], "--speed belongs to --dataset-name trace, not random-ids"),
        (["serve", "--gsp-ordered"], "--gsp-ordered belongs to --dataset-name generated-shared-prefix"),
        (["serve", "--dataset-name", "trace"], "needs --dataset-path"),
        (["serve", "--dataset-name", "random"], "--dataset-name random sends text: give --tokenizer"),
        (["serve", "--backend", "vllm-chat"], "--backend vllm-chat takes text: give --tokenizer"),
        (["serve", "--random-range-ratio", "1"], "--random-range-ratio must be below 1"),
        (["serve", "--burstiness", "2"], "--burstiness shapes the arrivals of --request-rate"),
        (["serve", "--goodput", "itl:3"], "--goodput: 'itl:3' is no METRIC:MS"),
        (["serve", "--percentile-metrics", "ttft,e2e"], "'e2e' is not one of ttft, tpot, itl, e2el"),
        (["serve", "--metric-percentiles", "101"], "no list of numbers up to 100"),
        (["offline", "--batch-size", "2", "--num-prompts", "3"], "--batch-size makes its own prompts"),
        (
            ["offline", "--dataset-name", "trace", "--dataset-path", "x", "--speed", "2"],
            "the offline engine gets all requests at once",
        ),
        (["compare", "absent.json", "absent.json"], "absent.json: No such file"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments: list[str], message: str, capsys: Any) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--max-concurency", "2"], "quartet bench serve: unknown argument --max-concurency; did you mean"),
        (["serve", "--request-rate", "0"], "--request-rate: invalid number above 0 value: '0'"),
        (["serve", "--num-prompts", "x"], "--num-prompts: invalid number of at least 1 value: 'x'"),
        (["serve", "--dataset-name", "sonnet"], "invalid choice: 'sonnet'"),
    ],
)
def test_what_cannot_be_read_is_refused_by_the_command_itself(arguments: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *arguments])
    assert message in capsys.readouterr().err


def test_settings_of_the_offline_engine_are_the_flags_of_serve() -> None:
    given = {"model.dtype": "float32", "scheduler.random_seed": None, "scheduler_set": ["a-b=3"], "num_iters": 4}
    assert engine_settings(given, "folder") == {"dtype": "float32", "a_b": "3", "model": "folder"}


def test_a_run_is_drawn_even_if_nothing_succeeded() -> None:
    pytest.importorskip("matplotlib")
    from quartet.bench.plots import draw_latencies, draw_throughput

    records = [Record(index=0, start_s=0.0, ttft_s=0.1, latency_s=0.4, itl_s=[0.1, 0.2], output_tokens=3)]
    for some in (records, []):
        assert [len(draw(some, "title").axes) for draw in (draw_throughput, draw_latencies)] == [2, 4]


def test_flags_of_other_engines_mean_what_they_mean_to_a_server() -> None:
    given = {"worker.page_size": "32", "other_flags": [("--num-gpu-blocks-override", "10"), ("--dp", "1")]}
    assert engine_settings(given, None) == {"page_size": "32", "max_total_tokens": "320"}
    with pytest.raises(ConfigError, match="--dp 2: run an engine for each"):
        engine_settings({"other_flags": [("--dp", "2")]}, None)
