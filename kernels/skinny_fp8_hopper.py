"""The linear over few rows on FP8 weights for Hopper GPUs, in Gluon: as kernels.skinny_hopper, which see for the rings.

The weight's codes come by TMA into a ring; each warp takes its 16 rows of a tile into registers, makes bfloat16 of them
and multiplies from there. The accumulator's rows are weight rows, so a scale of a row is a factor of its sum.
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
from kernels.skinny_hopper import PANEL, ROWS, copy_rows

# Codes of a 128-byte row, the widest that a swizzled TMA copy takes.
CODE_PANEL = 128
# Two pairs of codes in a register become the bfloat16 numbers of their first and of their second codes: exponent and
# mantissa go to their places, then the sign, and 2^120 makes up for the exponent's bias (see kernels.fp8_numbers).
WIDEN_PAIRS = gl.constexpr("""
{
    .reg .b32 a, b, s;
    shl.b32 a, $2, 4;
    shl.b32 s, $2, 8;
    shr.u32 b, $2, 4;
    and.b32 a, a, 0x07f007f0;
    and.b32 b, b, 0x07f007f0;
    lop3.b32 a, s, 0x80008000, a, 0xEA;
    lop3.b32 b, $2, 0x80008000, b, 0xEA;
    mov.b32 s, 0x7b807b80;
    mul.rn.bf16x2 $0, a, s;
    mul.rn.bf16x2 $1, b, s;
}
""")


@gluon.jit
def _copy_codes(
    desc, tile, first_row, second_row, first_column, ring, ready, pred,
    ROWS: gl.constexpr, HALVES: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr, CODE_PANEL: gl.constexpr,
):  # fmt: skip
    """Start the copies of ROWS weight rows at `first_row` into their stage; with HALVES == 2 half at `second_row`."""
    PANELS: gl.constexpr = BLOCK_K // CODE_PANEL
    stage = tile % STAGES
    mbarrier.expect(ready.index(stage), ROWS * BLOCK_K, pred=pred)
    for panel in gl.static_range(PANELS):
        column = first_column + tile * BLOCK_K + panel * CODE_PANEL
        place = (stage * PANELS + panel) * HALVES
        tma.async_copy_global_to_shared(desc, [first_row, column], ready.index(stage), ring.index(place), pred=pred)
        if HALVES == 2:
            target = ring.index(place + 1)
            tma.async_copy_global_to_shared(desc, [second_row, column], ready.index(stage), target, pred=pred)


@gluon.jit(do_not_specialize=["rows"])
def _skinny_fp8_hopper_kernel(
    x_desc, w_desc, scale_ptr, bias_ptr, y_ptr, rows, width, depth, stride_scale, stride_split,
    BLOCK_M: gl.constexpr, BOX: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr, GATED: gl.constexpr,
    BIASED: gl.constexpr, BLOCKED: gl.constexpr, ROW_SIZE: gl.constexpr, PANEL: gl.constexpr,
    CODE_PANEL: gl.constexpr, ROWS: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    # width: outputs; depth: of this split. Gated: weight rows n and width + n make output n.
    HALVES: gl.constexpr = 2 if GATED else 1
    PANELS: gl.constexpr = BLOCK_K // PANEL
    CODE_PANELS: gl.constexpr = BLOCK_K // CODE_PANEL
    OUTPUTS: gl.constexpr = ROWS // HALVES
    DTYPE: gl.constexpr = x_desc.dtype
    X_TILE: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    W_TILE: gl.constexpr = gl.NVMMASharedLayout(128, 8, 2)
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_M, 16])
    W: gl.constexpr = gl.DotOperandLayout(0, ACC, 2)
    PAIRS: gl.constexpr = gl.DotOperandLayout(0, ACC, 1)
    OUT: gl.constexpr = gl.BlockedLayout([4, 1], [OUTPUTS // 4, 128 // OUTPUTS], [1, 4], [0, 1])
    first_row = gl.program_id(0) * OUTPUTS
    first_column = gl.program_id(1) * depth
    tiles = depth // BLOCK_K

    w_ring = gl.allocate_shared_memory(gl.uint8, [STAGES * CODE_PANELS * HALVES, OUTPUTS, CODE_PANEL], W_TILE)
    x_ring = gl.allocate_shared_memory(DTYPE, [STAGES * PANELS * (BLOCK_M // BOX), BOX, PANEL], X_TILE)
    # A thread multiplies two neighbours of a row at a time.
    w = w_ring._reinterpret(gl.uint16, [STAGES, ROWS, BLOCK_K // 2], X_TILE)
    x = x_ring._reinterpret(DTYPE, [STAGES, BLOCK_M, BLOCK_K], X_TILE)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    w_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    x_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    for first in gl.static_range(STAGES):
        mbarrier.init(w_ready.index(first), count=1)
        mbarrier.init(x_ready.index(first), count=1)
    fence_async_shared()
    thread_barrier()
    for first in gl.static_range(STAGES):
        _copy_codes(
            w_desc, first, first_row, first_row + width, first_column, w_ring, w_ready, first < tiles,
            ROWS, HALVES, BLOCK_K, STAGES, CODE_PANEL,
        )  # fmt: skip
    gdc_launch_dependents()
    gdc_wait()
    for first in gl.static_range(STAGES):
        copy_rows(
            x_desc, first, rows, first_column, x_ring, x_ready, first < tiles, BLOCK_M, BOX, BLOCK_K, STAGES, PANEL
        )  # fmt: skip

    weight_row = gl.arange(0, ROWS, layout=gl.SliceLayout(1, ACC))
    weight_row = first_row + gl.where(weight_row < OUTPUTS, weight_row, weight_row - OUTPUTS + width)
    scale_ptrs = scale_ptr + (weight_row // ROW_SIZE) * stride_scale
    if BLOCKED:
        scale_ptrs += gl.program_id(1) * tiles
    acc = gl.zeros([ROWS, BLOCK_M], gl.float32, ACC)
    nothing = gl.zeros([ROWS, BLOCK_M], gl.float32, ACC)
    for tile in range(tiles):
        stage = tile % STAGES
        phase = tile // STAGES & 1
        mbarrier.wait(w_ready.index(stage), phase)
        pairs = w.index(stage).load(PAIRS)
        evens, odds = gl.inline_asm_elementwise(
            WIDEN_PAIRS, "=r,=r,r", [pairs], dtype=(gl.bfloat16, gl.bfloat16), is_pure=True, pack=2
        )
        wide = gl.convert_layout(gl.reshape(gl.join(evens, odds), [ROWS, BLOCK_K]), W, assert_trivial=True)
        mbarrier.wait(x_ready.index(stage), phase)
        rows_of_x = x.index(stage).permute((1, 0))
        if BLOCKED:
            part = warpgroup_mma(wide, rows_of_x, nothing, use_acc=False, is_async=True)
            scale = gl.load(scale_ptrs + tile)
            part = warpgroup_mma_wait(0, deps=[part])
            acc += part * scale[:, None]
        else:
            acc = warpgroup_mma(wide, rows_of_x, acc, is_async=True)
            acc = warpgroup_mma_wait(0, deps=[acc])
        # Every warp has taken its rows of the tile, and the product is done: the stage takes the next tile.
        following = tile + STAGES
        if following < tiles:
            thread_barrier()
            _copy_codes(
                w_desc, following, first_row, first_row + width, first_column, w_ring, w_ready, True,
                ROWS, HALVES, BLOCK_K, STAGES, CODE_PANEL,
            )  # fmt: skip
            copy_rows(
                x_desc, following, rows, first_column, x_ring, x_ready, True, BLOCK_M, BOX, BLOCK_K, STAGES, PANEL
            )  # fmt: skip
    if not BLOCKED:
        acc *= gl.load(scale_ptrs)[:, None]

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


def skinny_fp8_on_hopper(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, *,
    gated: bool, splits: int, block_k: int, stages: int,
) -> None:  # fmt: skip
    """Fill out as skinny_fp8 documents, for checked arguments on a Hopper GPU; x in bfloat16."""
    rows, depth = x.shape
    width = codes.shape[0] // 2 if gated else codes.shape[0]
    outputs = ROWS // 2 if gated else ROWS
    block_m = max(8, 1 << (rows - 1).bit_length())
    box = block_m // 2 if max(8, block_m // 2) < rows < block_m else block_m
    layouts = gl.NVMMASharedLayout(128, 8, 2), gl.NVMMASharedLayout(128, 16, 2)
    bytes_ = codes.view(torch.uint8)
    w_desc = TensorDescriptor(bytes_, list(codes.shape), [codes.stride(0), 1], [outputs, CODE_PANEL], layouts[0])
    x_desc = TensorDescriptor(x, [rows, depth], [x.stride(0), 1], [box, PANEL], layouts[1])
    part, is_blocked = depth // splits, scale.shape[1] > 1
    _skinny_fp8_hopper_kernel[(width // outputs, splits)](
        x_desc, w_desc, scale, bias, out, rows, width, part, scale.stride(0), rows * width, BLOCK_M=block_m, BOX=box,
        BLOCK_K=block_k, STAGES=min(stages, part // block_k), GATED=gated, BIASED=bias is not None, BLOCKED=is_blocked,
        ROW_SIZE=codes.shape[0] // scale.shape[0], PANEL=PANEL, CODE_PANEL=CODE_PANEL, ROWS=ROWS,
        num_warps=4, launch_pdl=True,
    )  # fmt: skip
