"""Flags and environment: precedence, and messages that name the flag, the value and what would be allowed."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from quartet.cli.options import OneLineParser, add_options
from quartet.settings import build_config
from quartet.wire.config import MULTI_LEVELS, POLICIES, TRITON_PAGE_SIZES, Config
from quartet.wire.errors import ConfigError


@functools.cache
def parser() -> OneLineParser:
    made = OneLineParser(prog="quartet serve", allow_abbrev=False)
    add_options(made)
    return made


def configured(argv: Sequence[str] = (), environment: Mapping[str, str] | None = None, **extra: Any) -> Config:
    """Return the configuration of a command line and an environment."""
    return build_config({**vars(parser().parse_args(argv)), **extra}, environment or {})


def refusal(argv: Sequence[str] = (), environment: Mapping[str, str] | None = None, **extra: Any) -> str:
    """Return the message with which a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        configured(argv, environment, **extra)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def usage_error(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which the parser itself refuses."""
    with pytest.raises(SystemExit) as caught:
        configured(argv)
    shown = capsys.readouterr()
    assert caught.value.code == 2 and shown.out == "" and shown.err.count("\n") == 1
    return shown.err.removeprefix("quartet serve: ").rstrip("\n")


# Where a value comes from


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    environment = {"QUARTET_PORT": "2000"}
    assert configured().server.port == 30000
    assert configured([], environment).server.port == 2000
    assert configured(["--port", "1000"], environment).server.port == 1000


def test_a_bad_variable_is_not_looked_at_when_the_flag_is_given() -> None:
    assert configured(["--port", "1000"], {"QUARTET_PORT": "many"}).server.port == 1000


@pytest.mark.parametrize(("cores", "given", "expected"), [(7, None, 1), (8, None, 2), (64, "1", 1), (2, "3", 3)])
def test_two_tokenizers_where_there_are_cores_for_them(
    cores: int, given: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    flags = [] if given is None else ["--tokenizer-procs", given]
    assert configured(flags).server.tokenizer_procs == expected


def test_a_flag_given_twice_counts_the_second_time() -> None:
    assert configured(["--port", "1", "--port", "2"]).server.port == 2


@pytest.mark.parametrize("flag", ["--max-num-seqs", "--max_running_requests", "--max-running-requests"])
def test_names_from_elsewhere_mean_the_same(flag: str) -> None:
    assert configured([flag, "7"]).scheduler.max_running_requests == 7


def test_names_are_not_guessed_from_their_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown argument --por" in usage_error(["--por", "1"], capsys)


def test_variables_of_other_engines_count_less_than_ours() -> None:
    variables = {
        "FD_RETRACT_DECODE_STEPS": "1",
        "SGLANG_RETRACT_DECODE_STEPS": "2",
        "QUARTET_RETRACT_DECODE_STEPS": "3",
    }
    for expected in (3, 2, 1):
        assert configured([], variables).scheduler.retract_decode_steps == expected
        variables.popitem()


def test_only_the_scheduler_has_variables_of_other_engines() -> None:
    assert configured([], {"SGLANG_PORT": "1", "FD_PORT": "1"}).server.port == 30000


def test_a_message_names_the_variable_that_is_at_fault() -> None:
    assert refusal([], {"QUARTET_PORT": "many"}).startswith("QUARTET_PORT: 'many' ")
    assert refusal([], {"SGLANG_RETRACT_DECODE_STEPS": "-1"}).startswith("SGLANG_RETRACT_DECODE_STEPS: -1 ")


def test_a_scheduler_setting_without_a_flag() -> None:
    given = configured(scheduler_set=["retract-decode-steps=5", "test_retract=true"]).scheduler
    assert (given.retract_decode_steps, given.test_retract) == (5, True)


def test_a_scheduler_setting_wins_over_the_environment_and_a_flag_over_it() -> None:
    environment = {"QUARTET_STREAM_INTERVAL": "2"}
    assert configured([], environment, scheduler_set=["stream-interval=3"]).scheduler.stream_interval == 3
    argv = ["--stream-interval", "4"]
    assert configured(argv, environment, scheduler_set=["stream_interval=3"]).scheduler.stream_interval == 4


@pytest.mark.parametrize("pair", ["retract_decode_step=5", "retract_decode_steps", "port=1"])
def test_a_scheduler_setting_that_is_none_is_refused(pair: str) -> None:
    message = refusal(scheduler_set=[pair])
    assert message.startswith(f"--scheduler-set: {pair!r} ")


def test_the_nearest_scheduler_settings_are_offered() -> None:
    assert "did you mean retract_decode_steps" in refusal(scheduler_set=["retract_decode_step=5"])


def test_a_scheduler_setting_out_of_bounds_names_itself() -> None:
    message = refusal(scheduler_set=["retract_decode_steps=-1"])
    assert message == "--scheduler-set retract_decode_steps: -1 is not allowed, it must be at least 0"


# Kinds of values


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "many"], "--port: 'many' is not an integer"),
        (["--port", "1.5"], "--port: '1.5' is not an integer"),
        (["--port", ""], "--port: '' is not an integer"),
        (["--port", "65536"], "--port: 65536 is not allowed, it must be at most 65535"),
        (["--port", "-1"], "--port: -1 is not allowed, it must be at least 0"),
        (["--hang-timeout", "soon"], "--hang-timeout: 'soon' is not a number"),
        (["--hang-timeout", "0"], "--hang-timeout: 0 is not allowed, it must be more than 0"),
        (["--hang-timeout", "inf"], "--hang-timeout: inf is not a finite number"),
        (["--hang-timeout", "nan"], "--hang-timeout: nan is not a finite number"),
        (["--hang-timeout", "1e999"], "--hang-timeout: 1e999 is not a finite number"),
        (["--mem-fraction-static", "1"], "--mem-fraction-static: 1 is not allowed, it must be less than 1"),
        (["--dtype", "int8"], "--dtype: 'int8' is not one of auto, bfloat16, float16, float32"),
    ],
)
def test_what_is_not_allowed_and_what_would_be(argv: list[str], message: str) -> None:
    assert refusal(argv) == message


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("1", True), ("False", False), ("0", False)])
def test_a_switch_in_the_environment(text: str, expected: bool) -> None:
    assert configured([], {"QUARTET_INSECURE": text}).server.insecure is expected


def test_a_switch_as_a_flag_takes_no_value() -> None:
    assert configured(["--insecure"]).server.insecure is True
    assert configured(["--insecure"], {"QUARTET_INSECURE": "0"}).server.insecure is True


def test_neither_true_nor_false() -> None:
    assert refusal([], {"QUARTET_INSECURE": "maybe"}) == "QUARTET_INSECURE: 'maybe' is neither true nor false"


def test_a_repeatable_flag_and_its_list_in_the_environment() -> None:
    assert configured(["--api-key", "a,b", "--api-key", "c"]).server.api_key == ("a,b", "c")
    assert configured([], {"QUARTET_API_KEY": "a,,b,"}).server.api_key == ("a", "b")
    assert configured([], {"QUARTET_API_KEY": ""}).server.api_key == ()


def test_a_number_that_may_be_absent() -> None:
    assert configured().scheduler.default_priority_value is None
    assert configured(["--default-priority-value", "-3"]).scheduler.default_priority_value == -3
    assert refusal(["--default-priority-value", "low"]) == "--default-priority-value: 'low' is not an integer"


@pytest.mark.parametrize("flag", ["--random-seed", "--max-total-tokens", "--max-body-bytes"])
def test_every_value_taken_can_be_handed_to_a_child(flag: str) -> None:
    assert refusal([flag, "1" + "0" * 20]) == f"{flag}: 100000000000000000000 does not fit into 64 bits"
    msgspec.msgpack.encode(configured([flag, str((1 << 63) - 1)]))


def test_text_that_is_no_utf8_is_refused() -> None:
    text = b"caf\xe9".decode("utf-8", "surrogateescape")
    for flag in ("--served-model-name", "--api-key"):
        assert refusal([flag, text]) == f"{flag}: {text!r} is not UTF-8"


# What does not go together


def test_chunks_are_whole_pages() -> None:
    message = refusal(["--chunked-prefill-size", "100"])
    assert message == "--chunked-prefill-size: 100 is not a multiple of --page-size 16"
    for size in ("-1", "0", "96"):
        configured(["--chunked-prefill-size", size])


def test_triton_takes_only_its_page_sizes() -> None:
    message = refusal(["--attention-backend", "triton", "--page-size", "8", "--chunked-prefill-size", "8"])
    assert message.startswith(f"--page-size: 8 is not one of {TRITON_PAGE_SIZES}")
    for size in TRITON_PAGE_SIZES:
        configured(["--attention-backend", "triton", "--page-size", str(size)])
    configured(["--attention-backend", "torch", "--page-size", "8"])


def test_the_kv_cache_holds_two_pages() -> None:
    assert refusal(["--max-total-tokens", "31"]) == "--max-total-tokens: 31 is less than two pages of 16 tokens"
    configured(["--max-total-tokens", "32"])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5"])
def test_a_reachable_host_needs_a_key_or_insecure(host: str) -> None:
    message = refusal(["--host", host])
    assert message.startswith(f"--host {host}") and "--api-key" in message and "--insecure" in message
    configured(["--host", host, "--api-key", "secret"])
    configured(["--host", host, "--insecure"])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_an_unreachable_host_needs_none(host: str) -> None:
    assert configured(["--host", host]).server.host == host


@pytest.mark.parametrize("key", ["", " "])
def test_an_empty_key_is_no_key(key: str) -> None:
    assert refusal(["--host", "0.0.0.0", "--api-key", key]).startswith("--api-key: an empty key ")
    assert refusal(["--api-key", "good", "--api-key", key]).startswith("--api-key: an empty key ")


@pytest.mark.parametrize("policy", [*POLICIES, "multi:fcfs", "multi:" + ",".join(MULTI_LEVELS)])
def test_every_policy_can_be_chosen(policy: str) -> None:
    more = ["--enable-priority-scheduling"] if "priority" in policy else []
    assert configured(["--schedule-policy", policy, *more]).scheduler.schedule_policy == policy


@pytest.mark.parametrize("policy", ["fastest", "multi:", "multi:fcfs,fcfs", "multi:hrrn", "", "priority"])
def test_other_policies_are_refused(policy: str) -> None:
    message = refusal(["--schedule-policy", policy])
    assert message.startswith(f"--schedule-policy: {policy!r} ")
    assert all(level in message for level in MULTI_LEVELS) or all(known in message for known in POLICIES)


def test_priority_as_a_policy_is_explained() -> None:
    assert "--enable-priority-scheduling" in refusal(["--schedule-policy", "priority"])


@pytest.mark.parametrize(
    ("argv", "needed"),
    [
        (["--schedule-policy", "shortest-prefill-first", "--disable-radix-cache"], "--disable-radix-cache"),
        (["--retraction-policy", "priority"], "--enable-priority-scheduling"),
        (["--tbt-target-ms", "20"], "--step-order decode_first"),
        (["--demo", "--disable-ui"], "drop --disable-ui"),
    ],
)
def test_settings_that_need_another(argv: list[str], needed: str) -> None:
    message = refusal(argv)
    assert message.startswith(argv[0]) and needed in message


def test_two_ways_to_let_the_ratio_fall_exclude_each_other() -> None:
    both = ["new_token_ratio_decay=0.1", "new_token_ratio_decay_steps=10"]
    message = refusal(scheduler_set=both)
    assert all(pair.partition("=")[0] in message for pair in both)
    for one in both:
        configured(scheduler_set=[one])


# The parser's own errors


def test_an_unknown_flag_and_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(["--prot", "1"], capsys).startswith("unknown argument --prot; did you mean --port")
    assert usage_error(["--prot=1"], capsys).startswith("unknown argument --prot=1; did you mean --port")


def test_an_unknown_flag_that_is_near_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(["--zzzzqqqq"], capsys) == "unknown argument --zzzzqqqq"


def test_an_empty_argument_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error([""], capsys).startswith("unknown argument ''")


def test_a_flag_without_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--port" in usage_error(["--port"], capsys)


def test_a_switch_with_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--insecure" in usage_error(["--insecure=maybe"], capsys)


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/", "https://", "https://*.example", ""])
def test_an_origin_is_a_scheme_and_a_host(origin: str) -> None:
    assert refusal(["--cors-origins", origin]).startswith("--cors-origins: ")
