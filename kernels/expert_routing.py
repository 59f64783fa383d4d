"""Which experts each token takes, and the list of tiles that the products over experts work through.

    scores   [splits, T, E]  fp32, parts of the router's product: added up here, in order
    pair     t * top_k + c   choice c of token t; choices in descending order of score
    order    [T * top_k]     the pairs, sorted by expert, then by token
    tiles    [n, 3]          expert, first place in `order`, rows; those behind the last tile have no rows

The number of tiles depends on the scores, so the list is as long as it could get; nothing here waits for the host.
A score that is no number counts as the lowest: padding rows have arbitrary contents, and choose experts all the same.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.pdl import pdl_options, wait_for_prior_kernel

# Scores that a program holds in its registers without spills: all of a small step, or some rows of a large one.
SMALL_STEP = BLOCK_SCORES = 4096
_SCORE_DEPTH = 256
_MOST_SPLITS = 16
_FEW_ROWS = 512
_LOWEST = tl.constexpr(-1e30)


class Routing(NamedTuple):
    """See above; `weights` [T, top_k] fp32 are in order of the choices. Tiles have at most `block_m` rows."""

    weights: torch.Tensor
    order: torch.Tensor
    tiles: torch.Tensor
    block_m: int

    @property
    def top_k(self) -> int:
        """How many experts a token takes."""
        return self.weights.shape[1]


@triton.jit(do_not_specialize=["rows"])
def _scores_kernel(
    x_ptr, w_ptr, scores_ptr, rows, count, hidden, stride_x, depth,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    e = tl.arange(0, BLOCK_E)
    k = split * depth + tl.arange(0, BLOCK_K)
    w_ptrs = w_ptr + e[None, :] * hidden + k[:, None]
    x_ptrs = x_ptr + m[:, None].to(tl.int64) * stride_x + k[None, :]
    wait_for_prior_kernel(USE_PDL)
    acc = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for at in range(0, depth, BLOCK_K):
        inside = k + at < tl.minimum(hidden, (split + 1) * depth)
        x = tl.load(x_ptrs + at, mask=(m[:, None] < rows) & inside[None, :], other=0.0)
        w = tl.load(w_ptrs + at, mask=(e[None, :] < count) & inside[:, None], other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    place = (split * rows + m[:, None]).to(tl.int64) * count + e[None, :]
    tl.store(scores_ptr + place, acc, mask=(m[:, None] < rows) & (e[None, :] < count))


@triton.jit
def _choose(
    scores_ptr, bias_ptr, rows, count, t, e, stride_split,
    TOP_K: tl.constexpr, SPLITS: tl.constexpr, NORMALISED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Return [BLOCK_T, BLOCK_E]: the weight of each expert, and its place among the choices, or TOP_K if not chosen."""
    inside = (t[:, None] < rows) & (e[None, :] < count)
    at = t[:, None].to(tl.int64) * count + e[None, :]
    score = tl.load(scores_ptr + at, mask=inside, other=0.0)
    for split in tl.static_range(1, SPLITS):
        score += tl.load(scores_ptr + split * stride_split + at, mask=inside, other=0.0)
    if BIASED:
        score += tl.load(bias_ptr + e, mask=e < count, other=0.0).to(tl.float32)[None, :]
    score = tl.where(score > _LOWEST, tl.minimum(score, -_LOWEST), _LOWEST)
    score = tl.where(e[None, :] < count, score, float("-inf"))
    share = tl.exp(score - tl.max(score, 1)[:, None])
    choice = tl.zeros_like(score).to(tl.int32) + TOP_K
    for c in tl.static_range(TOP_K):
        best = tl.max(score, 1)
        number = tl.min(tl.where(score == best[:, None], e[None, :], count), 1)
        is_best = e[None, :] == number[:, None]
        choice = tl.where(is_best, c, choice)
        score = tl.where(is_best, float("-inf"), score)
    total = tl.sum(tl.where(choice < TOP_K, share, 0.0), 1) if NORMALISED else tl.sum(share, 1)
    return share / total[:, None], tl.where(t[:, None] < rows, choice, TOP_K)


@triton.jit
def _write_tiles(tiles_ptr, start, size, e, count, most, BLOCK_M: tl.constexpr):
    """Write the tiles of every expert e, whose rows are `size` from place `start` on; and empty ones behind them."""
    number = tl.where(e < count, (size + BLOCK_M - 1) // BLOCK_M, 0)
    first = tl.cumsum(number, 0) - number
    for j in range(tl.max(number, 0)):
        at = tiles_ptr + (first + j) * 3
        tl.store(at, e, mask=j < number)
        tl.store(at + 1, start + j * BLOCK_M, mask=j < number)
        tl.store(at + 2, tl.minimum(size - j * BLOCK_M, BLOCK_M), mask=j < number)
    total = tl.sum(number, 0)
    for first_empty in range(0, most, 128):
        tile = first_empty + tl.arange(0, 128)
        tl.store(tiles_ptr + tile * 3 + 2, 0, mask=(tile >= total) & (tile < most))


@triton.jit(do_not_specialize=["rows", "stride_split", "most"])
def _route_kernel(
    scores_ptr, bias_ptr, weights_ptr, order_ptr, tiles_ptr, rows, count, stride_split, most,
    TOP_K: tl.constexpr, SPLITS: tl.constexpr, NORMALISED: tl.constexpr, BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    """All of it in one program, for few rows."""
    wait_for_prior_kernel(USE_PDL)
    t, e = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_E)
    weight, choice = _choose(
        scores_ptr, bias_ptr, rows, count, t, e, stride_split, TOP_K, SPLITS, NORMALISED, BIASED
    )  # fmt: skip
    is_chosen = choice < TOP_K
    ones = tl.where(is_chosen, 1, 0)
    size = tl.sum(ones, 0)
    start = tl.cumsum(size, 0) - size
    rank = tl.cumsum(ones, 0) - ones
    pair = t[:, None] * TOP_K + choice
    tl.store(weights_ptr + pair, weight, mask=is_chosen)
    tl.store(order_ptr + start[None, :] + rank, pair, mask=is_chosen)
    _write_tiles(tiles_ptr, start, size, e, count, most, BLOCK_M)


@triton.jit(do_not_specialize=["rows", "stride_split"])
def _choose_kernel(
    scores_ptr, bias_ptr, weights_ptr, chosen_ptr, sizes_ptr, rows, count, stride_split,
    TOP_K: tl.constexpr, SPLITS: tl.constexpr, NORMALISED: tl.constexpr, BIASED: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    """First of three for many rows: weights and experts of each pair, and how many pairs of a block an expert has."""
    wait_for_prior_kernel(USE_PDL)
    block = tl.program_id(0)
    t, e = block * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_E)
    weight, choice = _choose(
        scores_ptr, bias_ptr, rows, count, t, e, stride_split, TOP_K, SPLITS, NORMALISED, BIASED
    )  # fmt: skip
    is_chosen = choice < TOP_K
    pair = t[:, None] * TOP_K + choice
    tl.store(weights_ptr + pair, weight, mask=is_chosen)
    tl.store(chosen_ptr + pair, tl.zeros_like(choice) + e[None, :], mask=is_chosen)
    tl.store(sizes_ptr + block * BLOCK_E + e, tl.sum(is_chosen.to(tl.int32), 0))


@triton.jit(do_not_specialize=["blocks", "most"])
def _tiles_kernel(
    sizes_ptr, tiles_ptr, blocks, count, most, BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_E: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    """Second: sizes [blocks, BLOCK_E] become the places in `order` where each block's pairs of an expert begin."""
    wait_for_prior_kernel(USE_PDL)
    e = tl.arange(0, BLOCK_E)
    size = tl.zeros([BLOCK_E], tl.int32)
    for first in range(0, blocks, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        at = sizes_ptr + b[:, None] * BLOCK_E + e[None, :]
        size += tl.sum(tl.load(at, mask=b[:, None] < blocks, other=0), 0)
    start = tl.cumsum(size, 0) - size
    place = start
    for first in range(0, blocks, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        at = sizes_ptr + b[:, None] * BLOCK_E + e[None, :]
        own = tl.load(at, mask=b[:, None] < blocks, other=0)
        tl.store(at, place[None, :] + tl.cumsum(own, 0) - own, mask=b[:, None] < blocks)
        place += tl.sum(own, 0)
    _write_tiles(tiles_ptr, start, size, e, count, most, BLOCK_M)


@triton.jit(do_not_specialize=["rows"])
def _order_kernel(
    chosen_ptr, places_ptr, order_ptr, rows,
    TOP_K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    """Third: write each pair to its place."""
    wait_for_prior_kernel(USE_PDL)
    block = tl.program_id(0)
    t, e = block * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_E)
    choice = tl.zeros([BLOCK_T, BLOCK_E], tl.int32) + TOP_K
    for c in tl.static_range(TOP_K):
        number = tl.load(chosen_ptr + t * TOP_K + c, mask=t < rows, other=-1)
        choice = tl.where(e[None, :] == number[:, None], c, choice)
    is_chosen = choice < TOP_K
    ones = tl.where(is_chosen, 1, 0)
    place = tl.load(places_ptr + block * BLOCK_E + e)
    at = place[None, :] + tl.cumsum(ones, 0) - ones
    tl.store(order_ptr + at, t[:, None] * TOP_K + choice, mask=is_chosen)


def router_scores(x: torch.Tensor, router: torch.Tensor) -> torch.Tensor:
    """Return [splits, T, E] fp32 whose sum over splits is x R^T, for x [T, hidden] and router [E, hidden] of one dtype.

    Both have contiguous rows. Many rows make programs enough with fewer splits."""
    rows, hidden = x.shape
    count, block_k = router.shape[0], min(64, max(16, triton.next_power_of_2(hidden)))
    splits = min(_MOST_SPLITS, max(1, hidden // (_SCORE_DEPTH if rows <= _FEW_ROWS else 4 * _SCORE_DEPTH)))
    depth = triton.cdiv(triton.cdiv(hidden, splits), block_k) * block_k
    splits = triton.cdiv(hidden, depth)
    scores = torch.empty((splits, rows, count), dtype=torch.float32, device=x.device)
    block_m = 16 if rows <= 64 else 64
    _scores_kernel[(triton.cdiv(rows, block_m), splits)](
        x, router, scores, rows, count, hidden, x.stride(0), depth, BLOCK_M=block_m,
        BLOCK_E=max(16, triton.next_power_of_2(count)), BLOCK_K=block_k, num_warps=4, num_stages=3,
        **pdl_options(x.device),
    )  # fmt: skip
    return scores


def most_tiles(pairs: int, count: int, block_m: int) -> int:
    """Return the most tiles that so many pairs can make: each expert has at most one that is not full."""
    return min(pairs, count + pairs // block_m)


def route(
    scores: torch.Tensor, top_k: int, block_m: int, *, normalised: bool, bias: torch.Tensor | None = None
) -> Routing:
    """Return the `top_k` experts of each row of the scores [splits, T, E] fp32, whose sum over splits counts.

    Weights are the softmax of all scores, or with `normalised` of the chosen ones. `bias` [E] is added to scores."""
    splits, rows, count = scores.shape
    device, pairs = scores.device, rows * top_k
    weights = torch.empty((rows, top_k), dtype=torch.float32, device=device)
    order = torch.empty(pairs, dtype=torch.int32, device=device)
    tiles = torch.empty((most_tiles(pairs, count, block_m), 3), dtype=torch.int32, device=device)
    block_e = max(16, triton.next_power_of_2(count))
    options = pdl_options(device)
    choosing = {"TOP_K": top_k, "SPLITS": splits, "NORMALISED": normalised, "BIASED": bias is not None}
    size = scores, bias, weights
    if rows * block_e <= SMALL_STEP:
        # Triton 3.6 does not compile the scan of fewer numbers than threads.
        block_t = max(4, 256 // block_e, triton.next_power_of_2(rows))
        _route_kernel[(1,)](
            *size, order, tiles, rows, count, rows * count, len(tiles), **choosing, BLOCK_M=block_m,
            BLOCK_T=block_t, BLOCK_E=block_e, num_warps=min(16, max(4, block_t * block_e // 256)), **options,
        )  # fmt: skip
        return Routing(weights, order, tiles, block_m)
    block_t = max(1, BLOCK_SCORES // block_e)
    blocks = triton.cdiv(rows, block_t)
    chosen = torch.empty(pairs, dtype=torch.int32, device=device)
    sizes = torch.empty((blocks, block_e), dtype=torch.int32, device=device)
    shape = {"BLOCK_T": block_t, "BLOCK_E": block_e, "num_warps": 8, **options}
    _choose_kernel[(blocks,)](*size, chosen, sizes, rows, count, rows * count, **choosing, **shape)
    _tiles_kernel[(1,)](
        sizes, tiles, blocks, count, len(tiles), BLOCK_M=block_m, BLOCK_B=max(1, block_t // 2), BLOCK_E=block_e,
        num_warps=4, **options,
    )  # fmt: skip
    _order_kernel[(blocks,)](chosen, sizes, order, rows, TOP_K=top_k, **shape)
    return Routing(weights, order, tiles, block_m)
