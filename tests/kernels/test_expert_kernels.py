"""Experts: routing against torch, both products against float64, rows that fill no tile, experts without any."""

import pytest
import torch
from kernel_cases import BF16, DEVICE, FP32, ON_GPU, assert_close, normal

from kernels import expert_routing
from kernels.expert_linear import ExpertTile, experts_down, experts_hidden, experts_reference
from kernels.expert_routing import most_tiles, route, router_scores
from kernels.expert_tiles import expert_tiles
from kernels.norm import add_rms_norm, add_rms_norm_reference

TOLERANCE = {FP32: 3e-5 if ON_GPU else 3e-6, BF16: 3e-2}


def layer(count, hidden, width, dtype):
    router = normal(count, hidden, dtype=dtype, seed=2) / hidden**0.5
    gate_up = normal(count, 2 * width, hidden, dtype=dtype, seed=3) / hidden**0.5
    return router, gate_up, normal(count, hidden, width, dtype=dtype, seed=4) / width**0.5


def check_routing(scores, routing, top_k, normalised):
    rows, count = scores.shape
    weights, chosen = torch.softmax(scores.double(), -1).topk(top_k, -1)
    if normalised:
        weights = weights / weights.sum(-1, keepdim=True)
    assert_close(routing.weights, weights, 1e-6)
    pairs, seen = routing.order.long(), 0
    assert torch.equal(pairs.sort().values, torch.arange(rows * top_k, device=DEVICE))
    experts = chosen.reshape(-1)[pairs]
    for expert, first, size in routing.tiles.tolist():
        if size:
            assert 0 < size <= routing.block_m and first == seen and (experts[first : first + size] == expert).all()
            assert (pairs[first : first + size].diff() > 0).all()
        seen += size
    assert seen == rows * top_k and len(routing.tiles) == most_tiles(rows * top_k, count, routing.block_m)


@pytest.mark.parametrize("is_small", [True, False])
@pytest.mark.parametrize(
    ("rows", "count", "top_k", "normalised"), [(1, 8, 3, True), (37, 5, 2, False), (20, 40, 4, True)]
)
def test_routing_sorts_pairs_by_expert(monkeypatch, rows, count, top_k, normalised, is_small):
    if not is_small:
        monkeypatch.setattr(expert_routing, "SMALL_STEP", 0)
        monkeypatch.setattr(expert_routing, "BLOCK_SCORES", 16 * 64)
    parts = normal(3, rows, count, dtype=FP32, seed=1)
    bias = normal(count, dtype=FP32, seed=5)
    check_routing(parts.sum(0), route(parts, top_k, 16, normalised=normalised), top_k, normalised)
    biased = route(parts, top_k, 16, normalised=normalised, bias=bias)
    check_routing(parts.sum(0) + bias, biased, top_k, normalised)


def test_rows_of_numbers_that_are_none_choose_experts_that_exist():
    scores = normal(2, 6, 8, dtype=FP32, seed=1)
    plain = route(scores, 2, 16, normalised=True)
    scores[0, 1], scores[1, 4, 3], scores[0, 5] = float("nan"), float("inf"), float("-inf")
    routing = route(scores, 2, 16, normalised=True)
    assert torch.equal(routing.order.sort().values, torch.arange(12, dtype=torch.int32, device=DEVICE))
    assert int(routing.tiles[:, 2].sum()) == 12 and ((routing.tiles[:, 0] >= 0) & (routing.tiles[:, 0] < 8))[:3].all()
    assert torch.equal(routing.weights[[0, 2, 3]], plain.weights[[0, 2, 3]])


@pytest.mark.parametrize("weight_first", [True, False])
@pytest.mark.parametrize(
    ("rows", "count", "top_k", "hidden", "width", "dtype"),
    [(1, 6, 3, 96, 48, FP32), (23, 4, 2, 64, 40, FP32), (9, 6, 2, 64, 32, BF16)],
)
def test_products_match_the_reference(guarded, rows, count, top_k, hidden, width, dtype, weight_first):
    x, (router, gate_up, down) = normal(rows, hidden, dtype=dtype, seed=1), layer(count, hidden, width, dtype)
    scores = router_scores(x, router)
    assert_close(scores.sum(0), x.float() @ router.float().T, 1e-5)
    routing, tile = route(scores, top_k, 16, normalised=True), ExpertTile(64, 64, 4, 2, weight_first)
    parts = experts_down(experts_hidden(x, gate_up, routing, tile), down, routing, tile, FP32)
    expected = experts_reference(x, scores.sum(0), gate_up, down, top_k, normalised=True)
    assert_close(parts.sum(0), expected, TOLERANCE[dtype])
    weight = torch.ones(hidden, dtype=dtype, device=DEVICE)
    found, wanted = add_rms_norm(parts, x, weight, 1e-6), add_rms_norm_reference(parts, x, weight, 1e-6)
    assert_close(found[1], wanted[1], TOLERANCE[dtype])


def test_a_row_is_the_same_in_any_step():
    x, (router, gate_up, down) = normal(12, 64, dtype=FP32, seed=1), layer(6, 64, 32, FP32)

    def run(x):
        routing, tile = route(router_scores(x, router), 2, 16, normalised=True), expert_tiles(1, 2, 6, FP32).hidden
        return experts_down(experts_hidden(x, gate_up, routing, tile), down, routing, tile, FP32)

    together = run(x)
    for row in (0, 7):
        assert torch.equal(run(x[row : row + 1])[:, 0], together[:, row])


@pytest.mark.parametrize("is_mxfp4", [False, True])
def test_tiles_change_at_powers_of_two_of_the_rows_alone(is_mxfp4):
    for count, top_k in ((128, 8), (8, 2), (256, 8), (32, 4)):
        for power in range(13):
            sizes = range((1 << power) // 2 + 1, (1 << power) + 1)
            assert len({expert_tiles(rows, top_k, count, BF16, is_mxfp4) for rows in sizes}) == 1
        most, more = (expert_tiles(rows, top_k, count, BF16, is_mxfp4) for rows in (2048, 20000))
        assert most == more


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3, 8, 64, 65, 200, 500, 1000, 3000])
@pytest.mark.parametrize(
    ("count", "top_k", "hidden", "width"), [(128, 8, 2048, 768), (8, 2, 1024, 1792), (60, 4, 2880, 1408)]
)
def test_the_tiles_of_the_table_match_the_reference(guarded, rows, count, top_k, hidden, width):
    x, (router, gate_up, down) = normal(rows, hidden, dtype=BF16, seed=1), layer(count, hidden, width, BF16)
    scores, tiles = router_scores(x, router), expert_tiles(rows, top_k, count, BF16)
    routing = route(scores, top_k, tiles.block_m, normalised=True)
    check_routing(scores.sum(0), routing, top_k, normalised=True)
    parts = experts_down(experts_hidden(x, gate_up, routing, tiles.hidden), down, routing, tiles.down, FP32)
    some = torch.arange(0, rows, max(1, rows // 16), device=DEVICE)
    expected = experts_reference(x[some], scores.sum(0)[some], gate_up, down, top_k, normalised=True)
    assert_close(parts.sum(0)[some], expected, TOLERANCE[BF16])
