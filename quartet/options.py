"""Flags and environment twins, derived from the fields of quartet.config: one setting, one place.

Precedence: flag, `QUARTET_<NAME>`, default. Every message names the flag, the value given and the bound that it was
compared with.
"""

import argparse
import difflib
import operator
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec
from msgspec import inspect

from quartet.config import Config, ModelConfig, SchedulerConfig, ServerConfig, WorkerConfig
from quartet.errors import ConfigError

SECTIONS: dict[str, type[msgspec.Struct]] = {
    "model": ModelConfig,
    "server": ServerConfig,
    "scheduler": SchedulerConfig,
    "worker": WorkerConfig,
}

ALIASES: dict[str, tuple[str, ...]] = {
    "model_path": ("--model",),
    "schedule_policy": ("--scheduling-policy",),
    "max_running_requests": ("--max-num-seqs",),
    "max_queued_requests": ("--max-num-queued-reqs",),
    "max_prefill_tokens": ("--max-num-batched-tokens",),
    "mem_fraction_static": ("--gpu-memory-utilization", "--memory-ratio"),
    "page_size": ("--block-size",),
    "context_length": ("--max-model-len",),
    "tokenizer_path": ("--tokenizer",),
    "disable_radix_cache": ("--no-enable-prefix-caching",),
    "random_seed": ("--seed",),
}
"""Names that users of vLLM and SGLang know, beside the flag named after the field."""

PAGE_SIZES_TRITON = (16, 32, 64, 128)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on standard error, with the nearest flags for an unknown one."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        if message.startswith("unrecognized arguments:"):
            unknown = message.split(":", 1)[1].split()[0]
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown.split("=")[0], known, 3, 0.5)
            message = f"unknown argument {unknown}" + (f"; did you mean {', '.join(near)}?" if near else "")
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field of every section."""
    for name, section in SECTIONS.items():
        group = parser.add_argument_group(name)
        for field in _fields(section):
            flag = "--" + field.name.replace("_", "-")
            flags = list(dict.fromkeys([flag, "--" + field.name, *ALIASES.get(field.name, ())]))
            kind, _ = _bare(field.type)
            extra: dict[str, Any] = {"dest": f"{name}.{field.name}", "default": None}
            if isinstance(kind, inspect.BoolType):
                extra["action"] = "store_const"
                extra["const"] = "true"
            elif isinstance(kind, inspect.VarTupleType):
                extra["action"] = "append"
            else:
                extra["metavar"] = _metavar(kind)
            group.add_argument(*flags, help=_help(field), **extra)


def build_config(arguments: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Config:
    """Make the configuration of a launch from parsed flags (`section.field` to text) and the environment.

    Raises ConfigError for a value that is not allowed.
    """
    sections: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        values: dict[str, Any] = {}
        for field in _fields(section):
            text, origin = arguments.get(f"{name}.{field.name}"), "--" + field.name.replace("_", "-")
            if text is None and f"QUARTET_{field.name.upper()}" in environment:
                origin = f"QUARTET_{field.name.upper()}"
                text = environment[origin]
            if text is not None:
                values[field.name] = parse_value(field.type, text, origin)
        sections[name] = section(**values)
    config = Config(**sections)
    _check_together(config)
    return config


def parse_value(kind: inspect.Type, text: Any, origin: str) -> Any:
    """Turn text into a value of the field's type within its bounds; raises ConfigError naming `origin`."""
    kind, _ = _bare(kind)
    match kind:
        case inspect.BoolType():
            if str(text).lower() not in ("true", "false", "1", "0"):
                raise ConfigError(f"{origin}: {text!r} is neither true nor false")
            return str(text).lower() in ("true", "1")
        case inspect.VarTupleType():
            return tuple(text) if isinstance(text, list) else tuple(part for part in text.split(",") if part)
        case inspect.LiteralType():
            if text not in kind.values:
                raise ConfigError(f"{origin}: {text!r} is not one of {', '.join(map(str, kind.values))}")
            return text
        case inspect.IntType() | inspect.FloatType():
            return _parse_number(kind, text, origin)
        case _:
            return text


def _parse_number(kind: "inspect.IntType | inspect.FloatType", text: Any, origin: str) -> int | float:
    is_int = isinstance(kind, inspect.IntType)
    try:
        value: int | float = int(text) if is_int else float(text)
    except ValueError:
        raise ConfigError(f"{origin}: {text!r} is not {'an integer' if is_int else 'a number'}") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ConfigError(f"{origin}: {text} is not a finite number")
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
    page_size, chunk = config.worker.page_size, config.scheduler.chunked_prefill_size
    if chunk > 0 and chunk % page_size:
        raise ConfigError(f"--chunked-prefill-size: {chunk} is not a multiple of --page-size {page_size}")
    if config.worker.attention_backend == "triton" and page_size not in PAGE_SIZES_TRITON:
        raise ConfigError(f"--page-size: {page_size} is not one of {PAGE_SIZES_TRITON}, which triton attention needs")
    if config.worker.max_total_tokens and config.worker.max_total_tokens < 2 * page_size:
        raise ConfigError(
            f"--max-total-tokens: {config.worker.max_total_tokens} is less than two pages of {page_size} tokens"
        )
    loopback = config.server.host in ("127.0.0.1", "::1", "localhost")
    if not loopback and not config.server.api_key and not config.server.insecure:
        raise ConfigError(
            f"--host {config.server.host} is reachable from outside: set --api-key, or --insecure if that is meant"
        )


def _fields(section: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(section)
    assert isinstance(info, inspect.StructType)
    return info.fields


def _bare(kind: inspect.Type) -> tuple[inspect.Type, str]:
    if isinstance(kind, inspect.Metadata):
        text = (kind.extra_json_schema or {}).get("description", "")
        return kind.type, str(text)
    return kind, ""


def _metavar(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.LiteralType):
        return "{" + ",".join(map(str, kind.values)) + "}"
    return "N" if isinstance(kind, inspect.IntType) else "X" if isinstance(kind, inspect.FloatType) else "TEXT"


def _help(field: inspect.Field) -> str:
    _, text = _bare(field.type)
    default = field.default
    if default not in ("", (), msgspec.NODEFAULT) and not isinstance(default, bool):
        text += f" (default: {default})"
    return text.replace("%", "%%")
