"""Products over the experts that a step touches: one launch for all experts, by the tiles of kernels.expert_routing.

A program computes a block of outputs for the rows of one tile, which take one expert. For few rows the weight is the
left operand, as in kernels.skinny_linear: its rows fill the tensor core tile, and each weight that is touched is read
once. For many rows the tokens are. Tiles without rows end at once, so that a launch is the same for all routings.

    gate_up [E, 2 I, hidden], rows of gate and up in turn      down [E, hidden, I]

    experts_hidden   x [T, hidden] -> silu(gate) * up, [T * top_k, I] in the order of `order`
    experts_down     that -> [top_k, T, hidden]: the contribution of each choice, times its weight

Weights in MXFP4 are the left operand for any number of rows: it comes from registers, in which they are made wide.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.expert_product import tile_product
from kernels.expert_routing import Routing
from kernels.mxfp4 import GROUP, Mxfp4
from kernels.pdl import launch_dependents, pdl_options, wait_for_prior_kernel


class ExpertTile(NamedTuple):
    """Launch parameters: weight rows, depth, warps, pipeline stages; whether the weight is the left operand."""

    block_n: int
    block_k: int
    warps: int
    stages: int
    weight_first: bool


class Gating(NamedTuple):
    """silu(g) * u, or g * sigmoid(factor * g) * (u + offset) with g at most `limit`, u between -limit and limit."""

    factor: float = 1.0
    limit: float = 0.0
    offset: float = 0.0


SILU = Gating()


@triton.jit
def _tile(tiles_ptr, order_ptr, m):
    """Return the expert, the first place, and the pairs of the program's tile; -1 for rows that it does not have."""
    tile = tiles_ptr + tl.program_id(1) * 3
    expert, first, rows = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    return expert, first, rows, tl.load(order_ptr + first + m, mask=m < rows, other=-1)


@triton.jit
def _gated(gate, up, dtype: tl.constexpr, FACTOR: tl.constexpr, LIMIT: tl.constexpr, OFFSET: tl.constexpr):
    gate = gate.to(dtype).to(tl.float32)
    up = up.to(dtype).to(tl.float32)
    if LIMIT > 0.0:
        gate, up = tl.minimum(gate, LIMIT), tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
    inner = gate if FACTOR == 1.0 else gate * FACTOR
    activated = (gate / (1.0 + tl.exp(-inner))).to(dtype).to(tl.float32)
    return (activated * (up if OFFSET == 0.0 else up + OFFSET)).to(dtype)


@triton.jit
def _hidden_kernel(
    x_ptr, w_ptr, scales_ptr, bias_ptr, h_ptr, order_ptr, tiles_ptr, stride_x, width, depth, top_k,
    FACTOR: tl.constexpr, LIMIT: tl.constexpr, OFFSET: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
    WEIGHT_FIRST: tl.constexpr, MXFP4: tl.constexpr, BIASED: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    # width: weight rows of an expert, twice the outputs.
    wait_for_prior_kernel(USE_PDL, HOLD_DEPENDENTS=True)
    m = tl.arange(0, BLOCK_M)
    expert, first, rows, pair = _tile(tiles_ptr, order_ptr, m)
    if rows == 0:
        return
    before = expert.to(tl.int64) * width
    first_row, rows_of_x = tl.program_id(0) * BLOCK_N, tl.maximum(pair, 0) // top_k
    acc = tile_product(
        x_ptr, rows_of_x, w_ptr, scales_ptr, bias_ptr, before, first_row, width, depth, stride_x, m < rows,
        BLOCK_M, BLOCK_N, BLOCK_K, EVEN, WEIGHT_FIRST, MXFP4, BIASED,
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
    tl.store(h_ptr + at, _gated(gate, up, dtype, FACTOR, LIMIT, OFFSET), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _down_kernel(
    h_ptr, w_ptr, scales_ptr, bias_ptr, y_ptr, weights_ptr, order_ptr, tiles_ptr, tokens, width, depth, top_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
    WEIGHT_FIRST: tl.constexpr, MXFP4: tl.constexpr, BIASED: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    wait_for_prior_kernel(USE_PDL, HOLD_DEPENDENTS=True)
    m = tl.arange(0, BLOCK_M)
    expert, first, rows, pair = _tile(tiles_ptr, order_ptr, m)
    if rows == 0:
        return
    before = expert.to(tl.int64) * width
    first_row = tl.program_id(0) * BLOCK_N
    acc = tile_product(
        h_ptr, first + m, w_ptr, scales_ptr, bias_ptr, before, first_row, width, depth, depth, m < rows,
        BLOCK_M, BLOCK_N, BLOCK_K, EVEN, WEIGHT_FIRST, MXFP4, BIASED,
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


def experts_hidden(
    x: torch.Tensor,
    gate_up: torch.Tensor | Mxfp4,
    routing: Routing,
    tile: ExpertTile,
    bias: torch.Tensor | None = None,
    gating: Gating = SILU,
) -> torch.Tensor:
    """Return the gated x (G, U)^T + bias for each pair of token and expert, [T * top_k, I] in the order of
    routing.order.

    x [T, hidden] and gate_up [E, 2 I, hidden], contiguous, of one dtype or gate_up in MXFP4; bias [E, 2 I]. Rounded
    like kernels.activation. Raises ValueError for shapes that do not fit."""
    _, width, depth = gate_up.shape
    if x.shape[1] != depth or width % 2 or not gate_up.is_contiguous() or x.stride(1) != 1:
        raise ValueError(f"x {tuple(x.shape)} and gate_up {tuple(gate_up.shape)} do not fit")
    h = torch.empty((len(routing.order), width // 2), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(width, tile.block_n), len(routing.tiles))
    _hidden_kernel[grid](
        x, *_parts(gate_up), bias, h, routing.order, routing.tiles, x.stride(0), width, depth, routing.top_k, *gating,
        **_options(tile, routing.block_m, gate_up, bias, x.device),
    )  # fmt: skip
    return h


def experts_down(
    h: torch.Tensor,
    down: torch.Tensor | Mxfp4,
    routing: Routing,
    tile: ExpertTile,
    dtype: torch.dtype,
    extra: int = 0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what each choice adds to its token, [top_k + extra, T, hidden] of `dtype`; the last `extra` stay empty.

    h as experts_hidden returns it, down [E, hidden, I] contiguous or in MXFP4, bias [E, hidden]. Raises ValueError for
    shapes that do not fit."""
    _, width, depth = down.shape
    if h.shape[1] != depth or not down.is_contiguous():
        raise ValueError(f"h {tuple(h.shape)} and down {tuple(down.shape)} do not fit")
    tokens = len(routing.weights)
    y = torch.empty((routing.top_k + extra, tokens, width), dtype=dtype, device=h.device)
    grid = (triton.cdiv(width, tile.block_n), len(routing.tiles))
    _down_kernel[grid](
        h, *_parts(down), bias, y, routing.weights, routing.order, routing.tiles, tokens, width, depth, routing.top_k,
        **_options(tile, routing.block_m, down, bias, h.device),
    )  # fmt: skip
    return y


def _parts(weight: torch.Tensor | Mxfp4) -> tuple[torch.Tensor, torch.Tensor | None]:
    return (weight.codes, weight.scales) if isinstance(weight, Mxfp4) else (weight, None)


def _options(
    tile: ExpertTile, block_m: int, weight: torch.Tensor | Mxfp4, bias: torch.Tensor | None, device: torch.device
) -> dict[str, object]:
    """Raises ValueError for a tile in which weights in MXFP4 are no left operand."""
    is_mxfp4, depth = isinstance(weight, Mxfp4), weight.shape[2]
    if is_mxfp4 and (not tile.weight_first or tile.block_k % GROUP or depth % GROUP):
        raise ValueError(f"{tile} does not fit weights in MXFP4 with {depth} columns")
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "EVEN": depth % tile.block_k == 0,
        "WEIGHT_FIRST": tile.weight_first,
        "MXFP4": is_mxfp4,
        "BIASED": bias is not None,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **pdl_options(device),
    }


def experts_reference(
    x: torch.Tensor,
    scores: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    normalised: bool,
    biases: tuple[torch.Tensor, torch.Tensor] | None = None,
    gating: Gating = SILU,
) -> torch.Tensor:
    """Return the output of the experts [T, hidden] in float64: every expert over every token, most with weight 0."""
    x, scores = x.double(), scores.double()
    shares = torch.softmax(scores, -1)
    shares = shares * (scores >= scores.topk(top_k).values[:, -1:])
    if normalised:
        shares = shares / shares.sum(-1, keepdim=True)
    product = torch.einsum("th,enh->etn", x, gate_up.double())
    if biases is not None:
        product = product + biases[0].double()[:, None]
    gate, up = product[..., ::2], product[..., 1::2]
    if gating.limit:
        gate, up = gate.clamp(max=gating.limit), up.clamp(-gating.limit, gating.limit)
    hidden = gate * torch.sigmoid(gating.factor * gate) * (up + gating.offset)
    added = torch.einsum("eti,ehi->eth", hidden, down.double())
    if biases is not None:
        added = added + biases[1].double()[:, None]
    return torch.einsum("te,eth->th", shares, added)
