"""Compiles every kernel for sm_90 without a GPU and prints one JSON list of what the compiler made of each.

Runs the public functions themselves on meta tensors under a stub driver, so that the same code is compiled as
for a GPU: same tiles, same specialisation. A separate script, because Triton must not be in interpreter mode here.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fp8_calls import fp8_cache_calls, fp8_calls
from integer_calls import integer_calls
from invariant_calls import invariant_calls

from kernels.activation import sigmoid_mul, silu_mul
from kernels.delta_decode import delta_decode
from kernels.delta_prefill import delta_prefill
from kernels.delta_rule import DeltaSizes, DeltaWeights
from kernels.expert_linear import Gating, experts_down, experts_hidden
from kernels.expert_routing import Routing, route, router_scores
from kernels.expert_tiles import expert_tiles
from kernels.mxfp4 import GROUP, Mxfp4
from kernels.norm import add_rms_norm, rms_norm
from kernels.paged_decode import paged_decode
from kernels.paged_extend import paged_extend
from kernels.paged_tile import Variant
from kernels.prefill_inputs import prefill_inputs
from kernels.prefix_decode import SharedPrefixes, partition_prefixes, prefix_decode
from kernels.rope_kv import rope_and_write_kv
from kernels.skinny_linear import skinny_linear
from kernels.skinny_tiles import gated_tile, split_k_tile, unsplit_tile
from kernels.step_descriptor import ChunkOutputs, StepLayout, unpack_step_descriptor

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# (query heads, kv heads, head dim, page size, dtype)
ATTENTION = [
    (32, 8, 128, 16, BF16),
    (32, 8, 128, 64, BF16),
    (16, 8, 128, 16, BF16),
    (16, 8, 128, 16, FP16),
    (8, 8, 80, 16, BF16),
    (9, 3, 64, 16, BF16),
    (16, 2, 256, 16, BF16),
    (9, 3, 64, 16, FP32),
    (32, 8, 128, 16, FP32),
]
# The shapes of gpt-oss, Gemma 2, Gemma 3, Mistral and Gemma 4 without a window, with what their attention has.
VARIANTS = [
    (64, 8, 64, 16, BF16, Variant(window=128, sinks=torch.empty(64, dtype=BF16, device="meta"))),
    (8, 4, 256, 16, BF16, Variant(window=4096, softcap=50.0)),
    (4, 1, 256, 16, BF16, Variant(window=512)),
    (32, 8, 128, 16, BF16, Variant(window=4096)),
    (32, 4, 512, 16, BF16, Variant()),
]

LIMITED = Gating(1.702, 7.0, 1.0)


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def attention_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, call) for decode and both extend tiles of each attention shape, and for few tokens, which are cut."""
    for heads, kv_heads, dim, page, dtype in ATTENTION:
        label = f"{heads}/{kv_heads} D{dim} page{page} {str(dtype)[6:]}"
        cache = empty(4096, 2, kv_heads, page, dim, dtype=dtype)
        table, lens = empty(4, 512, dtype=torch.int32), empty(4, dtype=torch.int32)
        cu_q, q = empty(5, dtype=torch.int32), empty(4096, heads, dim, dtype=dtype)
        for metadata_ready in (False, True):
            args = q[:4], cache, table, lens
            partition = empty(134, dtype=torch.int32) if metadata_ready else None
            yield (
                f"decode {label}",
                lambda a=args, s=metadata_ready, p=partition: paged_decode(*a, 0.1, partition=p, metadata_ready=s),
            )
        first = {"partition": partition, "metadata_ready": True, "out": q, "first_row": cu_q[4:]}
        yield f"decode beside prompts {label}", lambda a=(q, *args[1:]), f=first: paged_decode(*a, 0.1, **f)
        yield f"decode of groups {label}", lambda a=(q[:128], cache, table): decode_groups(*a)
        if (dim, page, dtype) == (128, 16, BF16):
            short = table[:, :8].contiguous()
            yield f"decode short {label}", lambda a=(q[:4], cache, short, lens): paged_decode(*a, 0.1)
        for longest, tokens in ((4, 4096), (1024, 4096), (1024, 16)):
            args = (q[:tokens], cache, table, cu_q, lens)
            yield f"extend<={longest} of {tokens} {label}", lambda a=args, n=longest: paged_extend(*a, 0.1, max_q_len=n)


def decode_groups(q: Any, cache: Any, table: Any) -> None:
    """Decode rows some of which share prefixes, as the worker launches it."""
    rows, (heads, dim), kv_heads = q.shape[0], q.shape[1:], cache.shape[2]
    ids, tables = empty(rows, dtype=torch.int32), empty(rows, table.shape[1], dtype=torch.int32)
    prefixes = SharedPrefixes(empty(65, dtype=torch.int32), *empty(2, 64, dtype=torch.int32), ids, ids)
    items = partition_prefixes(prefixes, heads, kv_heads, dim, q.dtype)
    parts = prefix_decode(q, cache, tables, prefixes, items, 0.1)
    partition = empty(130 + rows, dtype=torch.int32)
    paged_decode(q, cache, tables, ids, 0.1, partition=partition, metadata_ready=True, prefixes=parts)


def variant_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, call) for decode and extend with windows, softcap and sinks."""
    for heads, kv_heads, dim, page, dtype, variant in VARIANTS:
        kind = f"window{variant.window} cap{variant.softcap} sinks{variant.sinks is not None:d}"
        label = f"{kind} {heads}/{kv_heads} D{dim} page{page} {str(dtype)[6:]}"
        table, lens, cu_q = (empty(*shape, dtype=torch.int32) for shape in ((4, 512), (4,), (5,)))
        q, cache = empty(4096, heads, dim, dtype=dtype), empty(4096, 2, kv_heads, page, dim, dtype=dtype)
        yield f"decode {label}", lambda a=(q[:4], cache, table, lens), v=variant: paged_decode(*a, 0.1, variant=v)
        args = q, cache, table, cu_q, lens
        yield f"extend<=1024 {label}", lambda a=args, v=variant: paged_extend(*a, 0.1, max_q_len=1024, variant=v)


def small_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, call) for the kernels that are bound by memory or launches."""
    for heads, kv_heads, dim, count in ((32, 8, 128, 2), (9, 3, 64, 0), (32, 4, 512, 3)):
        fused = empty(64, heads + 2 * kv_heads, dim)
        q, k, v = fused.split((heads, kv_heads, kv_heads), dim=1)
        table, cache = empty(4096, dim, dtype=FP32), empty(512, 2, kv_heads, 16, dim)
        ids, norms = empty(64, dtype=torch.int64), dict.fromkeys(("q_norm", "k_norm", "v_norm")[:count], empty(dim))
        args = (q, k, v, table, ids, ids, cache)
        yield f"rope {heads}/{kv_heads} D{dim}", lambda a=args, n=norms: rope_and_write_kv(*a, **n)
    for width in (576, 4096, 8192):
        x, weight = empty(64, width), empty(width)
        yield f"rms_norm {width}", lambda x=x, w=weight: rms_norm(x, w, 1e-6)
        yield f"add_rms_norm {width}", lambda x=x, w=weight: add_rms_norm(x, x, w, 1e-6)
    yield "silu_mul 14336", lambda: silu_mul(empty(64, 28672))
    ids32, ids64 = empty(1024, dtype=torch.int32), empty(1024, dtype=torch.int64)
    for layout, rows in ((StepLayout(512, 1024), 512), (StepLayout(256, 2048, 16, 4096), 256)):
        ring, table, seqs = (
            empty(8, layout.width, dtype=torch.int32),
            empty(513, 512, dtype=torch.int32),
            rows + layout.chunks,
        )
        chunks = ChunkOutputs(ids32[:17], ids64[:seqs], ids32[:seqs]) if layout.chunks else None
        step = ring, ids32[:1], ids32[:seqs], ids32[:seqs], ids32[:seqs], table
        yield (
            f"descriptor {layout.chunks}",
            lambda a=(layout, *step), c=chunks: unpack_step_descriptor(*a, dummy_slot=512, chunks=c),
        )
        if chunks is not None:
            outs = ids64, ids64, ids64, empty(seqs, 512, dtype=torch.int32)
            args = layout, ring, ids32[:1], chunks.cu_q, *step[2:], ids64, *outs, 16
            yield "prompt inputs", lambda a=args: prefill_inputs(*a)


def delta_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, call) for linear attention and the gate beside it, of a large model and of a small one."""
    for heads, dtype in (((16, 48, 128, 128), BF16), ((16, 32, 128, 128), FP16), ((2, 4, 64, 64), FP32)):
        sizes = DeltaSizes(*heads, 4)
        label = f"{heads[0]}/{heads[1]} {str(dtype)[6:]}"
        wide = sizes.channels + heads[1] * (sizes.value_dim + 2)
        projected, out = empty(512, wide, dtype=dtype), empty(512, heads[1] * sizes.value_dim, dtype=dtype)
        decay = empty(2, heads[1], dtype=FP32)
        weights = DeltaWeights(empty(4, sizes.channels, dtype=dtype), decay, empty(sizes.value_dim, dtype=dtype), 1e-6)
        window, matrix = empty(65, 4, sizes.channels, dtype=dtype), empty(65, *sizes[1:4], dtype=FP32)
        for kind in (torch.int32, torch.int64):
            slots, lens = empty(16, dtype=kind), empty(17, dtype=torch.int32)
            first = lens[16:] if kind == torch.int32 else None
            states = projected, window, matrix
            args = *states, slots, lens[:16], sizes, weights, out
            yield f"delta decode {label}", lambda a=args, f=first: delta_decode(*a, first_row=f)
            args = *states, lens, slots, lens[:16], sizes, weights, out
            # In float32 prompts take three products for one, and spill: it is for comparisons.
            if dtype != FP32:
                yield f"delta prompts {label}", lambda a=args: delta_prefill(*a)
    yield "gate", lambda: sigmoid_mul(empty(64, 6144), empty(64, 14336)[:, 8192:])


def linear_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, call) for the linears of few rows: of a small and a large model, and a last one."""
    for width, depth in ((1024, 3072), (4096, 4096), (28672, 4096), (151936, 1024)):
        weight = empty(width, depth)
        for rows in (1, 40, 64, 80, 128):
            x = empty(rows, depth)
            for kind, tile in (("unsplit", unsplit_tile), ("split-k", split_k_tile), ("gated", gated_tile)):
                chosen = tile(weight, rows)
                if chosen is not None and (width < 65536 or kind == "unsplit"):
                    call = lambda x=x, w=weight, t=chosen, g=kind == "gated": skinny_linear(x, w, t, gated=g)  # noqa: E731
                    yield f"linear {kind} {rows} x {width} x {depth}", call


def expert_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, call) for routing and both products: of Qwen3-30B-A3B, of few wide experts, of an odd width."""
    shapes = (
        (128, 8, 2048, 768, (1, 32, 64, 500, 4096)),
        (8, 2, 4096, 14336, (16, 1024)),
        (60, 4, 2880, 1408, (20, 4096)),
    )
    for count, top_k, hidden, width, sizes in shapes:
        gate_up, down, router = empty(count, 2 * width, hidden), empty(count, hidden, width), empty(count, hidden)
        for rows in sizes:
            label, x = f"{count} x {width}, {rows} rows", empty(rows, hidden)
            tiles = expert_tiles(rows, top_k, count, BF16)
            scores = empty(8, rows, count, dtype=FP32)
            order = empty(rows * top_k, dtype=torch.int32)
            weights, listed = empty(rows, top_k, dtype=FP32), empty(64, 3, dtype=torch.int32)
            routing = Routing(weights, order, listed, tiles.block_m)
            yield f"experts scores {label}", lambda x=x, r=router: router_scores(x, r)
            yield f"experts route {label}", lambda s=scores, k=top_k, t=tiles: route(s, k, t.block_m, normalised=True)
            yield f"experts hidden {label}", lambda a=(x, gate_up, routing, tiles.hidden): experts_hidden(*a)
            h = empty(rows * top_k, width)
            yield f"experts down {label}", lambda a=(h, down, routing, tiles.down): experts_down(*a, FP32)


def gpt_oss_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, call) for both products of gpt-oss's experts, in MXFP4 and plain."""
    hidden = width = 2880
    for count, top_k, sizes in ((32, 4, (1, 64, 128, 4096)), (128, 4, (1, 256))):
        for rows, is_mxfp4 in product(sizes, (True, False)):
            tiles = expert_tiles(rows, top_k, count, BF16, is_mxfp4)
            order, weights = empty(rows * top_k, dtype=torch.int32), empty(rows, top_k, dtype=FP32)
            routing = Routing(weights, order, empty(64, 3, dtype=torch.int32), tiles.block_m)
            gate_up, down = (_stack(count, rows, columns, is_mxfp4) for rows, columns in
                             ((2 * width, hidden), (hidden, width)))  # fmt: skip
            kind = "mxfp4" if is_mxfp4 else "biased"
            args = empty(rows, hidden), gate_up, routing, tiles.hidden, empty(count, 2 * width), LIMITED
            yield f"experts hidden {kind} {count}, {rows} rows", lambda a=args: experts_hidden(*a)
            args = empty(rows * top_k, width), down, routing, tiles.down, FP32, 0, empty(count, hidden)
            yield f"experts down {kind} {count}, {rows} rows", lambda a=args: experts_down(*a)


def _stack(count: int, rows: int, columns: int, is_mxfp4: bool) -> Any:
    if not is_mxfp4:
        return empty(count, rows, columns)
    codes, scales = (empty(count, rows, columns // numbers, dtype=torch.uint8) for numbers in (2, GROUP))
    return Mxfp4(codes, scales)


def stub_driver() -> SimpleNamespace:
    """The three methods of a driver that a launch calls before it compiles."""
    return SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )


def measured(label: str, kernel: Any) -> dict[str, Any]:
    """Registers and spills from ptxas, shared memory from Triton, instruction counts from the PTX."""
    ptx = kernel.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", str(source), "-o", str(Path(folder, "cubin"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = {name: re.search(pattern, report) for name, pattern in (
        ("registers", r"Used (\d+) registers"), ("spill_stores", r"(\d+) bytes spill stores"),
        ("spill_loads", r"(\d+) bytes spill loads"),
    )}  # fmt: skip
    return {
        "call": label,
        "kernel": kernel.metadata.name,
        "warps": kernel.metadata.num_warps,
        "shared_bytes": kernel.metadata.shared,
        **{name: int(match.group(1)) for name, match in found.items() if match},
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma_sync": ptx.count("mma.sync"),
        "cp_async": ptx.count("cp.async.cg") + ptx.count("cp.async.ca"),
        "tma": ptx.count("cp.async.bulk.tensor"),
    }


def main(wanted: str = "", part: str = "0/1") -> None:
    """Compile every n-th of the calls whose label contains `wanted`, from number i on for part i/n, and print the JSON
    list."""
    triton.runtime.driver.set_active(stub_driver())
    compiled: list[Any] = []
    plain_run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled.append(plain_run(self, *args, grid=grid, warmup=True, **kwargs))

    JITFunction.run = compile_only
    kinds = attention_calls, variant_calls, small_calls, delta_calls, linear_calls, expert_calls, fp8_calls
    kinds = *kinds, gpt_oss_calls, integer_calls, fp8_cache_calls, invariant_calls
    calls = [one for kind in kinds for one in kind() if wanted in one[0]]
    first, parts = map(int, part.split("/"))
    results = []
    for label, call in calls[first::parts]:
        compiled.clear()
        call()
        results += [measured(label, kernel) for kernel in compiled]
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
