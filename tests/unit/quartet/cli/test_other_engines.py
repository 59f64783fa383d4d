"""Command lines of vLLM and SGLang: what means the same works, and what does not says in one line what to use."""

import shlex

import pytest

from quartet.cli.options import OneLineParser, add_options
from quartet.settings import Configuration, configure
from quartet.settings.other_engines import OTHER_FLAGS, OtherFlag
from quartet.wire.errors import ConfigError

PARSER = OneLineParser(prog="quartet serve", allow_abbrev=False)
add_options(PARSER)


def configured(line: str) -> Configuration:
    return configure(vars(PARSER.parse_args(shlex.split(line))), {})


def refusal(line: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configured(line)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("--model m", "--model-path m"),
        ("--tokenizer t", "--tokenizer-path t"),
        ("--max-model-len 4k", "--context-length 4000"),
        ("--max-num-seqs 3", "--max-running-requests 3"),
        ("--max-num-queued-reqs 3", "--max-queued-requests 3"),
        ("--max-num-batched-tokens 4096", "--max-prefill-tokens 4096"),
        ("--gpu-memory-utilization 0.5", "--mem-fraction-static 0.5"),
        ("--memory-ratio 0.5", "--mem-fraction-static 0.5"),
        ("--block-size 32", "--page-size 32"),
        ("--num-gpu-blocks-override 100", "--max-total-tokens 1600"),
        ("--num-gpu-blocks-override 100 --block-size 32", "--max-total-tokens 3200 --page-size 32"),
        ("--no-enable-prefix-caching", "--disable-radix-cache"),
        ("--enable-prefix-caching", ""),
        ("--enforce-eager", "--disable-cuda-graph"),
        ("--seed 5", "--random-seed 5"),
        ("--uvicorn-log-level warning", "--log-level warning"),
        ("--scheduling-policy fcfs", "--schedule-policy fcfs"),
        (
            "--scheduling-policy priority",
            "--schedule-policy fcfs --enable-priority-scheduling --schedule-low-priority-values-first",
        ),
        ("--priority-sign -1", "--schedule-low-priority-values-first"),
        ("--priority-sign 1", ""),
        ("--no-enable-chunked-prefill", "--chunked-prefill-size -1"),
        ("--dp-size 1 -dp 1 --pp-size 1 --nnodes 1", ""),
        ("--tensor-parallel-size 2", "--tp-size 2"),
        ("-tp 2", "--tp 2"),
        ("--kv-cache-dtype auto --grammar-backend llguidance --swap-space 0 --generation-config auto", ""),
        ("--insecure --no-insecure", ""),
        ("--enable-metrics --disable-log-requests", ""),
        ("--enable-log-requests", "--log-requests"),
        ("--tensor_parallel_size=1", ""),
    ],
)
def test_what_means_the_same(line: str, same: str) -> None:
    assert configured(line).config == configured(same).config


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--trust-remote-code", "not needed here: no code of a model folder is executed"),
        ("--data-parallel-size 2", "run an engine for each"),
        ("-pp 2", "-pp 2: run an engine for each, behind a router; --tp-size"),
        ("--kv-cache-dtype fp8_e5m2", "is not one of auto, fp8_e4m3"),
        ("--quantization awq", "is not one of auto, fp8"),
        ("--swap-space 4", "computed again"),
        ("--speculative-algorithm EAGLE", "--speculative-tokens"),
        ("--hf-token x", "HF_TOKEN"),
        ("--priority-sign 0", "-1"),
        ("--num-gpu-blocks-override many", "'many' is not an integer"),
        ("--num-gpu-blocks-override 100 --max-total-tokens 5k", "--max-total-tokens say the same"),
        ("--attention-backend flashinfer", "is not one of auto, torch, triton"),
    ],
)
def test_what_does_not_says_what_to_use(line: str, words: str) -> None:
    message = refusal(line)
    assert message.startswith(line.split()[0]) and words in message


@pytest.mark.parametrize("other", OTHER_FLAGS, ids=lambda other: str(other.names[0]))
def test_each_is_accepted_as_its_table_says_or_refused_with_its_line(other: OtherFlag) -> None:
    for name in other.names:
        for value in other.meanings:
            configured(f"{name} {value}")
        if "" in other.meanings:
            assert configured(name).notes == ([f"{name}: {other.line}"] if other.line else [])
        elif not other.otherwise:
            assert refusal(name if other.is_switch else f"{name} 77").endswith(other.line)


def test_a_given_value_has_the_name_it_was_given_under() -> None:
    assert configured("--priority-sign -1").origins == {"schedule_low_priority_values_first": "--priority-sign -1"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("32k", 32_000),
        ("1Ki", 1024),
        ("1.5M", 1_500_000),
        ("1.5Ki", 1536),
        ("2Mi", 2 << 20),
        ("1G", 10**9),
        ("1Gi", 1 << 30),
        ("1e6", 1_000_000),
        ("1e3k", 1_000_000),
        ("4096", 4096),
        ("4_096", 4096),
    ],
)
def test_suffixes_of_counts(text: str, value: int) -> None:
    assert configured(f"--max-total-tokens {text}").config.worker.max_total_tokens == value
    assert configure({}, {"QUARTET_MAX_TOTAL_TOKENS": text}).config.worker.max_total_tokens == value


@pytest.mark.parametrize(
    "text", ["1.0001k", "0.5", "1e-3", "k", "1kk", "1 k i", "1e", "0x10", "1.00000000000000000000000000000001k", "1,5k"]
)
def test_what_is_not_whole_is_refused(text: str) -> None:
    assert f"{text!r} is not an integer" in refusal(f"--max-total-tokens '{text}'")


def test_a_suffix_with_two_meanings_is_refused() -> None:
    assert "write k for 1000 or Ki for 1024" in refusal("--max-total-tokens 32K")


@pytest.mark.parametrize("text", ["1e30", "10000000T", "1e999999999", "1e99999999999999999999"])
def test_what_is_too_large_costs_no_time(text: str) -> None:
    assert refusal(f"--max-total-tokens {text}")
