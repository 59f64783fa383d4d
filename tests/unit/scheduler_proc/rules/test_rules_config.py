"""Settings: CFG-1 to CFG-3. What is given from outside is what the scheduler reports, and a refusal names the bound."""

import ast
import operator
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from factory import ask
from msgspec import inspect

import quartet
from quartet.cli.options import OneLineParser, add_options
from quartet.settings import FD_NAMES, RARE, build_config
from quartet.wire.config import POLICIES, SchedulerConfig
from quartet.wire.errors import ConfigError
from quartet.wire.ids import Epoch
from scheduler_proc.core.events import WorkerUp
from scheduler_proc.core.scheduler import Scheduler

ROOT = Path(quartet.__file__).parent.parent
INFO = inspect.type_info(SchedulerConfig)
assert isinstance(INFO, inspect.StructType)
FIELDS = {field.name: field for field in INFO.fields}
COMPARE = {"at least": operator.ge, "more than": operator.gt, "at most": operator.le, "less than": operator.lt}

NEEDS = {
    "retraction_policy": {"enable_priority_scheduling": "true"},
    "tbt_target_ms": {"step_order": "decode_first"},
    "shed_hopeless": {"ttft_target_ms": "1000"},
}
"""Settings that a setting is only allowed with."""
SPECIAL = {
    "schedule_policy": "lof",
    "tenant_weights": "a=2,default=1",
    "chunked_prefill_size": "64",
    "max_running_requests": "5",
}
CHOSEN_BY_THE_ENGINE = {"chunked_prefill_size", "max_running_requests"}


def bare(kind: inspect.Type) -> inspect.Type:
    kind = kind.type if isinstance(kind, inspect.Metadata) else kind
    if isinstance(kind, inspect.UnionType):
        return next(option for option in kind.types if not isinstance(option, inspect.NoneType))
    return kind


def other_value(name: str) -> str:
    """Return text of an allowed value that is not the default."""
    if name in SPECIAL:
        return SPECIAL[name]
    kind, default = bare(FIELDS[name].type), FIELDS[name].default
    match kind:
        case inspect.BoolType():
            return "true"
        case inspect.LiteralType():
            return str(next(value for value in kind.values if value != default))
        case inspect.IntType():
            return str((default or 0) + 3)
        case inspect.FloatType():
            return str(default / 2 if default and default > 0 else 0.5)
    raise AssertionError(f"no value for {name}")


PARSER = OneLineParser(prog="quartet serve", allow_abbrev=False)
add_options(PARSER)


def configured(flags: dict[str, str], environment: dict[str, str]) -> SchedulerConfig:
    """Return the scheduler's settings of a command line, rare ones by --scheduler-set, and an environment."""
    argv = []
    for name, value in flags.items():
        if name not in RARE:
            flag = "--" + name.replace("_", "-")
            argv += [flag] if isinstance(bare(FIELDS[name].type), inspect.BoolType) else [f"{flag}={value}"]
    rare = [f"{name}={value}" for name, value in flags.items() if name in RARE]
    return build_config({**vars(PARSER.parse_args(argv)), "scheduler_set": rare}, environment).scheduler


def effective(config: SchedulerConfig) -> dict[str, Any]:
    """Return what a scheduler with that configuration says it goes by."""
    scheduler = Scheduler(config, 16, 4096, (0,))
    scheduler.handle(WorkerUp(Epoch(1), 1000, 200, True), 0.0)
    answer = ask(scheduler, "config")
    assert isinstance(answer, dict)
    return answer


def check_reported(config: SchedulerConfig, name: str) -> None:
    default = FIELDS[name].default
    given = getattr(config, name)
    assert given != default
    assert effective(config)[name] == (list(given) if isinstance(given, tuple) else given)


@pytest.mark.parametrize("name", FIELDS)
def test_cfg3_a_flag_reaches_the_scheduler(name: str) -> None:
    """CFG-3: by its flag, or by --scheduler-set where it has none."""
    check_reported(configured({**NEEDS.get(name, {}), name: other_value(name)}, {}), name)


@pytest.mark.parametrize("name", FIELDS)
def test_cfg3_an_environment_variable_reaches_the_scheduler(name: str) -> None:
    """CFG-3: QUARTET_ before SGLANG_ before FD_, each alone suffices."""
    prefixes = ["QUARTET_", "SGLANG_", *(["FD_"] if name in FD_NAMES else [])]
    for prefix in prefixes:
        needed = {f"QUARTET_{key.upper()}": value for key, value in NEEDS.get(name, {}).items()}
        check_reported(configured({}, {**needed, prefix + name.upper(): other_value(name)}), name)


def test_cfg3_what_the_engine_chooses_is_reported_too() -> None:
    """CFG-3: settings left to the engine show the value in force, and the ratio its constants."""
    answer = effective(SchedulerConfig())
    assert set(FIELDS) <= set(answer)
    assert all(answer[name] > 0 for name in CHOSEN_BY_THE_ENGINE)
    assert answer["kv_capacity_tokens"] == 16_000
    assert answer["effective_new_token_ratio"]["minimum"] == pytest.approx(0.098)


@pytest.mark.parametrize(
    ("values", "reported"),
    [
        ({"schedule_conservativeness": 0.3}, (0.21, 0.0294)),
        ({"init_new_token_ratio": 0.5, "min_new_token_ratio_factor": 0.5}, (0.5, 0.25)),
    ],
)
def test_cfg3_conservativeness_reaches_the_ratio(values: dict[str, float], reported: tuple[float, float]) -> None:
    """CFG-3, RAT-1: it is not fixed at 1.0 (PR-18)."""
    ratio = effective(SchedulerConfig(**values))["effective_new_token_ratio"]
    assert (ratio["initial"], ratio["minimum"]) == pytest.approx(reported)


@pytest.mark.parametrize(("values", "decay"), [({"new_token_ratio_decay": "0.003"}, 0.003), ({}, 0.602 / 600)])
def test_cfg3_decay_by_step_or_by_count(values: dict[str, str], decay: float) -> None:
    """CFG-3: a rate is a rate and a count is a count (PR-9); both at once are refused."""
    assert effective(configured(values, {}))["effective_new_token_ratio"]["decay"] == pytest.approx(decay)
    if values:
        with pytest.raises(ConfigError, match="exclude each other"):
            configured({**values, "new_token_ratio_decay_steps": "5"}, {})


def bounds() -> list[tuple[str, str, float]]:
    """Return (field, kind of bound, bound) of every bounded number."""
    found = []
    for name, field in FIELDS.items():
        kind = bare(field.type)
        if isinstance(kind, inspect.IntType | inspect.FloatType):
            for words, bound in (
                ("at least", kind.ge), ("more than", kind.gt), ("at most", kind.le), ("less than", kind.lt)
            ):  # fmt: skip
                if bound is not None:
                    found.append((name, words, bound))
    return found


@pytest.mark.parametrize(("name", "words", "bound"), bounds())
def test_cfg1_a_refusal_names_field_value_and_the_bound_it_was_compared_with(
    name: str, words: str, bound: float
) -> None:
    """CFG-1: the number in the message is the one that decides (PR-10)."""
    step = 1 if isinstance(bare(FIELDS[name].type), inspect.IntType) else 0.001
    outside = bound - step if words in ("at least", "more than") else bound + step
    with pytest.raises(ConfigError) as caught:
        configured({}, {f"QUARTET_{name.upper()}": str(outside)})
    message = str(caught.value)
    assert f"QUARTET_{name.upper()}" in message and str(outside) in message
    said = re.search(r"must be (at least|more than|at most|less than) (\S+)$", message)
    assert said is not None and said[1] == words
    stated = float(said[2])
    assert not COMPARE[words](outside, stated)
    if words in ("at least", "at most") and name not in NEEDS:
        at_bound = int(stated) if step == 1 else stated
        given = configured({}, {f"QUARTET_{name.upper()}": str(at_bound)})
        assert getattr(given, name) == at_bound


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("init_new_token_ratio", ("0", "-0.1", "1.01")),
        ("min_new_token_ratio_factor", ("-0.1", "1.1")),
        ("new_token_ratio_decay_steps", ("0", "-1", "1.5", "many")),
        ("retract_decode_steps", ("-1", "2.5")),
        ("clip_max_new_tokens_estimation", ("0",)),
        ("schedule_conservativeness", ("-0.1", "nan", "inf")),
        ("schedule_policy", ("priority", "lifo", "multi:", "multi:age", "multi:lpm,lpm")),
        ("max_prefill_tokens", ("0",)),
        ("chunked_prefill_size", ("-2", "24")),
        ("max_queued_requests", ("-1",)),
        ("priority_scheduling_preemption_threshold", ("-1",)),
        ("retraction_policy", ("longest", "priority")),
        ("radix_eviction_policy", ("tlru", "fastest")),
        ("prefill_decode_interval", ("-1",)),
        ("prefix_match_queue_max", ("-1",)),
        ("in_batch_check_threshold", ("-2",)),
        ("stream_interval", ("0",)),
        ("aging_share", ("0", "1.5")),
        ("reservation", ("none",)),
        ("reserve_basis", ("half",)),
        ("step_order", ("both",)),
        ("tbt_target_ms", ("-1", "5")),
        ("preempt_accounting", ("fair",)),
        ("random_seed", ("x",)),
    ],
)
def test_cfg1_values_outside_the_table_are_refused_at_start_up(name: str, values: tuple[str, ...]) -> None:
    """CFG-1, PR-6: the column `allowed` of the table of settings. 24 is no multiple of the page size."""
    for value in values:
        with pytest.raises(ConfigError):
            configured({}, {f"QUARTET_{name.upper()}": value})


def test_cfg1_every_policy_is_allowed_and_priority_is_told_its_flag() -> None:
    """CFG-1, POL-6."""
    for policy in (*POLICIES, "multi:priority,lpm,lof,fcfs"):
        has_levels = policy.startswith("multi:")
        given = {"schedule_policy": policy, "enable_priority_scheduling": has_levels}
        assert configured(given, {}).schedule_policy == policy
    with pytest.raises(ConfigError, match="--enable-priority-scheduling"):
        configured({"schedule_policy": "priority"}, {})


def test_pri3_levels_of_priorities_that_would_be_ignored_are_refused() -> None:
    """PRI-3."""
    with pytest.raises(ConfigError, match="multi:priority,lpm,fcfs needs --enable-priority-scheduling"):
        configured({"schedule_policy": "multi:priority,lpm,fcfs"}, {})


def test_cfg2_defaults_stand_in_one_place() -> None:
    """CFG-2, PR-5: a setting that is not given is what the table says, on every way to it."""
    assert build_config({}, {}).scheduler == SchedulerConfig()
    assert configured({}, {}) == SchedulerConfig()
    assert msgspec.convert({}, SchedulerConfig) == SchedulerConfig()


def test_cfg2_no_part_has_a_default_of_its_own() -> None:
    """CFG-2, PR-7: no getattr with a default, and no default argument named after a setting, in the core."""
    own_words = {"strategy", "is_sharing", "by_priority", "isolates"}
    found = []
    for path in (ROOT / "scheduler_proc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr" and len(node.args) > 2:
                found.append(f"{path.name}:{node.lineno}: getattr with a default")
            if isinstance(node, ast.FunctionDef):
                arguments = node.args.args[len(node.args.args) - len(node.args.defaults) :]
                found += [
                    f"{path.name}:{node.lineno}: {argument.arg}"
                    for argument in arguments
                    if argument.arg in FIELDS and argument.arg not in own_words
                ]
    assert found == []
