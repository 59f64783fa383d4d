"""Stands for what SGLang's benchmark imports and does not use: the image functions of its models, whose package needs
CUDA, and a part of its server. On the path of that client alone; nothing that runs is changed."""

import importlib.machinery
import sys
from typing import Any

ABSENT = ("torchvision", "sglang.srt.disaggregation")


class Nothing:
    """An object that has every attribute and can be called."""

    def __getattr__(self, name: str) -> "Nothing":
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __call__(self, *_: Any, **__: Any) -> "Nothing":
        return Nothing()


class StandIn:
    """Finds and makes the modules in ABSENT, and those below them."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module that is absent."""
        if not f"{name}.".startswith(tuple(f"{absent}." for absent in ABSENT)):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Leave it to Python to make the module."""

    def exec_module(self, module: Any) -> None:
        """Give the module a version, as its readers parse one, and every other attribute."""
        module.__version__ = "0.28.0"
        module.__getattr__ = Nothing().__getattr__


sys.meta_path.insert(0, StandIn())  # type: ignore[arg-type]
