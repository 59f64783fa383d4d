"""Times the kernels on a GPU at the shapes that two models give them, beside their floors.

    python -m benchmarks.kernels.kernel_times [--json FILE]

Beside each time stand its floor at the data sheet's rates and, where it was measured on an H100 in the same way with
pages of 16, the time of FlashAttention-3 as vLLM 0.24.0 calls it. tests/gpu checks the results of the same kernels.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton

from benchmarks.kernels.attention_times import (
    PAGE_SIZE,
    copies_of,
    graph_us,
    timed_decode,
    timed_extend,
    timed_mixed,
)
from benchmarks.kernels.random_inputs import BF16, RandomInputs
from benchmarks.model_configs import dimensions
from benchmarks.report import write_json
from benchmarks.roofline import BYTES, HEAD_DIM, KV_HEADS, PEAK_BYTES_PER_S
from kernels.activation import silu_mul
from kernels.norm import add_rms_norm
from kernels.rope_kv import rope_and_write_kv

Rows = list[dict[str, Any]]
WIDE = dimensions("llama-3.1-8b")


def timed_elementwise(make: RandomInputs, tokens: int) -> Iterator[dict[str, Any]]:
    """Time the memory-bound kernels at the width of Llama 3.1 8B; the inputs rotate, outputs are fresh."""
    hidden, inner = WIDE.hidden, WIDE.intermediate
    weight, us_per_byte = make.normal(hidden, dtype=BF16), 1e6 / PEAK_BYTES_PER_S
    wide = [make.normal(tokens, 2 * inner, dtype=BF16) for _ in range(copies_of(tokens * 2 * inner * BYTES))]
    us = graph_us([lambda x=x: silu_mul(x) for x in wide])
    yield {"case": f"silu_mul {tokens} x {inner}", "us": us, "floor_us": tokens * inner * 3 * BYTES * us_per_byte}
    us = graph_us([lambda x=x: add_rms_norm(x[:, :hidden], x[:, hidden : 2 * hidden], weight, 1e-5) for x in wide])
    yield {"case": f"add_rms_norm {tokens} x {hidden}", "us": us, "floor_us": tokens * hidden * 4 * BYTES * us_per_byte}
    heads = WIDE.query // HEAD_DIM
    split, count = (heads, KV_HEADS, KV_HEADS), heads + 2 * KV_HEADS
    cache = make.normal(tokens // PAGE_SIZE + 2, 2, KV_HEADS, PAGE_SIZE, HEAD_DIM, dtype=BF16)
    table, slots = torch.zeros(tokens, HEAD_DIM, device=make.device), torch.arange(tokens, device=make.device)
    fused = [x[:, : count * HEAD_DIM].unflatten(1, (count, HEAD_DIM)).split(split, dim=1) for x in wide]
    us = graph_us([lambda h=h: rope_and_write_kv(*h, table, slots, slots, cache) for h in fused])
    floor_us = tokens * count * HEAD_DIM * 2 * BYTES * us_per_byte
    yield {"case": f"rope_and_write_kv {tokens}, {heads}/{KV_HEADS} D{HEAD_DIM}", "us": us, "floor_us": floor_us}


def timing_cases(make: RandomInputs) -> Iterator[Callable[[], Rows]]:
    """Yield one call for each group of rows; the shapes are those measured for other engines."""
    decode = [(batch, context, 16) for context in (1024, 4096, 16384) for batch in (1, 8, 64, 256)]
    decode += [(64, 1024, 64), (64, 4096, 64), (1, 32768, 16)]
    decode += [(batch, 1024, 16, 16) for batch in (1, 8, 64, 256)] + [(1, 16384, 16, 16)]
    extend = [(1, 4096, 0), (1, 16384, 0), (8, 1024, 0), (1, 512, 8192), (1, 2048, 14336), (1, 128, 0)]
    for case in decode:
        yield lambda c=case: [timed_decode(make, *c)]
    for case, page in itertools.product(extend, (16, 64)):
        yield lambda c=case, p=page: [timed_extend(make, *c, p)]
    for case in extend[:4]:
        yield lambda c=case: [timed_extend(make, *c, 16, 16)]
    for heads in (32, 16):
        yield lambda h=heads: [timed_mixed(make, h)]
    for tokens in (1, 64, 256, 8192):
        yield lambda t=tokens: list(timed_elementwise(make, t))


def run_timings(make: RandomInputs) -> Rows:
    """Time all cases and print a table; a case that fails is reported and skipped."""
    results: Rows = []
    print(f"\n{'case':44} {'us':>10} {'floor us':>10} {'share':>7} {'/ FA3':>6}  rate")
    for case in timing_cases(make):
        try:
            rows = case()
        except Exception as problem:  # out of memory on a smaller GPU must not lose the other rows
            print(f"skipped: {type(problem).__name__}: {problem}"[:200])
            rows = []
        for row in rows:
            row["share"] = row["floor_us"] / row["us"]
            print(table_row(row), flush=True)
        results += rows
        torch.cuda.empty_cache()
    return results


def table_row(row: dict[str, Any]) -> str:
    """Return one timing as a line of the table."""
    rate = next((f"{row[unit]:.0f} {unit}" for unit in ("GB/s", "TFLOP/s") if unit in row), "")
    beside = f"{row['us'] / row['fa3_us']:6.2f}" if row.get("fa3_us") else " " * 6
    return f"{row['case']:44} {row['us']:10.1f} {row['floor_us']:10.1f} {row['share']:7.0%} {beside}  {rate}"


def main() -> int:
    """Time everything; write JSON where asked; 1 without a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="", help="file to write the results to")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("kernel_times needs a CUDA device")
        return 1
    host = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    print(", ".join(f"{name} {value}" for name, value in host.items()))
    timings = run_timings(RandomInputs(torch.device("cuda")))
    write_json({**host, "timings": timings}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
