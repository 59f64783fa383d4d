"""Experts as gpt-oss has them: with biases, limited gates, and weights in MXFP4, of which every code is exact."""

from functools import cache

import ptx_words
import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import BF16, DEVICE, FP32, ON_GPU, assert_close, normal

from kernels.expert_linear import SILU, ExpertTile, Gating, experts_down, experts_hidden, experts_reference
from kernels.expert_routing import route
from kernels.expert_tiles import expert_tiles
from kernels.mxfp4 import LARGEST_SCALE, WIDEN_ASM, Mxfp4, mxfp4_numbers
from worker_proc.weights import mxfp4

TOLERANCE = {FP32: 3e-5 if ON_GPU else 3e-6, BF16: 3e-2}
LIMITED = Gating(1.702, 1.25, 1.0)


def packed(weight):
    """Return a stack [E, rows, columns] in MXFP4, and its numbers in float32."""
    codes, scales = mxfp4.quantize(weight.flatten(0, 1))
    count, rows, columns = weight.shape
    stack = Mxfp4(codes.view(count, rows, columns // 2), scales.view(count, rows, columns // 32))
    return stack, mxfp4.dequantize(codes, scales).view(weight.shape)


@triton.jit
def numbers_kernel(codes_ptr, scales_ptr, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    codes = tl.load(codes_ptr + row * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)[None, :])
    scales = tl.load(scales_ptr + row * (COLUMNS // 32) + tl.arange(0, COLUMNS // 32)[None, :])
    at = row * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(out_ptr + at, mxfp4_numbers(codes, scales, ROWS, COLUMNS, out_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_every_code_becomes_its_number_exactly(dtype):
    scales = torch.tensor([2, 3, 90, 100, 121, 126, 127, LARGEST_SCALE], dtype=torch.uint8, device=DEVICE).unsqueeze(1)
    scales = scales.repeat(1, 16).contiguous()
    codes = torch.arange(256, dtype=torch.uint8, device=DEVICE).repeat(8, 1)
    found = torch.empty((8, 512), device=DEVICE, dtype=dtype)
    numbers_kernel[(1,)](codes, scales, found, ROWS=8, COLUMNS=512)
    assert torch.equal(found.float(), mxfp4.dequantize(codes, scales))


@pytest.mark.parametrize("scale", [2, 100, 121, 127, LARGEST_SCALE])
def test_the_instructions_of_a_device_make_the_same_numbers(scale):
    power = torch.tensor((scale + 126) << 7, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    pair = ptx_words.word(power.repeat(2))
    for first in range(0, 256, 4):
        codes = torch.arange(first, first + 4, dtype=torch.uint8)
        code_word = int.from_bytes(bytes(codes.tolist()), "little")
        words = ptx_words.run(WIDEN_ASM.value, {"$4": code_word, "$5": pair, "$6": pair})
        lower, upper = (torch.cat([ptx_words.halves(words[one]) for one in pairs])
                        for pairs in (("$0", "$1"), ("$2", "$3")))  # fmt: skip
        wanted = mxfp4.dequantize(codes.repeat(1, 4), torch.full((1, 1), scale, dtype=torch.uint8))[0, :8]
        assert torch.equal(torch.stack((lower, upper), -1).flatten(), wanted.double())


@pytest.mark.parametrize("weight_first", [True, False])
@pytest.mark.parametrize("gating", [SILU, LIMITED])
def test_products_with_biases_match_the_reference(guarded, gating, weight_first):
    check_products(FP32, gating, ExpertTile(64, 64, 4, 2, weight_first), is_mxfp4=False)


@pytest.mark.parametrize(("dtype", "hidden", "width", "rows"), [(FP32, 96, 64, 9), (BF16, 64, 96, 23)])
def test_products_of_mxfp4_match_those_of_its_numbers(guarded, dtype, hidden, width, rows):
    tile = expert_tiles(rows, 3, 4, dtype, is_mxfp4=True).hidden
    check_products(dtype, LIMITED, tile, is_mxfp4=True, hidden=hidden, width=width, rows=rows)


def check_products(dtype, gating, tile, *, is_mxfp4, hidden=64, width=40, rows=9, count=4, top_k=3):
    x = normal(rows, hidden, dtype=dtype, seed=1)
    scores, router_bias = normal(1, rows, count, dtype=FP32, seed=2), normal(count, dtype=dtype, seed=3)
    gate_up = 2 * normal(count, 2 * width, hidden, dtype=dtype, seed=4) / hidden**0.5
    down = normal(count, hidden, width, dtype=dtype, seed=5) / width**0.5
    biases = normal(count, 2 * width, dtype=dtype, seed=6), normal(count, hidden, dtype=dtype, seed=7)
    held = gate_up, down
    if is_mxfp4:
        (gate_up, up_numbers), (down, down_numbers) = packed(gate_up), packed(down)
        held = up_numbers, down_numbers
    routing = route(scores, top_k, 16, normalised=True, bias=router_bias)
    h = experts_hidden(x, gate_up, routing, tile, biases[0], gating)
    parts = experts_down(h, down, routing, tile, FP32, bias=biases[1])
    expected = experts_reference(x, scores[0] + router_bias.float(), *held, top_k, True, biases, gating)
    assert_close(parts.sum(0), expected, TOLERANCE[dtype])


def test_tiles_that_do_not_fit_mxfp4_are_refused():
    gate_up, _ = packed(normal(2, 64, 64, dtype=FP32, seed=1))
    x, routing = normal(3, 64, dtype=FP32, seed=2), route(normal(1, 3, 2, dtype=FP32, seed=3), 1, 16, normalised=True)
    with pytest.raises(ValueError, match="does not fit weights in MXFP4"):
        experts_hidden(x, gate_up, routing, ExpertTile(64, 64, 4, 2, False))


@cache
def random_stack(count, rows, columns):
    return packed(torch.randn((count, rows, columns), device=DEVICE) / columns**0.5)


@pytest.mark.gpu
@pytest.mark.parametrize(("count", "width"), [(32, 2880), (128, 704)])
@pytest.mark.parametrize("rows", [1, 8, 64, 65, 500, 3000])
def test_the_shapes_of_gpt_oss_match_the_reference(rows, count, width):
    tiles, hidden, top_k = expert_tiles(rows, 4, count, BF16, is_mxfp4=True), 2880, 4
    x, scores = normal(rows, hidden, dtype=BF16, seed=1), normal(1, rows, count, dtype=FP32, seed=2)
    gate_up, up_numbers = random_stack(count, 2 * width, hidden)
    down, down_numbers = random_stack(count, hidden, width)
    biases = normal(count, 2 * width, dtype=BF16, seed=5), normal(count, hidden, dtype=BF16, seed=6)
    gating = Gating(1.702, 7.0, 1.0)
    routing = route(scores, top_k, tiles.block_m, normalised=True)
    h = experts_hidden(x, gate_up, routing, tiles.hidden, biases[0], gating)
    parts = experts_down(h, down, routing, tiles.down, FP32, bias=biases[1])
    held = up_numbers.to(BF16), down_numbers.to(BF16)
    plain_tiles = expert_tiles(rows, top_k, count, BF16)
    plain = route(scores, top_k, plain_tiles.block_m, normalised=True)
    h = experts_hidden(x, held[0], plain, plain_tiles.hidden, biases[0], gating)
    expected = experts_down(h, held[1], plain, plain_tiles.down, FP32, bias=biases[1])
    assert_close(parts.sum(0), expected.sum(0), TOLERANCE[BF16])
