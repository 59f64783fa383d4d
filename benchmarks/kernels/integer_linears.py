"""Times linears on integers of 4 or 8 bits against cuBLAS in bfloat16, for each tile, at Llama-3.1-8B's shapes.

    python -m benchmarks.kernels.integer_linears [bits] [group]

Prints one JSON line a shape and number of rows: microseconds of cuBLAS, of the tile that the rule chooses, of the best
tiles, and of the dequantisation before a product of many rows.
"""

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton

from kernels.integer_linear import dequantize_integers, integer_linear, integer_tile
from kernels.tiles import SkinnyTile

SHAPES = {"qkv": (6144, 4096), "output": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
BYTES = 200 << 20
"""More weights than the L2 cache holds, in turns."""
TILES = list(itertools.product((16, 32, 64, 128), (1, 2, 4, 8), (2, 4, 8), (2, 3, 4, 6)))


def main(bits: int = 4, group: int = 128) -> None:
    """Sweep the tiles."""
    device = torch.device("cuda")
    for (name, (width, depth)), rows in itertools.product(SHAPES.items(), (1, 8, 64)):
        x = torch.randn(rows, depth, device=device, dtype=torch.bfloat16)
        copies = max(1, BYTES // (width * depth * bits // 8))
        dtype, low, high = (torch.uint8, 0, 256) if bits == 4 else (torch.int8, -128, 128)
        codes = [
            torch.randint(low, high, (width, depth * bits // 8), device=device, dtype=dtype) for _ in range(copies)
        ]
        scale = torch.rand(width, depth // group, device=device).half() / 64
        zero = torch.full_like(scale, 8, dtype=torch.bfloat16) if bits == 4 else None
        plain = [torch.randn(width, depth, device=device, dtype=torch.bfloat16) for _ in range(max(1, copies // 4))]

        def times(tile: SkinnyTile, x=x, codes=codes, scale=scale, zero=zero) -> float:  # type: ignore[no-untyped-def]
            return us(lambda: [integer_linear(x, one, scale, zero, tile) for one in codes], len(codes))

        result: dict[str, Any] = {"linear": name, "rows": rows, "bits": bits, "group": group}
        result["cublas"] = us(lambda x=x, plain=plain: [torch.mm(x, one.T) for one in plain], len(plain))
        result["dequantise"] = us(
            lambda codes=codes, s=scale, z=zero: [dequantize_integers(one, s, z, torch.bfloat16) for one in codes[:2]],
            len(codes[:2]),
        )
        for form in ("plain", "split_k"):
            chosen = integer_tile(form, codes[0], depth // group, x)
            found: dict[SkinnyTile, float] = {}
            for block_n, splits, warps, stages in TILES:
                tile = SkinnyTile(block_n, chosen.block_k if chosen else group, splits, warps, stages)
                if (splits > 1) != (form == "split_k") or depth % (tile.block_k * splits):
                    continue
                try:
                    found[tile] = times(tile)
                except (RuntimeError, triton.runtime.errors.OutOfResources):
                    continue
            best = sorted((time, tuple(tile)) for tile, time in found.items())[:3]
            result[form] = {"chosen": None if chosen is None else times(chosen), "best": best}
        print(json.dumps(result), flush=True)


def us(run: Callable[[], Any], calls: int) -> float:
    """Return the microseconds of a call, in a graph of `calls` of them."""
    return round(triton.testing.do_bench_cudagraph(run, rep=5) * 1000 / calls, 2)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
