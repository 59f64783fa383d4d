"""The plot of the attention kernels for gpu_plot.py: decode by bandwidth, prefill by TFLOP/s.

Takes the rows of benchmarks/kernels/kernel_times.py with 32 query heads and pages of 16: FlashAttention-3 and vLLM's
Triton kernel were measured in the same way.
"""

import re
from typing import Any

from benchmarks.roofline import MATRIX_TFLOP_PER_S, READ_GB_PER_S, decode_gb_per_s, extend_tflop_per_s
from benchmarks.serving.speed_to_beat import (
    FA3_DECODE,
    FA3_EXTEND,
    TRITON_DECODE,
    TRITON_EXTEND,
)

DECODE_CASE = re.compile(r"decode (\d+) x (\d+) 32/8 page 16")
EXTEND_CASE = re.compile(r"extend (\d+) x (\d+) on (\d+) 32/8 page 16")
HEADS = 32
COLOURS = {"Quartet": "tab:blue", "FlashAttention-3": "tab:orange", "vLLM's Triton": "tab:red"}

Rates = dict[str, list[float]]


def draw_attention(kernels: list[dict[str, Any]]) -> Any:
    """Return the figure, or None if no row was measured for the others."""
    from matplotlib.figure import Figure

    decode, extend = decode_rates(kernels), extend_rates(kernels)
    if not decode and not extend:
        return None
    figure = Figure(figsize=(12, 5), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(max(4, len(decode)), max(5, len(extend))))
    _draw_bars(left, decode, READ_GB_PER_S, "GB/s of KV read", "decode attention, batch x context")
    _draw_bars(right, extend, MATRIX_TFLOP_PER_S, "TFLOP/s", "prefill attention, sequences x new")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def decode_rates(kernels: list[dict[str, Any]]) -> Rates:
    """Return GB/s of ours, FA3 and Triton by case."""
    found = {}
    for shape, us in _cases(kernels, DECODE_CASE):
        batch, context = shape
        if (batch, context) in FA3_DECODE:
            times = (us, FA3_DECODE[batch, context], TRITON_DECODE[batch, context])
            found[f"{batch} x\n{_short(context)}"] = [decode_gb_per_s(batch, context, one) for one in times]
    return found


def extend_rates(kernels: list[dict[str, Any]]) -> Rates:
    """Return TFLOP/s of ours, FA3 and Triton by case."""
    found = {}
    for shape, us in _cases(kernels, EXTEND_CASE):
        batch, new, cached = shape
        key = (batch, new, cached, HEADS)
        if key in FA3_EXTEND:
            times = (us, FA3_EXTEND[key], TRITON_EXTEND[key])
            name = f"{batch} x {_short(new)}" + (f"\non {_short(cached)}" if cached else "")
            found[name] = [extend_tflop_per_s(*key, one) for one in times]
    return found


def _cases(kernels: list[dict[str, Any]], pattern: re.Pattern[str]) -> list[tuple[tuple[int, ...], float]]:
    """Return (numbers in the case's name, microseconds) of the rows that match, in order."""
    matches = ((pattern.fullmatch(row["case"]), row["us"]) for row in kernels)
    found = [(tuple(map(int, match.groups())), us) for match, us in matches if match]
    return sorted(found, key=lambda case: (case[0][1], case[0][0]))


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)


def _draw_bars(axes: Any, rates: Rates, ceiling: float, unit: str, title: str) -> None:
    for number, (label, colour) in enumerate(COLOURS.items()):
        places = [place + 0.27 * (number - 1) for place in range(len(rates))]
        axes.bar(places, [case[number] for case in rates.values()], width=0.25, color=colour, label=label)
    axes.axhline(ceiling, color="grey", linestyle=":", label="ceiling")
    axes.set_xticks(range(len(rates)), list(rates))
    axes.set_ylabel(unit)
    axes.set_title(title)
