"""Flags derived from the fields of quartet.wire.config: one setting, one place."""

import argparse
import difflib
import sys
from typing import Any, NoReturn

import msgspec
from msgspec import inspect

from quartet.runtime.failure_box import complain
from quartet.settings import RARE, SECTIONS, bare_type, fields_of

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
"""Flags of vLLM and SGLang for the same setting, beside the flag named after the field."""

OPPOSITES = {"disable_metrics": "--enable-metrics"}
"""Flags of other engines that ask for what is the default here."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on standard error, with the nearest flags for an unknown one."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        if message.startswith("unrecognized arguments:"):
            unknown = (message.split(":", 1)[1].split() or ["''"])[0]
            known = {option: option for action in self._actions for option in action.option_strings}
            if "--scheduler-set" in known:
                rare = {"--" + name.replace("_", "-"): f"--scheduler-set {name}=VALUE" for name in sorted(RARE)}
                known = {**rare, **known}
            near = [known[name] for name in difflib.get_close_matches(unknown.split("=")[0], known, 3, 0.5)]
            message = f"unknown argument {unknown}" + (f"; did you mean {', '.join(near)}?" if near else "")
        complain(f"{self.prog}: {message}")
        sys.exit(2)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field of every section, and --scheduler-set for the fields without one."""
    for name, section in SECTIONS.items():
        group = parser.add_argument_group(name)
        for field in fields_of(section):
            if field.name in RARE:
                continue
            flag = "--" + field.name.replace("_", "-")
            flags = list(dict.fromkeys([flag, "--" + field.name, *ALIASES.get(field.name, ())]))
            kind, _ = bare_type(field.type)
            extra: dict[str, Any] = {"dest": f"{name}.{field.name}", "default": None}
            if isinstance(kind, inspect.BoolType):
                extra["action"] = "store_const"
                extra["const"] = "true"
            elif isinstance(kind, inspect.VarTupleType):
                extra["action"] = "append"
            else:
                extra["metavar"] = _metavar(kind)
            group.add_argument(*flags, help=_help(field), **extra)
            if field.name in OPPOSITES:
                group.add_argument(OPPOSITES[field.name], help=argparse.SUPPRESS, **{**extra, "const": "false"})
    parser.add_argument(
        "--scheduler-set",
        action="append",
        metavar="NAME=VALUE",
        help="set a scheduler field without a flag; repeatable",
    )


def _metavar(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.LiteralType):
        return "{" + ",".join(map(str, kind.values)) + "}"
    return "N" if isinstance(kind, inspect.IntType) else "X" if isinstance(kind, inspect.FloatType) else "TEXT"


def _help(field: inspect.Field) -> str:
    _, text = bare_type(field.type)
    default = field.default
    if default not in ("", (), msgspec.NODEFAULT) and not isinstance(default, bool):
        text += f" (default: {default})"
    return text.replace("%", "%%")
