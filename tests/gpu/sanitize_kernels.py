"""A few small launches of every kernel against its torch reference, to be run under NVIDIA's compute-sanitizer.

    compute-sanitizer --tool memcheck|racecheck|initcheck --error-exitcode 9 python -m tests.gpu.sanitize_kernels
    TRITON_INTERPRET=1 python -m tests.gpu.sanitize_kernels

The second form tries the script on the CPU, where everything runs but the kernels for Hopper. Run it once without a
sanitizer first, so that the kernels are compiled. Inputs and references are made on the host: only kernels and copies
run on the device. Exit code 1 for a wrong result, or for a kernel that was never launched.
"""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Otherwise the allocator hands out parts of larger blocks, where a stray access hits a neighbour unseen.
os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
if INTERPRETED:
    from tests.support.interpreted import interpret_kernels

    interpret_kernels()

import torch  # noqa: E402

import kernels  # noqa: E402
from benchmarks.kernels.attention_errors import decode_error, error, extend_error  # noqa: E402
from benchmarks.kernels.random_inputs import BF16, FP16, FP32, RandomInputs  # noqa: E402
from kernels.activation import silu_mul  # noqa: E402
from kernels.decode_partition import partition_decode  # noqa: E402
from kernels.norm import add_rms_norm, add_rms_norm_reference, rms_norm  # noqa: E402
from kernels.paged_decode import decode_workspace_numel, paged_decode  # noqa: E402
from kernels.paged_extend import paged_extend  # noqa: E402
from kernels.paged_reference import paged_decode_reference  # noqa: E402
from kernels.rope_kv import rope_and_write_kv  # noqa: E402
from kernels.skinny_linear import skinny_linear, skinny_linear_reference  # noqa: E402
from kernels.skinny_tiles import gated_tile, split_k_tile, unsplit_tile  # noqa: E402
from kernels.tiles import SkinnyTile  # noqa: E402
from tests.gpu.elementwise_errors import norm_error, rope_error, silu_error  # noqa: E402
from tests.gpu.host_operands import LaunchCount, with_host_operands  # noqa: E402
from tests.gpu.kernel_cases import ATTENTION_TOLERANCE, ROUNDING_TOLERANCE  # noqa: E402
from tests.gpu.step_checks import STEP_CHECKS  # noqa: E402

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
MAKE = RandomInputs(torch.device("cpu"))
# Two tiles wide and deep: the tile that the worker chooses for it, and a small one.
WIDTH, DEPTH = 128, 512
CHOOSERS = {"plain": unsplit_tile, "biased": unsplit_tile, "gated": gated_tile, "in parts": split_k_tile}
Check = Callable[[], float]

# (query heads, KV heads, head dimension), page size, dtype. Decode: context lengths at and around edges, and 0.
DECODE = [
    ((4, 2, 64), 16, BF16),
    ((8, 2, 128), 64, BF16),
    ((9, 3, 64), 32, FP16),
    ((4, 2, 128), 16, FP32),
]
LENGTHS, SHORT_LENGTHS = [1, 16, 17, 0, 64, 129, 300], [1, 16, 33]
# Extend: (cached, new) tokens. Odd head dimensions and fp32 take the plain kernel on Hopper too.
EXTEND = [
    ((4, 2, 64), 16, BF16),
    ((8, 2, 128), 64, BF16),
    ((4, 2, 128), 16, FP16),
    ((8, 8, 80), 16, BF16),
    ((4, 2, 64), 128, FP32),
    ((4, 2, 128), 16, FP32),
]
RUNS = {
    "edges": [(0, 17), (40, 9), (0, 1), (31, 33)],
    "several tiles": [(300, 40), (5, 0), (127, 1), (0, 130)],
    "short runs": [(130, 9), (0, 3), (15, 1)],
}


def attention_checks() -> Iterator[tuple[str, float, Check]]:
    """Yield (name, tolerance, check) of decode with and without splits, and of extend."""
    decode, ready = with_host_operands(paged_decode, DEVICE), with_host_operands(decode_with_ready_metadata, DEVICE)
    for case in DECODE:
        shape, page, dtype = case
        name, bound = f"{shape} page {page} {str(dtype)[6:]}", ATTENTION_TOLERANCE[dtype]
        for split in (64, None):
            whole = partial(decode_error, MAKE, *case, LENGTHS, split)
            yield f"decode {name} split {split}", bound, partial(whole, decode=decode)
            yield f"decode {name} split {split} metadata ready", bound, partial(whole, decode=ready)
        yield f"decode {name} unsplit", bound, partial(decode_error, MAKE, *case, SHORT_LENGTHS, None, decode)
    yield "decode, too small a workspace", ATTENTION_TOLERANCE[FP32], cramped_decode_error
    extend = with_host_operands(paged_extend, DEVICE)
    for shape, page, dtype in EXTEND:
        for runs, specs in RUNS.items():
            name = f"extend {shape} page {page} {str(dtype)[6:]} {runs}"
            yield name, ATTENTION_TOLERANCE[dtype], partial(extend_error, MAKE, shape, page, dtype, specs, extend)


def small_checks() -> Iterator[tuple[str, float, Check]]:
    """Yield those of rotation and cache write, norms, activation and the linears of a few rows."""
    for shape, page, dtype, norm in (
        ((4, 2, 64), 16, BF16, False),
        ((16, 8, 128), 64, BF16, True),
        ((9, 3, 80), 16, FP16, True),
        ((4, 2, 128), 32, FP32, False),
    ):
        rope = partial(rope_error, MAKE, shape, page, dtype, 7, norm)
        name, bound = f"rope {shape} page {page} {str(dtype)[6:]} norm {norm}", 2 * ROUNDING_TOLERANCE[dtype]
        yield name, bound, partial(rope, rope=with_host_operands(rope_and_write_kv, DEVICE))
        yield (
            f"{name} metadata ready",
            bound,
            partial(rope, rope=with_host_operands(rope_and_write_kv, DEVICE, metadata_ready=True)),
        )
    norms = with_host_operands(add_rms_norm, DEVICE), with_host_operands(rms_norm, DEVICE)
    for rows, width, dtype in ((3, 576, BF16), (2, 4096, BF16), (1, 1000, FP32)):
        bound = 2 * ROUNDING_TOLERANCE[dtype]
        yield f"norm {rows} x {width} {str(dtype)[6:]}", bound, partial(norm_error, MAKE, rows, width, dtype, *norms)
    yield "norm of parts", 2 * ROUNDING_TOLERANCE[BF16], norm_parts_error
    for rows, width, dtype in ((3, 1536, BF16), (2, 1025, FP32)):
        bound = ROUNDING_TOLERANCE[dtype]
        yield (
            f"silu_mul {rows} x {width} {str(dtype)[6:]}",
            bound,
            partial(silu_error, MAKE, rows, width, dtype, with_host_operands(silu_mul, DEVICE)),
        )
    for rows in (1, 17, 100):
        for kind, chooser in CHOOSERS.items():
            weight = torch.empty(WIDTH * (1 + (kind == "gated")), DEPTH, dtype=BF16, device=DEVICE)
            for tile in (SkinnyTile(64, 128, 2 if kind == "in parts" else 1, 4, 3), chooser(weight, rows)):
                if tile is not None:
                    name = f"linear {kind}, {rows} rows, {tuple(tile)}"
                    yield name, ROUNDING_TOLERANCE[BF16], partial(linear_error, rows, kind, tile)


def decode_with_ready_metadata(
    q: torch.Tensor, cache: torch.Tensor, table: torch.Tensor, lens: torch.Tensor, scale: float, **options: Any
) -> torch.Tensor:
    """Call paged_decode with inputs that it may read before the kernel ahead of it ends, which copies the partition."""
    kv_heads, split_size = cache.shape[2], options.get("split_size")
    partition = partition_decode(lens, kv_heads, q.shape[1] // kv_heads, q.shape[2], q.dtype, split_size=split_size)
    return paged_decode(q, cache, table, lens, scale, partition=partition.clone(), metadata_ready=True, **options)


def cramped_decode_error() -> float:
    """Return the error of the rows that fit into the workspace; infinite if the row that does not fit is not NaN."""
    cache, table, lens = MAKE.paged([60, 129, 129], 2, 64, 16, FP32)
    q, workspace = MAKE.normal(3, 4, 64, dtype=FP32), torch.zeros(decode_workspace_numel(4, 4, 64))
    out = with_host_operands(paged_decode, DEVICE)(q, cache, table, lens, 0.125, split_size=64, workspace=workspace)
    expected = paged_decode_reference(q.double(), cache.double(), table, lens, 0.125)
    return error(out[:2], expected[:2]) if out[2].isnan().all() else float("inf")


def norm_parts_error() -> float:
    """Return the error of the norm that adds up the parts of a linear."""
    parts, residual = MAKE.normal(4, 3, 576, dtype=FP32), MAKE.normal(3, 576, dtype=BF16)
    weight = MAKE.norm_weight(576, BF16)
    found = with_host_operands(add_rms_norm, DEVICE)(parts, residual, weight, 1e-5)
    expected = add_rms_norm_reference(parts, residual, weight, 1e-5)
    return max(error(one, other) for one, other in zip(found, expected, strict=True))


def linear_error(rows: int, kind: str, tile: Any) -> float:
    """Return the error of a linear of a few rows."""
    is_gated = kind == "gated"
    x, weight = MAKE.normal(rows, DEPTH, dtype=BF16), MAKE.normal(WIDTH * (1 + is_gated), DEPTH, dtype=BF16) / 16
    bias = MAKE.normal(WIDTH, dtype=BF16) if kind == "biased" else None
    found = with_host_operands(skinny_linear, DEVICE)(x, weight, tile, bias, gated=is_gated)
    if found.dim() == 3:
        found = found.sum(0).to(BF16)
    return error(found, skinny_linear_reference(x, weight, bias, gated=is_gated))


def main() -> int:
    """Run all checks, one line each; return the exit code."""
    if not INTERPRETED and not torch.cuda.is_available():
        print("no CUDA device: set TRITON_INTERPRET=1 for a trial of this script")
        return 1
    count, failed = LaunchCount(kernels), []
    step_checks = ((name, 0.0, partial(check, DEVICE)) for name, check in STEP_CHECKS.items())
    for name, tolerance, check in (*step_checks, *small_checks(), *attention_checks()):
        torch.manual_seed(0)
        try:
            found = check()
            shown = f"{found:.2e}"
        except Exception as problem:  # a failed compile or launch is a result of this script
            found, shown = float("inf"), f"{type(problem).__name__}: {problem}"[:300]
        print(f"{'ok  ' if found <= tolerance else 'FAIL'} {name}: {shown}", flush=True)
        failed += [] if found <= tolerance else [name]
    print(", ".join(f"{name} {launches}" for name, launches in sorted(count.launches.items())))
    is_hopper = DEVICE.type == "cuda" and torch.cuda.get_device_capability()[0] == 9
    missing = [name for name in count.missing() if is_hopper or "_hopper_" not in name]
    print(f"{len(failed)} checks failed; {len(missing)} kernels were never launched {missing}")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
