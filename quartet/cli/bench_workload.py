"""Flags of a workload, which `quartet bench serve` and `quartet bench offline` share."""

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from quartet.bench.datasets import DATASETS, Options
from quartet.bench.vocabulary import Vocabulary
from quartet.wire.config import ModelConfig
from quartet.wire.errors import ConfigError

DEFAULTS = Options()


def number(kind: type[int] | type[float], least: float, is_open: bool = False) -> Callable[[str], Any]:
    """Return a reader of numbers of at least `least`, or of more if `is_open`; infinity passes as a float."""

    def read(text: str) -> Any:
        value = kind(text)
        if math.isnan(value) or value < least or (is_open and value == least):
            raise ValueError
        return value

    read.__name__ = f"number {'above' if is_open else 'of at least'} {least}"
    return read


COUNT, SIZE, SHARE = number(int, 1), number(int, 0), number(float, 0)
ABOVE_0 = number(float, 0, True)

RANDOM, GROUPS, FILE = ("random", "random-ids"), ("generated-shared-prefix",), ("trace",)
FLAGS: dict[str, tuple[tuple[str, ...], Callable[[str], Any], str]] = {
    "random_input_len": (RANDOM, COUNT, "mean tokens of a prompt"),
    "random_output_len": (RANDOM, COUNT, "mean tokens of an output"),
    "random_range_ratio": (RANDOM, SHARE, "lengths vary by this share of the mean, below 1; vLLM's meaning"),
    "sharegpt_output_len": (("sharegpt",), COUNT, "tokens of every output, else those of the file's answers"),
    "gsp_num_groups": (GROUPS, COUNT, "groups that share a prefix"),
    "gsp_prompts_per_group": (GROUPS, COUNT, "prompts of a group"),
    "gsp_system_prompt_len": (GROUPS, COUNT, "tokens that a group shares"),
    "gsp_question_len": (GROUPS, COUNT, "tokens of each prompt's own"),
    "gsp_output_len": (GROUPS, COUNT, "tokens of an output"),
    "speed": (FILE, ABOVE_0, "let a trace arrive X times as fast"),
    "first": (FILE, SHARE, "only the first X minutes of a trace; 0: all of it"),
}
"""Flags that belong to some datasets: those, how to read a value, what it means."""


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the dataset and its lengths; what is not given is None."""
    group = parser.add_argument_group("workload")
    group.add_argument("--dataset-name", choices=sorted(DATASETS), default=DEFAULTS.dataset_name, help="%(default)s")
    group.add_argument("--dataset-path", metavar="FILE", help="ShareGPT JSON; or a trace: recorded, Azure, Mooncake...")
    group.add_argument("--num-prompts", type=COUNT, metavar="N", help="1000; of a trace or of groups: all")
    for name, (_, read, text) in FLAGS.items():
        default = getattr(DEFAULTS, name)
        text += f" (default: {default:g})" if default is not None else ""
        metavar = "N" if read in (COUNT, SIZE) else "X"
        group.add_argument("--" + name.replace("_", "-"), type=read, metavar=metavar, help=text)
    group.add_argument(
        "--gsp-ordered", action="store_const", const=True, help="send group by group; otherwise they are mixed"
    )


def workload_options(arguments: argparse.Namespace, seed: int, request_rate: float = math.inf) -> Options:
    """Return the workload that the arguments name; raises ConfigError for a flag of another dataset."""
    given = {field: getattr(arguments, field, None) for field in Options.__struct_fields__}
    given = {field: value for field, value in given.items() if value is not None}
    belongs = {name: datasets for name, (datasets, _, _) in FLAGS.items()}
    belongs |= {"gsp_ordered": GROUPS, "dataset_path": ("sharegpt", "trace")}
    for name, datasets in belongs.items():
        if name in given and arguments.dataset_name not in datasets:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} belongs to --dataset-name {' or '.join(datasets)}, not {arguments.dataset_name}")
    if (given.get("random_range_ratio") or 0.0) >= 1:
        raise ConfigError("--random-range-ratio must be below 1: lengths vary by that share of the mean")
    options: Mapping[str, Any] = given | {"seed": seed, "request_rate": request_rate}
    return Options(**options)


def vocabulary_of(tokenizer: str, size: int = 0) -> Vocabulary:
    """Return the vocabulary of the model or folder that `tokenizer` names; empty: none. Raises ModelError."""
    if not tokenizer:
        return Vocabulary(size)
    from quartet.checkpoint.resolve import local_folder
    from quartet.checkpoint.tokenizer_loading import load_tokenizer

    return Vocabulary(size, load_tokenizer(local_folder(msgspec.structs.replace(ModelConfig(), model_path=tokenizer))))
