"""Runs kernels on a device with operands on the host, and counts the launches of each kernel.

A sanitizer then watches these kernels alone, each operand in an allocation of exactly its own extent.
"""

import functools
import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch


def with_host_operands(kernel: Callable[..., Any], device: torch.device, **fixed: Any) -> Callable[..., Any]:
    """Return `kernel` for operands on the host: copies them with their strides, and copies results and changes back.

    `fixed` are options of every call.
    """

    @functools.wraps(kernel)
    def call(*operands: Any, **options: Any) -> Any:
        sent = [_sent(operand, device) for operand in operands]
        named = {name: _sent(value, device) for name, value in options.items()}
        found = kernel(*sent, **named, **fixed)
        _bring_back([*operands, *options.values()], [*sent, *named.values()])
        if isinstance(found, tuple):
            return tuple(one.cpu() for one in found)
        return None if found is None else found.cpu()

    return call


def _bring_back(operands: Iterable[Any], sent: Iterable[Any]) -> None:
    for operand, there in zip(operands, sent, strict=True):
        if isinstance(operand, torch.Tensor):
            operand.copy_(there)
        elif _is_group(operand):
            _bring_back(operand, there)


def _is_group(operand: Any) -> bool:
    """Say whether an operand is a NamedTuple of tensors."""
    return isinstance(operand, tuple) and hasattr(operand, "_fields") and isinstance(operand[0], torch.Tensor)


def _sent(operand: Any, device: torch.device) -> Any:
    if _is_group(operand):
        return type(operand)(*(_sent(one, device) for one in operand))
    if not isinstance(operand, torch.Tensor):
        return operand
    return torch.empty_strided(operand.shape, operand.stride(), dtype=operand.dtype, device=device).copy_(operand)


class LaunchCount:
    """Counts launches of the kernels of a package, whose modules it imports.

    A kernel is a function that Triton compiles with a name like `_rms_norm_kernel`; device functions have other names.
    """

    def __init__(self, package: ModuleType) -> None:
        self.launches: Counter[str] = Counter()
        for found in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{found.name}")
            for name, function in vars(module).items():
                if name.startswith("_") and name.endswith("_kernel") and hasattr(function, "run"):
                    self.launches[name] = 0
                    function.run = functools.partial(self._run, name, function.run)

    def missing(self) -> list[str]:
        """Return the kernels that were not launched."""
        return sorted(name for name, count in self.launches.items() if not count)

    def _run(self, name: str, run: Callable[..., Any], *operands: Any, **options: Any) -> Any:
        self.launches[name] += 1
        return run(*operands, **options)
