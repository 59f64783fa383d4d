"""Attention of Llama-3.1-8B over a KV cache in FP8 beside one in bf16, on one CUDA device.

    python -m benchmarks.kernels.fp8_attention [--sweep] [--json FILE]

Microseconds by a CUDA graph whose calls read disjoint copies of the KV; `error` is how far the result over FP8 is from
that over the same numbers in bf16, relative to its norm. With --sweep decode is timed by other tiles, too.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.attention_times import HEADS, PAGE_SIZE, SCALE, copies_of, graph_us
from benchmarks.kernels.random_inputs import BF16, RandomInputs
from benchmarks.report import describe_host, report
from benchmarks.roofline import HEAD_DIM, KV_HEADS, kv_bytes
from kernels.decode_partition import TILES, DecodeTile, partition_decode
from kernels.paged_decode import paged_decode
from kernels.paged_extend import paged_extend, partition_extend

DECODE = ((1, 4096), (8, 4096), (32, 1056), (64, 1024), (64, 4096), (128, 1056), (256, 1024), (1, 16384))
EXTEND = ((1, 4096), (8, 1024))
TILES_TO_TRY = (
    *(DecodeTile(32, 4, stages, programs) for stages in (3, 5) for programs in (2, 3, 4)),
    *(DecodeTile(64, 4, stages, programs) for stages in (3, 4) for programs in (2, 3)),
    DecodeTile(128, 4, 3, 2),
)
E4M3 = torch.float8_e4m3fn


def with_tile(tile: DecodeTile, time: Callable[[], float]) -> float:
    """Return what `time` returns while decode over FP8 takes a tile; NaN if it does not compile."""
    kept = TILES[HEAD_DIM, 1]
    TILES[HEAD_DIM, 1] = tile
    try:
        return time()
    except Exception as error:
        print(f"{tile}: {type(error).__name__}: {str(error)[:80]}", file=sys.stderr)
        return float("nan")
    finally:
        TILES[HEAD_DIM, 1] = kept


def decode(make: RandomInputs, batch: int, context: int, sweep: bool) -> dict[str, Any]:
    """Time decode rows that are alike."""
    plain, tables = make.regions(batch, context, PAGE_SIZE, copies_of(kv_bytes(batch * context) // 2))
    coded = plain.to(E4M3)
    q, lens = make.normal(batch, HEADS, HEAD_DIM, dtype=BF16), make.integers([context] * batch)

    def partition_of(cache: Tensor) -> Tensor:
        partition = partition_decode(lens, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM, cache.dtype)
        # Metadata is read before the prior kernel has ended: it must have been written.
        torch.cuda.synchronize()
        return partition

    def run(cache: Tensor, table: Tensor, partition: Tensor) -> Tensor:
        return paged_decode(q, cache, table, lens, SCALE, partition=partition, metadata_ready=True)

    def timed(cache: Tensor) -> float:
        partition = partition_of(cache)
        return graph_us([lambda t=table: run(cache, t, partition) for table in tables])

    times, results = {}, []
    for name, cache in (("bf16_us", plain), ("fp8_us", coded), ("same", coded.to(BF16))):
        partition = partition_of(cache)
        results.append(run(cache, tables[0], partition).float())
        if name != "same":
            times[name] = round(timed(cache), 1)
    tiles = [tile for tile in TILES_TO_TRY if sweep]
    times |= {f"fp8_us {tuple(tile)}": round(with_tile(tile, lambda: timed(coded)), 1) for tile in tiles}
    error = float((results[1] - results[2]).norm() / results[2].norm())
    return {"case": f"decode {batch} x {context}", **times, "error": round(error, 5)}


def extend(make: RandomInputs, batch: int, tokens: int) -> dict[str, Any]:
    """Time whole prompts."""
    plain, tables = make.regions(batch, tokens, PAGE_SIZE, 2)
    cu_q, lens = make.integers([i * tokens for i in range(batch + 1)]), make.integers([tokens] * batch)
    q = make.normal(batch * tokens, HEADS, HEAD_DIM, dtype=BF16)
    row: dict[str, Any] = {"case": f"extend {batch} x {tokens}"}
    for name, cache in (("bf16_us", plain), ("fp8_us", plain.to(E4M3))):
        shape, lengths = (HEADS, KV_HEADS, HEAD_DIM, BF16), {"total": len(q), "max_q_len": tokens}
        partition = partition_extend(cu_q, lens, *shape, **lengths, kv_dtype=cache.dtype)
        call = lambda c=cache, p=partition: paged_extend(  # noqa: E731
            q, c, tables[0], cu_q, lens, SCALE, max_q_len=tokens, partition=p
        )
        row[name] = round(graph_us([call] * 4), 1)
    return row


def main() -> int:
    """Time all cases and print them."""
    parser = argparse.ArgumentParser(description="attention over FP8")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    make = RandomInputs(torch.device("cuda"))
    with torch.inference_mode():
        rows = [decode(make, *case, options.sweep) for case in DECODE] + [extend(make, *case) for case in EXTEND]
    report({"host": describe_host(), "attention": rows}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
