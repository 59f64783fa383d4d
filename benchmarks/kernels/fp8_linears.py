"""Linears of Llama-3.1-8B on FP8 weights beside bf16, on one CUDA device: few rows by tile, many rows by product.

    python -m benchmarks.kernels.fp8_linears [--rows 1 8 64] [--many 512 4096] [--sweep] [--json FILE]

Each linear runs in a CUDA graph over weights that take turns, together more than the L2 cache. `floor` is the time to
read the codes once at the rate at which the card reads. With --sweep every tile is timed, and the best five are shown.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.attention_times import copies_of, graph_us
from benchmarks.report import describe_host, report
from kernels import activation, fp8_numbers, fp8_tiles, gemm_fp8_blocks, pdl, skinny_fp8, skinny_tiles
from kernels.fp8_tiles import SHARED_BYTES, fp8_tile
from kernels.skinny_linear import skinny_linear
from kernels.skinny_tiles import gated_tile, split_k_tile, unsplit_tile
from kernels.tile_table import Form
from kernels.tiles import HopperTile, SkinnyTile, Tile
from quartet.checkpoint.quantization import Quantization
from worker_proc.ops.fp8_linear import Fp8Kernels, Fp8Linear
from worker_proc.ops.skinny import SkinnyLinear
from worker_proc.tuning.timing import read_bytes_per_s
from worker_proc.weights.quantized import QuantizedWeight, dequantized, quantized

LINEARS: dict[str, tuple[Form, int, int]] = {
    "qkv": ("plain", 6144, 4096),
    "output": ("split_k", 4096, 4096),
    "gate_up": ("gated", 28672, 4096),
    "down": ("split_k", 4096, 14336),
}
GROUPS = {"rows": (1, 0), "blocks": (128, 128)}
BF16_TILES = {"plain": unsplit_tile, "split_k": split_k_tile, "gated": gated_tile}
MODULES = skinny_fp8, fp8_tiles, fp8_numbers, gemm_fp8_blocks, pdl


def weights_of(width: int, depth: int, group: tuple[int, int]) -> list[QuantizedWeight]:
    """Return FP8 weights enough to take turns."""
    method = Quantization("random", "fp8", "plain", group)
    make = (torch.randn(width, depth, device="cuda") * 0.02 for _ in range(copies_of(width * depth)))
    return [quantized(weight, method) for weight in make]


def tiles(form: Form, width: int, depth: int, rows: int) -> Iterator[Tile]:
    """Yield the tiles that fit a linear over few rows."""
    padded = max(8, 1 << (rows - 1).bit_length())
    for splits in (1, 2, 4, 8) if form == "split_k" else (1,):
        part = depth // splits
        for block_k in (128, 256):
            if part % block_k:
                continue
            for programs in (1, 2, 3, 4):
                stages = min(SHARED_BYTES // programs // (block_k * (64 + 2 * padded)), part // block_k)
                if stages >= 2:
                    yield HopperTile(block_k, splits, stages)
            if rows <= 64:
                yield from (SkinnyTile(64, block_k, splits, 4, stages) for stages in (3, 5))


def few_rows(name: str, rows: int, group: str, bytes_per_s: float, sweep: bool) -> dict[str, Any]:
    """Time a linear over few rows: bf16, the tile that the engine takes, and all others."""
    form, width, depth = LINEARS[name]
    weights, x = weights_of(width, depth, GROUPS[group]), torch.randn(rows, depth, device="cuda").bfloat16()
    is_gated = form == "gated"

    def run(tile: Tile, weight: QuantizedWeight) -> Tensor:
        return skinny_fp8.skinny_fp8(x, weight.codes, weight.scales["scale"], tile, gated=is_gated)

    def us(tile: Tile) -> float:
        return graph_us([lambda w=weight: run(tile, w) for weight in weights] * 2)

    wanted = skinny_fp8.skinny_fp8_reference(x.float(), weights[0].codes, weights[0].scales["scale"], gated=is_gated)
    chosen = fp8_tile(form, weights[0].codes, x, is_blocked=group == "blocks")
    assert chosen is not None
    found = run(chosen, weights[0]).float()
    found = found.sum(0) if found.dim() == 3 else found
    plain = [torch.randn(width, depth, device="cuda").bfloat16() for _ in range(copies_of(2 * width * depth))]
    tile = BF16_TILES[form](plain[0], rows)
    if tile is None:
        bf16 = graph_us([lambda w=w: torch.nn.functional.linear(x, w) for w in plain] * 2)
    else:
        bf16 = graph_us([lambda w=w: skinny_linear(x, w, tile, gated=is_gated) for w in plain] * 2)
    timed: list[tuple[float, Tile]] = []
    for tile in tiles(form, width, depth, rows) if sweep and (group == "rows") else ():
        try:
            timed.append((us(tile), tile))
        except Exception as error:
            print(f"{name} {rows} {tile}: {type(error).__name__}: {str(error)[:80]}", file=sys.stderr)
    return {
        "linear": name,
        "rows": rows,
        "scales": group,
        "bf16_us": round(bf16, 2),
        "fp8_us": round(us(chosen), 2),
        "floor_us": round(width * depth / bytes_per_s * 1e6, 2),
        "error": round(float((found - wanted).norm() / wanted.norm()), 5),
        "tile": repr(chosen),
        "best": [[round(time, 2), repr(tile)] for time, tile in sorted(timed, key=lambda one: one[0])[:5]],
    }


def many_rows(name: str, rows: int) -> dict[str, Any]:
    """Time a linear over many rows, with what codes the activations: bf16, one scale a row, blocks."""
    _, width, depth = LINEARS[name]
    x = torch.randn(rows, depth, device="cuda").bfloat16()
    plain = torch.randn(width, depth, device="cuda").bfloat16()
    kernel: Callable[..., Tensor] = skinny_linear
    row: dict[str, Any] = {"linear": name, "rows": rows}
    row["bf16_us"] = round(graph_us([lambda: SkinnyLinear((kernel, skinny_tiles), plain, None, None)(x)] * 4), 1)
    for group, shape in GROUPS.items():
        weight = quantized(plain, Quantization("random", "fp8", "plain", shape))
        linear = Fp8Linear(Fp8Kernels(*MODULES, activation.silu_mul), weight, None, None)
        wanted = x.float() @ dequantized(weight, torch.float32).T
        row[f"{group}_us"] = round(graph_us([lambda one=linear: one(x)] * 4), 1)
        row[f"{group}_error"] = round(float((linear(x).float() - wanted).norm() / wanted.norm()), 4)
        coded = graph_us([lambda g=group: fp8_numbers.quantize_rows(x, grouped=g == "blocks")] * 4)
        row[f"{group}_coding_us"] = round(coded, 1)
    return row


def main() -> int:
    """Time all linears and print them."""
    parser = argparse.ArgumentParser(description="linears on FP8 weights")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--many", type=int, nargs="*", default=[512, 4096])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    with torch.inference_mode():
        rate = read_bytes_per_s()
        few = [
            few_rows(name, rows, group, rate, options.sweep)
            for group in GROUPS
            for rows in options.rows
            for name in LINEARS
        ]
        many = [many_rows(name, rows) for rows in options.many for name in LINEARS]
    report({"host": describe_host(), "few_rows": few, "many_rows": many}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
