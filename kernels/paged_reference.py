"""The paged attention kernels in plain torch, for comparison: fp32 maths (fp64 for fp64 inputs), one softmax a row."""

import torch

from kernels.paged_tile import PLAIN, Variant


def paged_decode_reference(
    q: torch.Tensor, kv_cache: torch.Tensor, page_table: torch.Tensor, context_lens: torch.Tensor, scale: float, *,
    variant: Variant = PLAIN,
) -> torch.Tensor:  # fmt: skip
    """paged_decode: extend by one token; zeros for an empty context."""
    is_row = context_lens > 0
    cu_q = torch.cat((is_row.new_zeros(1, dtype=torch.int32), is_row.cumsum(0).int()))
    out = torch.zeros_like(q)
    out[is_row] = paged_extend_reference(
        q[is_row], kv_cache, page_table, cu_q, context_lens, scale, max_q_len=1, variant=variant
    )
    return out


def paged_extend_reference(
    q: torch.Tensor, kv_cache: torch.Tensor, page_table: torch.Tensor, cu_q: torch.Tensor, context_lens: torch.Tensor,
    scale: float, *, max_q_len: int, variant: Variant = PLAIN,
) -> torch.Tensor:  # fmt: skip
    """paged_extend; padding rows are zero."""
    heads, page = q.shape[1], kv_cache.shape[3]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.zeros_like(q)
    bounds = cu_q.tolist()
    for seq, length in enumerate(context_lens.tolist()):
        begin, end = bounds[seq], bounds[seq + 1]
        if begin == end:
            continue
        pages = page_table[seq, : -(-length // page)].long()
        # [pages, 2, Hkv, PAGE, D] -> [2, Hkv, tokens, D]
        kv = kv_cache[pages].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length].to(wide)
        positions = torch.arange(length - (end - begin), length, device=q.device)
        keys = torch.arange(length, device=q.device)
        hidden = keys > positions[:, None]
        if variant.window:
            hidden |= keys <= positions[:, None] - variant.window
            # What no row sees may hold anything, and 0 * NaN is NaN.
            kv = kv.masked_fill(hidden.all(0)[:, None], 0.0)
        k, v = kv.repeat_interleave(heads // kv_cache.shape[2], dim=1)
        scores = torch.einsum("qhd,hnd->hqn", q[begin:end].to(wide), k) * scale
        if variant.softcap:
            scores = (scores / variant.softcap).tanh() * variant.softcap
        scores = scores.masked_fill(hidden, float("-inf"))
        if variant.sinks is not None:
            sinks = variant.sinks.to(wide)[:, None, None].expand(-1, end - begin, 1)
            scores = torch.cat((scores, sinks), dim=-1)
        weights = scores.softmax(-1)[..., :length]
        out[begin:end] = torch.einsum("hqn,hnd->qhd", weights, v).to(q.dtype)
    return out
