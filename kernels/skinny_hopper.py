"""The skinny linear for Hopper GPUs, in Gluon: weights load before the activations exist. Called by skinny_linear.

A program owns 64 weight rows and a split of the depth. Before it waits for the prior kernel (see kernels.pdl) it copies
weight tiles by TMA into a ring in shared memory, which for a small model is all of them; then it copies the activations
and multiplies. The gated form takes 32 rows of the gate and the same 32 of `up`, so that one program has both halves of
its outputs.

Rings, `stage` in 0..STAGES-1; a stage is refilled once the product of its tile is done:
    w_ring[stage]   64 weight rows x BLOCK_K, in panels of 64 columns
    x_ring[stage]   BLOCK_M activation rows x BLOCK_K, likewise

A copy that reaches past the last activation row is slow: with 80 rows, copied as 128, a linear takes nearly twice as
long. Where BLOCK_M exceeds the rows, its first half takes the first rows and its second half the last ones, so that
rows in the middle are computed, and stored, twice.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.gluon_versions import thread_barrier

# Elements of a 128-byte row, the widest that a swizzled TMA copy takes.
PANEL = 64
ROWS = 64


@gluon.jit
def _copy_tile(
    desc, tile, first_row, second_row, first_column, ring, ready, pred,
    ROWS: gl.constexpr, HALVES: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr, PANEL: gl.constexpr,
):  # fmt: skip
    """Start the copies of ROWS weight rows at `first_row` into their stage; with HALVES == 2 half at `second_row`."""
    PANELS: gl.constexpr = BLOCK_K // PANEL
    stage = tile % STAGES
    mbarrier.expect(ready.index(stage), ROWS * BLOCK_K * 2, pred=pred)
    for panel in gl.static_range(PANELS):
        column = first_column + tile * BLOCK_K + panel * PANEL
        place = (stage * PANELS + panel) * HALVES
        tma.async_copy_global_to_shared(desc, [first_row, column], ready.index(stage), ring.index(place), pred=pred)
        if HALVES == 2:
            target = ring.index(place + 1)
            tma.async_copy_global_to_shared(desc, [second_row, column], ready.index(stage), target, pred=pred)


@gluon.jit
def copy_rows(
    desc, tile, rows, first_column, ring, ready, pred,
    BLOCK_M: gl.constexpr, BOX: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr, PANEL: gl.constexpr,
):  # fmt: skip
    """Start the copies of the first BOX activation rows into their stage, and of the last ones if BLOCK_M has room."""
    PANELS: gl.constexpr = BLOCK_K // PANEL
    PIECES: gl.constexpr = BLOCK_M // BOX
    stage = tile % STAGES
    mbarrier.expect(ready.index(stage), BLOCK_M * BLOCK_K * 2, pred=pred)
    for panel in gl.static_range(PANELS):
        column = first_column + tile * BLOCK_K + panel * PANEL
        for piece in gl.static_range(PIECES):
            row = rows - BOX if piece > 0 else 0
            place = ring.index((stage * PANELS + panel) * PIECES + piece)
            tma.async_copy_global_to_shared(desc, [row, column], ready.index(stage), place, pred=pred)


@gluon.jit(do_not_specialize=["rows"])
def _skinny_hopper_kernel(
    x_desc, w_desc, bias_ptr, y_ptr, rows, width, depth, stride_split,
    BLOCK_M: gl.constexpr, BOX: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr, GATED: gl.constexpr,
    BIASED: gl.constexpr, PANEL: gl.constexpr, ROWS: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    # width: outputs; depth: of this split. Gated: weight rows n and width + n make output n.
    HALVES: gl.constexpr = 2 if GATED else 1
    PANELS: gl.constexpr = BLOCK_K // PANEL
    OUTPUTS: gl.constexpr = ROWS // HALVES
    DTYPE: gl.constexpr = w_desc.dtype
    TILE: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_M, 16])
    OUT: gl.constexpr = gl.BlockedLayout([4, 1], [OUTPUTS // 4, 128 // OUTPUTS], [1, 4], [0, 1])
    first_row = gl.program_id(0) * OUTPUTS
    first_column = gl.program_id(1) * depth
    tiles = depth // BLOCK_K

    w_ring = gl.allocate_shared_memory(DTYPE, [STAGES * PANELS * HALVES, OUTPUTS, PANEL], TILE)
    x_ring = gl.allocate_shared_memory(DTYPE, [STAGES * PANELS * (BLOCK_M // BOX), BOX, PANEL], TILE)
    w = w_ring._reinterpret(DTYPE, [STAGES, ROWS, BLOCK_K], TILE)
    x = x_ring._reinterpret(DTYPE, [STAGES, BLOCK_M, BLOCK_K], TILE)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    w_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    x_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    for first in gl.static_range(STAGES):
        mbarrier.init(w_ready.index(first), count=1)
        mbarrier.init(x_ready.index(first), count=1)
    fence_async_shared()
    thread_barrier()
    for first in gl.static_range(STAGES):
        _copy_tile(
            w_desc, first, first_row, first_row + width, first_column, w_ring, w_ready, first < tiles,
            ROWS, HALVES, BLOCK_K, STAGES, PANEL,
        )  # fmt: skip
    gdc_launch_dependents()
    gdc_wait()
    for first in gl.static_range(STAGES):
        copy_rows(
            x_desc, first, rows, first_column, x_ring, x_ready, first < tiles, BLOCK_M, BOX, BLOCK_K, STAGES, PANEL
        )  # fmt: skip

    acc = gl.zeros([ROWS, BLOCK_M], gl.float32, ACC)
    for tile in range(tiles):
        stage = tile % STAGES
        phase = tile // STAGES & 1
        mbarrier.wait(w_ready.index(stage), phase)
        mbarrier.wait(x_ready.index(stage), phase)
        acc = warpgroup_mma(w.index(stage), x.index(stage).permute((1, 0)), acc, is_async=True)
        acc = warpgroup_mma_wait(1, deps=[acc])
        # The previous product is done: its stage takes the next tile not yet requested.
        following = tile - 1 + STAGES
        if (tile > 0) & (following < tiles):
            thread_barrier()
            _copy_tile(
                w_desc, following, first_row, first_row + width, first_column, w_ring, w_ready, True,
                ROWS, HALVES, BLOCK_K, STAGES, PANEL,
            )  # fmt: skip
            copy_rows(
                x_desc, following, rows, first_column, x_ring, x_ready, True, BLOCK_M, BOX, BLOCK_K, STAGES, PANEL
            )  # fmt: skip
    acc = warpgroup_mma_wait(0, deps=[acc])

    n = first_row + gl.arange(0, OUTPUTS, layout=gl.SliceLayout(1, OUT))
    m = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(0, OUT))
    if BOX < BLOCK_M:
        m = gl.where(m < BOX, m, m + rows - BLOCK_M)
    y_dtype: gl.constexpr = y_ptr.dtype.element_ty
    if GATED:
        staged = gl.allocate_shared_memory(gl.float32, [ROWS, BLOCK_M], gl.SwizzledSharedLayout(1, 1, 1, [0, 1]))
        staged.store(acc)
        thread_barrier()
        gate = staged.slice(0, OUTPUTS, dim=0).load(OUT).to(y_dtype).to(gl.float32)
        up = staged.slice(OUTPUTS, OUTPUTS, dim=0).load(OUT).to(y_dtype).to(gl.float32)
        y = (gate / (1.0 + gl.exp(-gate))).to(y_dtype).to(gl.float32) * up
    else:
        y = gl.convert_layout(acc, OUT)
    if BIASED:
        y += gl.load(bias_ptr + n).to(gl.float32)[:, None]
    y_ptrs = y_ptr + gl.program_id(1).to(gl.int64) * stride_split + m[None, :] * width + n[:, None]
    gl.store(y_ptrs, y.to(y_dtype), mask=m[None, :] < rows)


def skinny_on_hopper(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, *, gated: bool, splits: int,
    block_k: int, stages: int,
) -> None:  # fmt: skip
    """Fill out as skinny_linear documents, for checked arguments on a Hopper GPU."""
    rows, depth = x.shape
    width = weight.shape[0] // 2 if gated else weight.shape[0]
    outputs = ROWS // 2 if gated else ROWS
    block_m = max(8, 1 << (rows - 1).bit_length())
    box = block_m // 2 if max(8, block_m // 2) < rows < block_m else block_m
    layout = gl.NVMMASharedLayout(128, 16, 2)
    w_desc = TensorDescriptor(weight, list(weight.shape), [weight.stride(0), 1], [outputs, PANEL], layout)
    x_desc = TensorDescriptor(x, [rows, depth], [x.stride(0), 1], [box, PANEL], layout)
    part = depth // splits
    _skinny_hopper_kernel[(width // outputs, splits)](
        x_desc, w_desc, bias, out, rows, width, part, rows * width,
        BLOCK_M=block_m, BOX=box, BLOCK_K=block_k, STAGES=min(stages, part // block_k), GATED=gated,
        BIASED=bias is not None, PANEL=PANEL, ROWS=ROWS, num_warps=4, launch_pdl=True,
    )  # fmt: skip
