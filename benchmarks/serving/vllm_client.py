"""Runs the client of vLLM (`vllm bench serve`) from its source alone: no CUDA, no build of vLLM.

    PYTHON benchmarks/serving/vllm_client.py SOURCE [flags of vllm bench serve]

SOURCE is a folder that holds vllm/benchmarks, from the wheel of vLLM 0.33 for example. PYTHON is an interpreter with
aiohttp, datasets, numpy, pandas, pillow, transformers and tqdm (.clients/sglang of `make test-clients` has them).
Every other module of vllm has a stand-in: the client takes from there a tokenizer, a parser of arguments, the
collector's freeze and the join of host and port, which are given here, and types, which do not matter.
"""

import argparse
import gc
import importlib.machinery
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class Nothing:
    """An object, or a class, that has every attribute and can be called."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> "Nothing":
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __call__(self, *_: Any, **__: Any) -> "Nothing":
        """Return an object of the kind."""
        return Nothing()


def get_tokenizer(folder: str, **_: Any) -> Any:
    """Load a tokenizer."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")


def freeze_gc_heap() -> None:
    """Keep the collector from what exists."""
    gc.collect()
    gc.freeze()


GIVEN: dict[str, Callable[..., Any]] = {
    "TokenizerLike": object,
    "get_tokenizer": get_tokenizer,
    "FlexibleArgumentParser": argparse.ArgumentParser,
    "freeze_gc_heap": freeze_gc_heap,
    "join_host_port": "{}:{}".format,
    "init_logger": logging.getLogger,
    "is_mistral_tokenizer": lambda tokenizer: False,
}


class StandIn:
    """Makes every module of vllm but those of its benchmarks."""

    def __init__(self, source: str) -> None:
        self._source = source

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module that is replaced."""
        if name.partition(".")[0] != "vllm" or name.startswith("vllm.benchmarks"):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Leave it to Python to make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Give the module what the client uses, and every other attribute."""

        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return GIVEN.get(name, Nothing)

        module.__getattr__ = attribute  # type: ignore[method-assign]
        if module.__name__ == "vllm":
            module.__path__ = [f"{self._source}/vllm"]


def main(source: str, flags: list[str]) -> None:
    """Run the client."""
    sys.meta_path.insert(0, StandIn(source))  # type: ignore[arg-type]
    from vllm.benchmarks import serve

    parser = argparse.ArgumentParser()
    serve.add_cli_args(parser)
    serve.main(parser.parse_args(flags))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
