"""The single setting that makes a launch fit into memory: the one whose change costs least comes first."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from quartet.sizing.demand import Demand, sized
from quartet.sizing.device import Device

_LEAST_POOL_TOKENS = 4096
"""Of a pool that is worth a suggestion, unless the context is shorter."""
_STEADY_SHARE = 0.95
"""Of the memory that is free: the next start finds a little less or more."""
_FRACTIONS = tuple(percent / 100 for percent in range(50, 98))


class _Knob(NamedTuple):
    """A flag, the field of Demand that it sets, and the least value worth a suggestion."""

    flag: str
    field: str
    least: int


_KNOBS = (
    _Knob("--max-total-tokens", "kv_tokens", 256),
    _Knob("--max-running-requests", "slots", 1),
    _Knob("--context-length", "context_length", 256),
    _Knob("--chunked-prefill-size", "prefill_tokens", 128),
)


def remedy(demand: Demand, device: Device) -> str:
    """Return what to do about a demand, sized or with a pool of no page, that the device cannot meet."""
    is_auto = demand.kv_tokens == sized(replace(demand, kv_tokens=0), device).kv_tokens
    rest = replace(demand, kv_tokens=0) if is_auto else demand
    device = device._replace(free_bytes=int(device.free_bytes * _STEADY_SHARE))
    if device.is_cuda and is_auto:
        for fraction in sorted(_FRACTIONS, key=lambda one: abs(one - demand.mem_fraction_static)):
            if _fits(replace(rest, mem_fraction_static=fraction), device):
                return f"give --mem-fraction-static {fraction:g}"
    for knob in _KNOBS:
        most = _largest(_trial(rest, device, knob), getattr(demand, knob.field))
        if knob.least <= most:
            unit = demand.page_size if knob.field in ("kv_tokens", "prefill_tokens") else 1
            return f"give {knob.flag} {_rounded(most, unit)}"
    if demand.item_bytes == 4 and _fits(replace(rest, item_bytes=2, kv_item_bytes=min(2, rest.kv_item_bytes)), device):
        return "give --dtype bfloat16"
    least = replace(demand, kv_tokens=0, slots=1, context_length=256, prefill_tokens=demand.page_size)
    if _fits(least, device):
        return f"give smaller values for {', '.join(knob.flag for knob in _KNOBS)}"
    return "take a smaller model, or free memory"


def _trial(rest: Demand, device: Device, knob: _Knob) -> Callable[[int], bool]:
    """Return the function that tells whether a value makes the demand fit; a pool that is not given follows it."""

    def fits(value: int) -> bool:
        return _fits(replace(rest, **{knob.field: value}), device)  # type: ignore[arg-type]

    return fits


def _fits(demand: Demand, device: Device) -> bool:
    tried = sized(demand, device)
    least = demand.page_size if demand.kv_tokens else min(demand.context_length, _LEAST_POOL_TOKENS)
    return tried.kv_tokens >= least and tried.total <= device.free_bytes


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """Return the largest number from 1 to `limit` that fits, 0 if none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _rounded(number: int, unit: int) -> int:
    """Return the number rounded down to about three digits, a multiple of `unit`."""
    digits = 10 ** max(0, len(str(number)) - 3)
    step = math.lcm(digits, unit)
    return number // step * step or number // unit * unit
