"""Products over the experts that a step touches: one launch for all experts, by the tiles of kernels.expert_routing.

A program computes a block of outputs for the rows of one tile, which take one expert. For few rows the weight is the
left operand, as in kernels.skinny_linear: its rows fill the tensor core tile, and each weight that is touched is read
once. For many rows the tokens are. Tiles without rows end at once, so that a launch is the same for all routings.

    gate_up [E, 2 I, hidden], rows of gate and up in turn      down [E, hidden, I]

    experts_hidden   x [T, hidden] -> silu(gate) * up, [T * top_k, I] in the order of `order`
    experts_down     that -> [top_k, T, hidden]: the contribution of each choice, times its weight
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.expert_routing import Routing
from kernels.pdl import launch_dependents, pdl_options, wait_for_prior_kernel


class ExpertTile(NamedTuple):
    """Launch parameters: weight rows, depth, warps, pipeline stages; whether the weight is the left operand."""

    block_n: int
    block_k: int
    warps: int
    stages: int
    weight_first: bool


@triton.jit
def _tile(tiles_ptr, order_ptr, m):
    """Return the expert, the first place, and the pairs of the program's tile; -1 for rows that it does not have."""
    tile = tiles_ptr + tl.program_id(1) * 3
    expert, first, rows = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    return expert, first, rows, tl.load(order_ptr + first + m, mask=m < rows, other=-1)


@triton.jit
def _product(
    x_ptr, rows_of_x, w_ptr, first_row, width, depth, stride_x, is_row,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, WEIGHT_FIRST: tl.constexpr,
):  # fmt: skip
    """Return x W^T of a tile, [BLOCK_N, BLOCK_M] with the weight as left operand, else [BLOCK_M, BLOCK_N]."""
    k = tl.arange(0, BLOCK_K)
    # Rows behind the last one are read as the last one, and their results are not stored.
    n = tl.minimum(first_row + tl.arange(0, BLOCK_N), width - 1)
    x_at, w_at = rows_of_x.to(tl.int64) * stride_x, n.to(tl.int64) * depth
    if WEIGHT_FIRST:
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        w_ptrs, x_ptrs = w_ptr + w_at[:, None] + k[None, :], x_ptr + x_at[None, :] + k[:, None]
        for at in range(0, depth, BLOCK_K):
            if EVEN:
                w = tl.load(w_ptrs)
                x = tl.load(x_ptrs, mask=is_row[None, :], other=0.0)
            else:
                inside = k < depth - at
                w = tl.load(w_ptrs, mask=inside[None, :], other=0.0)
                x = tl.load(x_ptrs, mask=is_row[None, :] & inside[:, None], other=0.0)
            acc = tl.dot(w, x, acc, input_precision="ieee")
            w_ptrs += BLOCK_K
            x_ptrs += BLOCK_K
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        w_ptrs, x_ptrs = w_ptr + w_at[None, :] + k[:, None], x_ptr + x_at[:, None] + k[None, :]
        for at in range(0, depth, BLOCK_K):
            if EVEN:
                w = tl.load(w_ptrs)
                x = tl.load(x_ptrs, mask=is_row[:, None], other=0.0)
            else:
                inside = k < depth - at
                w = tl.load(w_ptrs, mask=inside[:, None], other=0.0)
                x = tl.load(x_ptrs, mask=is_row[:, None] & inside[None, :], other=0.0)
            acc = tl.dot(x, w, acc, input_precision="ieee")
            w_ptrs += BLOCK_K
            x_ptrs += BLOCK_K
    return acc


@triton.jit
def _hidden_kernel(
    x_ptr, w_ptr, h_ptr, order_ptr, tiles_ptr, stride_x, width, depth, top_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
    WEIGHT_FIRST: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    # width: weight rows of an expert, twice the outputs.
    wait_for_prior_kernel(USE_PDL, HOLD_DEPENDENTS=True)
    m = tl.arange(0, BLOCK_M)
    expert, first, rows, pair = _tile(tiles_ptr, order_ptr, m)
    if rows == 0:
        return
    w_ptr += expert.to(tl.int64) * width * depth
    first_row = tl.program_id(0) * BLOCK_N
    acc = _product(
        x_ptr, tl.maximum(pair, 0) // top_k, w_ptr, first_row, width, depth, stride_x, m < rows,
        BLOCK_M, BLOCK_N, BLOCK_K, EVEN, WEIGHT_FIRST,
    )  # fmt: skip
    launch_dependents(USE_PDL)
    OUTPUTS: tl.constexpr = BLOCK_N // 2
    dtype = h_ptr.dtype.element_ty
    n, outputs = first_row // 2 + tl.arange(0, OUTPUTS), width // 2
    if WEIGHT_FIRST:
        gate, up = tl.split(tl.permute(tl.reshape(acc, [OUTPUTS, 2, BLOCK_M]), (0, 2, 1)))
        at = (first + m[None, :]).to(tl.int64) * outputs + n[:, None]
        mask = (m[None, :] < rows) & (n[:, None] < outputs)
    else:
        gate, up = tl.split(tl.reshape(acc, [BLOCK_M, OUTPUTS, 2]))
        at = (first + m[:, None]).to(tl.int64) * outputs + n[None, :]
        mask = (m[:, None] < rows) & (n[None, :] < outputs)
    gate = gate.to(dtype).to(tl.float32)
    up = up.to(dtype).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(h_ptr + at, (silu * up).to(dtype), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _down_kernel(
    h_ptr, w_ptr, y_ptr, weights_ptr, order_ptr, tiles_ptr, tokens, width, depth, top_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
    WEIGHT_FIRST: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    wait_for_prior_kernel(USE_PDL, HOLD_DEPENDENTS=True)
    m = tl.arange(0, BLOCK_M)
    expert, first, rows, pair = _tile(tiles_ptr, order_ptr, m)
    if rows == 0:
        return
    w_ptr += expert.to(tl.int64) * width * depth
    first_row = tl.program_id(0) * BLOCK_N
    acc = _product(
        h_ptr, first + m, w_ptr, first_row, width, depth, depth, m < rows,
        BLOCK_M, BLOCK_N, BLOCK_K, EVEN, WEIGHT_FIRST,
    )  # fmt: skip
    launch_dependents(USE_PDL)
    weight = tl.load(weights_ptr + pair, mask=m < rows, other=0.0)
    row = ((pair % top_k) * tokens + pair // top_k).to(tl.int64) * width
    n = first_row + tl.arange(0, BLOCK_N)
    dtype = y_ptr.dtype.element_ty
    if WEIGHT_FIRST:
        mask = (m[None, :] < rows) & (n[:, None] < width)
        tl.store(y_ptr + row[None, :] + n[:, None], (acc * weight[None, :]).to(dtype), mask=mask)
    else:
        mask = (m[:, None] < rows) & (n[None, :] < width)
        tl.store(y_ptr + row[:, None] + n[None, :], (acc * weight[:, None]).to(dtype), mask=mask)


def experts_hidden(x: torch.Tensor, gate_up: torch.Tensor, routing: Routing, tile: ExpertTile) -> torch.Tensor:
    """Return silu(x G^T) * (x U^T) for each pair of token and expert, [T * top_k, I] in the order of routing.order.

    x [T, hidden] and gate_up [E, 2 I, hidden], contiguous, of one dtype. Rounded like kernels.activation. Raises
    ValueError for shapes that do not fit."""
    _, width, depth = gate_up.shape
    if x.shape[1] != depth or width % 2 or not gate_up.is_contiguous() or x.stride(1) != 1:
        raise ValueError(f"x {tuple(x.shape)} and gate_up {tuple(gate_up.shape)} do not fit")
    h = torch.empty((len(routing.order), width // 2), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(width, tile.block_n), len(routing.tiles))
    _hidden_kernel[grid](
        x, gate_up, h, routing.order, routing.tiles, x.stride(0), width, depth, routing.top_k,
        **_options(tile, routing.block_m, depth, x.device),
    )  # fmt: skip
    return h


def experts_down(
    h: torch.Tensor, down: torch.Tensor, routing: Routing, tile: ExpertTile, dtype: torch.dtype, extra: int = 0
) -> torch.Tensor:
    """Return what each choice adds to its token, [top_k + extra, T, hidden] of `dtype`; the last `extra` stay empty.

    h as experts_hidden returns it, down [E, hidden, I] contiguous. Raises ValueError for shapes that do not fit."""
    _, width, depth = down.shape
    if h.shape[1] != depth or not down.is_contiguous():
        raise ValueError(f"h {tuple(h.shape)} and down {tuple(down.shape)} do not fit")
    tokens = len(routing.weights)
    y = torch.empty((routing.top_k + extra, tokens, width), dtype=dtype, device=h.device)
    grid = (triton.cdiv(width, tile.block_n), len(routing.tiles))
    _down_kernel[grid](
        h, down, y, routing.weights, routing.order, routing.tiles, tokens, width, depth, routing.top_k,
        **_options(tile, routing.block_m, depth, h.device),
    )  # fmt: skip
    return y


def _options(tile: ExpertTile, block_m: int, depth: int, device: torch.device) -> dict[str, object]:
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "EVEN": depth % tile.block_k == 0,
        "WEIGHT_FIRST": tile.weight_first,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **pdl_options(device),
    }


def experts_reference(
    x: torch.Tensor, scores: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, top_k: int, normalised: bool
) -> torch.Tensor:
    """Return the output of the experts [T, hidden] in float64: every expert over every token, most with weight 0."""
    x, scores = x.double(), scores.double()
    shares = torch.softmax(scores, -1)
    shares = shares * (scores >= scores.topk(top_k).values[:, -1:])
    if normalised:
        shares = shares / shares.sum(-1, keepdim=True)
    product = torch.einsum("th,enh->etn", x, gate_up.double())
    hidden = torch.nn.functional.silu(product[..., ::2]) * product[..., 1::2]
    return torch.einsum("te,eti,ehi->th", shares, hidden, down.double())
