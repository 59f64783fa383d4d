"""Flags and environment variables, derived from the fields of quartet.wire.config: each setting has one origin.

Precedence: flag, `QUARTET_<NAME>`, default. Every message names the flag, the value given and the bound that it was
compared with.
"""

import difflib
import ipaddress
import operator
import os
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import inspect

from quartet.runtime.home import expand_home
from quartet.wire.config import (
    MULTI_LEVELS,
    POLICIES,
    TRITON_PAGE_SIZES,
    Config,
    ModelConfig,
    SchedulerConfig,
    ServerConfig,
    WorkerConfig,
)
from quartet.wire.errors import ConfigError

SECTIONS: dict[str, type[msgspec.Struct]] = {
    "model": ModelConfig,
    "server": ServerConfig,
    "scheduler": SchedulerConfig,
    "worker": WorkerConfig,
}

CORES_FOR_TWO_TOKENIZERS = 8

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#*]+")

RARE = frozenset(
    {
        "abort_on_priority_when_disabled",
        "aging_share",
        "cache_priority_isolation",
        "clip_max_new_tokens_estimation",
        "in_batch_check_threshold",
        "in_batch_deprioritize_threshold",
        "init_new_token_ratio",
        "min_free_slots_delay",
        "min_new_token_ratio_factor",
        "new_token_ratio_decay",
        "new_token_ratio_decay_steps",
        "preempt_accounting",
        "prefill_max_requests",
        "prefix_match_overflow",
        "prefix_match_queue_max",
        "req_running_timeout",
        "req_waiting_timeout",
        "reserve_basis",
        "retract_decode_steps",
        "test_retract",
        "test_retract_no_prefill_bs",
    }
)
"""Fields of SchedulerConfig that are set by --scheduler-set."""

FD_NAMES = frozenset(
    {
        "init_new_token_ratio",
        "min_new_token_ratio_factor",
        "new_token_ratio_decay_steps",
        "new_token_ratio_decay",
        "retract_decode_steps",
        "clip_max_new_tokens_estimation",
    }
)
"""Fields that FastDeploy sets by an environment variable with the prefix FD_."""


def _scheduler_set(given: list[str]) -> dict[str, str]:
    """Parse the `name=value` pairs of --scheduler-set; any scheduler field may be named."""
    known = [field.name for field in fields_of(SchedulerConfig)]
    values = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ConfigError(f"--scheduler-set: {pair!r} is not name=value with the name of a scheduler setting{hint}")
        values[name] = value
    return values


def build_config(arguments: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Config:
    """Make the configuration of a launch from parsed flags (`section.field` to text) and the environment.

    Raises ConfigError for a value that is not allowed.
    """
    sections: dict[str, Any] = {}
    origins: dict[str, str] = {}
    rare = _scheduler_set(arguments.get("scheduler_set") or [])
    for name, section in SECTIONS.items():
        values: dict[str, Any] = {}
        for field in fields_of(section):
            text, origin = arguments.get(f"{name}.{field.name}"), "--" + field.name.replace("_", "-")
            if text is None and name == "scheduler" and field.name in rare:
                text, origin = rare[field.name], f"--scheduler-set {field.name}"
            for variable in _variables(name, field.name) if text is None else ():
                if variable in environment:
                    text, origin = environment[variable], variable
                    break
            if text is not None:
                values[field.name] = parse_value(field.type, text, origin)
                origins[field.name] = origin
        sections[name] = section(**values)
    sections["server"] = _plain(sections["server"])
    if "tokenizer_procs" not in origins and len(os.sched_getaffinity(0)) >= CORES_FOR_TWO_TOKENIZERS:
        sections["server"] = msgspec.structs.replace(sections["server"], tokenizer_procs=2)
    config = Config(**sections)
    if {"new_token_ratio_decay", "new_token_ratio_decay_steps"} <= origins.keys():
        decay, steps = origins["new_token_ratio_decay"], origins["new_token_ratio_decay_steps"]
        raise ConfigError(f"{decay} and {steps} exclude each other: give the fall of each step, or the number of steps")
    _check_together(config)
    return config


def _plain(server: ServerConfig) -> ServerConfig:
    """Return the section without brackets around the host, as in a URL, and with home directories for ~."""
    host = server.host[1:-1] if server.host.startswith("[") and server.host.endswith("]") else server.host
    paths = {name: str(expand_home(path)) for name in ("run_dir", "record_trace") if (path := getattr(server, name))}
    return msgspec.structs.replace(server, host=host, **paths)


def _variables(section: str, field: str) -> list[str]:
    """Return the environment variables of a field, in order of precedence."""
    prefixes = ["QUARTET_"] + (["SGLANG_"] if section == "scheduler" else []) + (["FD_"] if field in FD_NAMES else [])
    return [prefix + field.upper() for prefix in prefixes]


def parse_value(kind: inspect.Type, text: Any, origin: str) -> Any:
    """Turn text into a value of the field's type within its bounds; raises ConfigError naming `origin`."""
    kind, _ = bare_type(kind)
    match kind:
        case inspect.BoolType():
            if str(text).lower() not in ("true", "false", "1", "0"):
                raise ConfigError(f"{origin}: {text!r} is neither true nor false")
            return str(text).lower() in ("true", "1")
        case inspect.VarTupleType():
            parts = text if isinstance(text, list) else [part for part in text.split(",") if part]
            return tuple(_parse_text(part, origin) for part in parts)
        case inspect.LiteralType():
            if text not in kind.values:
                raise ConfigError(f"{origin}: {text!r} is not one of {', '.join(map(str, kind.values))}")
            return text
        case inspect.IntType() | inspect.FloatType():
            return _parse_number(kind, text, origin)
        case _:
            return _parse_text(text, origin)


def _parse_text(text: str, origin: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{origin}: {text!r} is not UTF-8") from None
    return text


def _parse_number(kind: "inspect.IntType | inspect.FloatType", text: Any, origin: str) -> int | float:
    is_int = isinstance(kind, inspect.IntType)
    try:
        value: int | float = int(text) if is_int else float(text)
    except ValueError:
        raise ConfigError(f"{origin}: {text!r} is not {'an integer' if is_int else 'a number'}") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ConfigError(f"{origin}: {text} is not a finite number")
    if not -(1 << 63) <= value < 1 << 63:
        raise ConfigError(f"{origin}: {text} does not fit into 64 bits")
    bounds = (
        ("at least", kind.ge, operator.ge),
        ("more than", kind.gt, operator.gt),
        ("at most", kind.le, operator.le),
        ("less than", kind.lt, operator.lt),
    )
    for words, bound, holds in bounds:
        if bound is not None and not holds(value, bound):
            raise ConfigError(f"{origin}: {text} is not allowed, it must be {words} {bound}")
    return value


def _check_together(config: Config) -> None:
    """Refuse values that are each allowed, but not together."""
    _check_scheduler(config.scheduler)
    page_size, chunk = config.worker.page_size, config.scheduler.chunked_prefill_size
    if chunk > 0 and chunk % page_size:
        raise ConfigError(f"--chunked-prefill-size: {chunk} is not a multiple of --page-size {page_size}")
    if config.worker.attention_backend == "triton" and page_size not in TRITON_PAGE_SIZES:
        raise ConfigError(f"--page-size: {page_size} is not one of {TRITON_PAGE_SIZES}, which triton attention needs")
    if config.worker.max_total_tokens and config.worker.max_total_tokens < 2 * page_size:
        raise ConfigError(
            f"--max-total-tokens: {config.worker.max_total_tokens} is less than two pages of {page_size} tokens"
        )
    if config.worker.simulated_script and not config.worker.simulated_worker:
        raise ConfigError("--simulated-script needs --simulated-worker: a model writes its own answers")
    for flag, keys in (("--api-key", config.server.api_key), ("--admin-api-key", config.server.admin_api_key)):
        if any(not key.strip() for key in keys):
            raise ConfigError(f"{flag}: an empty key would admit every client; leave it out or give a key")
    if set(config.server.api_key) & set(config.server.admin_api_key):
        raise ConfigError("--admin-api-key: the key is an --api-key, too, so every client would have it")
    for origin in config.server.cors_origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(f"--cors-origins: {origin!r} is not an origin, such as https://chat.example:8443, or *")
    if not _is_loopback(config.server.host) and not config.server.api_key and not config.server.insecure:
        raise ConfigError(
            f"--host {config.server.host} is reachable from outside: set --api-key, or --insecure if that is meant"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_scheduler(config: SchedulerConfig) -> None:
    policy = config.schedule_policy
    if policy.startswith("multi:"):
        levels = policy.removeprefix("multi:").split(",")
        wrong = [level for level in levels if level not in MULTI_LEVELS]
        if wrong or len(set(levels)) != len(levels):
            raise ConfigError(
                f"--schedule-policy: {policy!r} must list distinct levels of {', '.join(MULTI_LEVELS)} after multi:"
            )
        if "priority" in levels and not config.enable_priority_scheduling:
            raise ConfigError(f"--schedule-policy {policy} needs --enable-priority-scheduling")
    elif policy not in POLICIES:
        hint = ": give --schedule-policy fcfs --enable-priority-scheduling" if policy == "priority" else ""
        raise ConfigError(f"--schedule-policy: {policy!r} is not one of {', '.join(POLICIES)}, multi:LEVELS{hint}")
    if policy == "shortest-prefill-first" and config.disable_radix_cache:
        raise ConfigError("--schedule-policy shortest-prefill-first needs the radix cache: drop --disable-radix-cache")
    if config.retraction_policy == "priority" and not config.enable_priority_scheduling:
        raise ConfigError("--retraction-policy priority needs --enable-priority-scheduling")
    if config.tbt_target_ms > 0 and config.step_order != "decode_first":
        raise ConfigError("--tbt-target-ms needs --step-order decode_first")


def keyword_config(settings: Mapping[str, Any]) -> Config:
    """Make a configuration from keywords named after the fields of quartet.wire.config, and the environment.

    Settings of the HTTP server do not apply. Raises ConfigError for an unknown name or a value that is not allowed.
    """
    sections = {
        field.name: name for name, section in SECTIONS.items() if name != "server" for field in fields_of(section)
    }
    for name in settings:
        if name not in sections:
            near = difflib.get_close_matches(name, sections, 3, 0.5)
            raise ConfigError(f"{name} is not a setting" + (f"; did you mean {', '.join(near)}?" if near else ""))
    arguments = {f"{sections[name]}.{name}": value for name, value in settings.items() if name not in RARE}
    rare = [f"{name}={value}" for name, value in settings.items() if name in RARE]
    return build_config({**arguments, "scheduler_set": rare})


def fields_of(section: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    """Return the fields of a section of the configuration."""
    info = inspect.type_info(section)
    assert isinstance(info, inspect.StructType)
    return info.fields


def bare_type(kind: inspect.Type) -> tuple[inspect.Type, str]:
    """Return the type of a value that is given, and the help text."""
    text = ""
    if isinstance(kind, inspect.Metadata):
        text = str((kind.extra_json_schema or {}).get("description", ""))
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        (kind,) = (option for option in kind.types if not isinstance(option, inspect.NoneType))
    return kind, text
