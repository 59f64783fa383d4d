"""The extend kernel for Hopper GPUs: 16-bit types, head dim 64 or 128, a contiguous cache. Called by paged_extend.

Written in Gluon, Triton's lower layer, because Triton does not keep Hopper's tensor cores busy during the softmax. One
warp copies K and V pages by TMA, and two warp groups, each with 64 of the 128 query rows, multiply and exponentiate
independently. Each group also issues the next scores before its softmax, after FlashAttention-3 (arXiv 2407.08608).
Tiles of keys sit at absolute positions, as in paged_extend.

Ownership of the buffers, for `stage` in 0..1:
    k_ring[stage], v_ring[stage]   the copying warp between *_free and *_ready, the query groups from *_ready to *_free

A tile of values that reaches past the last token is cleared there by the first query group; the other waits for that.
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

from kernels.extend_partition import BEGIN, CONTEXT, END, FIRST, NEW, PART, SEQ, SLOT, START, WIDTH, ExtendPartition
from kernels.gluon_versions import thread_barrier

BLOCK_N = 128
GROUP_ROWS = 64
STAGES = 2
# Elements of a 128-byte row, the widest that a swizzled TMA copy takes: wider heads travel in two halves.
PANEL = 64
COPY_REGISTERS = 24
QUERY_REGISTERS = 240
# Values cleared at a time: a whole tile would take too many registers.
CLEARED = gl.constexpr(32)
HOPPER_DTYPES, HOPPER_DIMS = (torch.float16, torch.bfloat16), (64, 128)


@gluon.jit
def _copy_tile(
    desc, table_row, tile, num_pages, first_row, page_rows, ring, ready, free,
    PAGE: gl.constexpr, PANEL: gl.constexpr, PANELS: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Wait for the tile's stage to be free, then start the copies of its pages; those past the last become page 0."""
    PAGES: gl.constexpr = BLOCK_N // PAGE
    stage = tile % STAGES
    mbarrier.wait(free.index(stage), (tile // STAGES & 1) ^ 1)
    mbarrier.expect(ready.index(stage), BLOCK_N * PANELS * PANEL * 2)
    for part in gl.static_range(PAGES):
        index = tile * PAGES + part
        page = gl.load(table_row + index, mask=index < num_pages, other=0)
        row = page * page_rows + first_row
        for panel in gl.static_range(PANELS):
            target = ring.index((stage * PANELS + panel) * PAGES + part)
            tma.async_copy_global_to_shared(desc, [row, panel * PANEL], ready.index(stage), target)


@gluon.jit
def _copy(
    source, k_ring, v_ring, ring,
    PAGE: gl.constexpr, PANEL: gl.constexpr, PANELS: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    desc, table_row, tiles, num_pages, key_row, value_row, page_rows = source
    _, _, k_ready, k_free, v_ready, v_free = ring
    for tile in range(tiles):
        _copy_tile(
            desc, table_row, tile, num_pages, key_row, page_rows, k_ring, k_ready, k_free,
            PAGE, PANEL, PANELS, BLOCK_N, STAGES,
        )  # fmt: skip
        _copy_tile(
            desc, table_row, tile, num_pages, value_row, page_rows, v_ring, v_ready, v_free,
            PAGE, PANEL, PANELS, BLOCK_N, STAGES,
        )  # fmt: skip


@gluon.jit
def _softmax(scores, position, start, peak, total, scale_log2, MASKED: gl.constexpr, LAYOUT: gl.constexpr):
    """One online softmax step as in attend_tile; returns weights, decay of the older sums, peak and total."""
    if MASKED:
        keys = start + gl.arange(0, scores.type.shape[1], layout=gl.SliceLayout(0, LAYOUT))
        scores = gl.where(keys[None, :] <= position[:, None], scores, float("-inf"))
    new_peak = gl.maximum(peak, gl.max(scores, 1) * scale_log2)
    weights = gl.exp2(scores * scale_log2 - new_peak[:, None])
    decay = gl.exp2(peak - new_peak)
    return weights, decay, new_peak, total * decay + gl.sum(weights, 1)


@gluon.jit
def _step(
    tile, q, k, v, weights, acc, peak, total, position, scale_log2, k_ready, k_free, v_ready, v_free,
    MASKED: gl.constexpr, SCORES: gl.constexpr, OPERAND: gl.constexpr, ROWS: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Compute scores and softmax of `tile` while the values of the previous tile are multiplied."""
    stage = tile % STAGES
    last = tile - 1
    mbarrier.wait(k_ready.index(stage), tile // STAGES & 1)
    zeros = gl.zeros([ROWS, BLOCK_N], gl.float32, SCORES)
    scores = warpgroup_mma(q, k.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True)
    mbarrier.wait(v_ready.index(last % STAGES), last // STAGES & 1)
    acc = warpgroup_mma(weights, v.index(last % STAGES), acc, is_async=True)
    scores = warpgroup_mma_wait(1, deps=[scores])
    mbarrier.arrive(k_free.index(stage), count=1)
    new_weights, decay, peak, total = _softmax(
        scores, position, tile * BLOCK_N, peak, total, scale_log2, MASKED, SCORES
    )
    acc, weights = warpgroup_mma_wait(0, deps=[acc, weights])
    mbarrier.arrive(v_free.index(last % STAGES), count=1)
    acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, acc.type.layout))[:, None]
    return gl.convert_layout(new_weights.to(k.dtype), OPERAND), acc, peak, total


@gluon.jit
def _attend(
    query, q_rows, ring,
    OFFSET: gl.constexpr, ROWS: gl.constexpr, TOKENS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Run one group of four warps: query rows OFFSET to OFFSET + ROWS of the program, keys from `origin` on.

    With `part_row` the partial results go to that row of the scratch and the following ones."""
    (
        q_ptr, out_ptr, partial_ptr, stats_ptr, seq_start, first, new_tokens, origin, context, part_row, head,
        kv_heads, stride_q_token, stride_q_head, scale_log2, tiles, unmasked_tiles,
    ) = query  # fmt: skip
    k, v, k_ready, k_free, v_ready, v_free = ring
    PLAIN: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, ACC, 2)
    # Rows: token-major, the heads of one token side by side. Positions: cached | new, key n is seen by rows at >= n.
    rows = OFFSET + gl.arange(0, ROWS, layout=gl.SliceLayout(1, PLAIN))
    dims = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, PLAIN))
    local = first + rows // GROUP
    mask = ((rows < TOKENS * GROUP) & (local < new_tokens))[:, None]
    token = (seq_start + local).to(gl.int64)
    q_heads = head * GROUP + rows % GROUP
    q_ptrs = q_ptr + token[:, None] * stride_q_token + q_heads[:, None] * stride_q_head + dims[None, :]
    q_rows.store(gl.load(q_ptrs, mask=mask, other=0.0))
    fence_async_shared()
    thread_barrier()
    score_rows = OFFSET + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))
    # Tiles are counted from `origin` on, and so are positions.
    position = context - origin - new_tokens + first + score_rows // GROUP

    mbarrier.wait(k_ready.index(0), 0)
    zeros = gl.zeros([ROWS, BLOCK_N], gl.float32, SCORES)
    scores = warpgroup_mma(q_rows, k.index(0).permute((1, 0)), zeros, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[scores])
    mbarrier.arrive(k_free.index(0), count=1)
    peak = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
    total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, SCORES))
    new_weights, _decay, peak, total = _softmax(scores, position, 0, peak, total, scale_log2, True, SCORES)
    weights = gl.convert_layout(new_weights.to(k.dtype), OPERAND)
    acc = gl.zeros([ROWS, HEAD_DIM], gl.float32, ACC)
    # Tiles that are unmasked for every row, then the tiles on the diagonal.
    for tile in range(1, unmasked_tiles):
        weights, acc, peak, total = _step(
            tile, q_rows, k, v, weights, acc, peak, total, position, scale_log2, k_ready, k_free, v_ready, v_free,
            False, SCORES, OPERAND, ROWS, BLOCK_N, STAGES,
        )  # fmt: skip
    for tile in range(gl.maximum(unmasked_tiles, 1), tiles):
        weights, acc, peak, total = _step(
            tile, q_rows, k, v, weights, acc, peak, total, position, scale_log2, k_ready, k_free, v_ready, v_free,
            True, SCORES, OPERAND, ROWS, BLOCK_N, STAGES,
        )  # fmt: skip

    last = tiles - 1
    stage = last % STAGES
    mbarrier.wait(v_ready.index(stage), last // STAGES & 1)
    end = context - origin
    if tiles * BLOCK_N > end:
        # A page may hold NaN past the last token, and 0 * NaN would reach the output: one group clears it.
        if OFFSET == 0:
            for part in gl.static_range(BLOCK_N // CLEARED):
                tokens = last * BLOCK_N + part * CLEARED + gl.arange(0, CLEARED, layout=gl.SliceLayout(1, PLAIN))
                place = v.index(stage).slice(part * CLEARED, CLEARED)
                values = place.load(PLAIN)
                place.store(gl.where((tokens < end)[:, None], values, gl.zeros_like(values)))
            fence_async_shared()
            thread_barrier()
            mbarrier.arrive(v_free.index(STAGES), count=1)
        else:
            mbarrier.wait(v_free.index(STAGES), 0)
    acc = warpgroup_mma(weights, v.index(stage), acc, is_async=True)
    acc, weights = warpgroup_mma_wait(0, deps=[acc, weights])
    if part_row >= 0:
        acc_rows = part_row + OFFSET + gl.arange(0, ROWS, layout=gl.SliceLayout(1, ACC)).to(gl.int64)
        acc_dims = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, ACC))
        gl.store(partial_ptr + acc_rows[:, None] * HEAD_DIM + acc_dims[None, :], acc)
        stats = stats_ptr + (part_row + score_rows) * 2
        gl.store(stats, peak)
        gl.store(stats + 1, total)
    else:
        sums = gl.convert_layout(gl.where(total > 0.0, total, 1.0), gl.SliceLayout(1, ACC))
        out = gl.convert_layout((acc / sums[:, None]).to(k.dtype), PLAIN)
        out_rows = token * (kv_heads * GROUP) + q_heads
        gl.store(out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :], out, mask=mask)


@gluon.jit(do_not_specialize=["stride_table"])
def _extend_hopper_kernel(
    q_ptr, desc, table_ptr, items_ptr, out_ptr, partial_ptr, stats_ptr, scale_log2, kv_heads,
    stride_q_token, stride_q_head, stride_table,
    HEAD_DIM: gl.constexpr, GROUP: gl.constexpr, PAGE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    ROWS: gl.constexpr, GROUPS: gl.constexpr, PANEL: gl.constexpr, COPY_REGISTERS: gl.constexpr,
    QUERY_REGISTERS: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    TOKENS: gl.constexpr = ROWS * GROUPS // GROUP
    PANELS: gl.constexpr = HEAD_DIM // PANEL
    DTYPE: gl.constexpr = desc.dtype
    # The last tiles of a sequence attend to the most keys: start those first, of all heads.
    head = gl.program_id(0)
    item = items_ptr + (gl.num_programs(1) - 1 - gl.program_id(1)) * WIDTH
    last_tile = gl.load(item + END)
    if last_tile > 0:
        seq = gl.load(item + SEQ)
        seq_start = gl.load(item + START)
        new_tokens = gl.load(item + NEW)
        context = gl.load(item + CONTEXT)
        first = gl.load(item + FIRST)
        begin = gl.load(item + BEGIN)
        slot = gl.load(item + SLOT)
        part_row = (slot + gl.load(item + PART)) * kv_heads + head
        part_row = gl.where(slot < 0, -1, part_row * (ROWS * GROUPS))
        tiles = last_tile - begin
        unmasked_tiles = gl.minimum((context - new_tokens + first + 1) // BLOCK_N - begin, tiles)
        table_row = table_ptr + seq.to(gl.int64) * stride_table + begin * (BLOCK_N // PAGE)
        origin = begin * BLOCK_N

        TILE: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
        q_rows = gl.allocate_shared_memory(DTYPE, [GROUPS, ROWS, HEAD_DIM], TILE)
        k_ring = gl.allocate_shared_memory(DTYPE, [STAGES * PANELS * (BLOCK_N // PAGE), PAGE, PANEL], TILE)
        v_ring = gl.allocate_shared_memory(DTYPE, [STAGES * PANELS * (BLOCK_N // PAGE), PAGE, PANEL], TILE)
        k = k_ring._reinterpret(DTYPE, [STAGES, BLOCK_N, HEAD_DIM], TILE)
        v = v_ring._reinterpret(DTYPE, [STAGES, BLOCK_N, HEAD_DIM], TILE)
        BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
        k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
        k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
        v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
        # The last barrier signals that the first group has cleared the values past the last token.
        v_free = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], BARRIER)
        for stage in gl.static_range(STAGES):
            mbarrier.init(k_ready.index(stage), count=1)
            mbarrier.init(v_ready.index(stage), count=1)
            mbarrier.init(k_free.index(stage), count=GROUPS)
            mbarrier.init(v_free.index(stage), count=GROUPS)
        mbarrier.init(v_free.index(STAGES), count=1)
        fence_async_shared()

        # Rows of the cache seen as [pages * 2 * kv heads * PAGE, HEAD_DIM].
        page_rows = 2 * kv_heads * PAGE
        num_pages = (context - origin + PAGE - 1) // PAGE
        query = (
            q_ptr, out_ptr, partial_ptr, stats_ptr, seq_start, first, new_tokens, origin, context, part_row, head,
            kv_heads, stride_q_token, stride_q_head, scale_log2, tiles, unmasked_tiles,
        )  # fmt: skip
        ring = (k, v, k_ready, k_free, v_ready, v_free)
        source = (desc, table_row, tiles, num_pages, head * PAGE, (kv_heads + head) * PAGE, page_rows)
        if GROUPS == 1:
            gl.warp_specialize([
                (_attend, (query, q_rows.index(0), ring, 0, ROWS, TOKENS, GROUP, HEAD_DIM, BLOCK_N, STAGES)),
                (_copy, (source, k_ring, v_ring, ring, PAGE, PANEL, PANELS, BLOCK_N, STAGES)),
            ], [1], [COPY_REGISTERS])  # fmt: skip
        else:
            gl.warp_specialize([
                (_attend, (query, q_rows.index(0), ring, 0, ROWS, TOKENS, GROUP, HEAD_DIM, BLOCK_N, STAGES)),
                (_attend, (query, q_rows.index(1), ring, ROWS, ROWS, TOKENS, GROUP, HEAD_DIM, BLOCK_N, STAGES)),
                (_copy, (source, k_ring, v_ring, ring, PAGE, PANEL, PANELS, BLOCK_N, STAGES)),
            ], [4, 1], [QUERY_REGISTERS, COPY_REGISTERS])  # fmt: skip


def extend_on_hopper(
    q: torch.Tensor, kv_cache: torch.Tensor, page_table: torch.Tensor, partition: ExtendPartition, block_m: int,
    out: torch.Tensor, partial: torch.Tensor, stats: torch.Tensor, scale_log2: float,
) -> None:  # fmt: skip
    """Fill out [T, H, D] as paged_extend documents, for checked arguments that paged_extend routes to this kernel:
    query tiles of `block_m` rows, 64 or 128. The scratch is that of kernels.extend_merge."""
    _, heads, head_dim = q.shape
    kv_heads, page = kv_cache.shape[2], kv_cache.shape[3]
    if not kv_cache.is_contiguous():
        raise ValueError("the Hopper kernel copies pages of a contiguous cache")
    layout = gl.NVMMASharedLayout(128, 16, 2)
    rows = kv_cache.numel() // head_dim
    desc = TensorDescriptor(kv_cache, [rows, head_dim], [head_dim, 1], [page, PANEL], layout)
    _extend_hopper_kernel[(kv_heads, partition.items.shape[0])](
        q, desc, page_table, partition.items, out, partial, stats, scale_log2, kv_heads,
        q.stride(0), q.stride(1), page_table.stride(0),
        HEAD_DIM=head_dim, GROUP=heads // kv_heads, PAGE=page, BLOCK_N=partition.block_n, STAGES=STAGES,
        ROWS=GROUP_ROWS, GROUPS=block_m // GROUP_ROWS, PANEL=PANEL, COPY_REGISTERS=COPY_REGISTERS,
        QUERY_REGISTERS=QUERY_REGISTERS, num_warps=4,
    )  # fmt: skip
