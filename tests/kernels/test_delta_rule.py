"""Linear attention by the gated delta rule against the rule itself, token by token in float64."""

import kernel_cases as cases
import pytest
import torch
from kernel_cases import BF16, FP16, FP32, integers, norm_weight, normal

from kernels.activation import sigmoid_mul, sigmoid_mul_reference
from kernels.delta_decode import delta_decode
from kernels.delta_prefill import delta_prefill
from kernels.delta_rule import DeltaSizes, DeltaWeights
from tests.support.delta_reference import delta_reference

SIZES = DeltaSizes(2, 4, 16, 32, 4)
UNEVEN = DeltaSizes(1, 3, 24, 40, 3)
UNUSED = 5
EPS = 1e-6
SLOTS = 4
# Of outputs of unit size; half precision rounds the operands of each product, and states carry it on.
CLOSE = {FP32: 1e-4, FP16: 2e-2, BF16: 0.12}


def weights_of(sizes, dtype):
    decay = torch.stack((0.05 + 0.1 * torch.rand(sizes.value_heads), torch.randn(sizes.value_heads)))
    conv = 0.5 * normal(sizes.width, sizes.channels, dtype=dtype, seed=1)
    return DeltaWeights(conv, decay.to(cases.DEVICE), norm_weight(sizes.value_dim, dtype=dtype, seed=2), EPS)


def inputs_of(sizes, tokens, dtype, seed):
    return normal(tokens, sizes.channels + sizes.value_heads * (sizes.value_dim + 2) + UNUSED, dtype=dtype, seed=seed)


def spoiled(sizes, dtype):
    """States of NaN: what a sequence at its start reads of them shows."""
    window = torch.full((SLOTS, sizes.width, sizes.channels), float("nan"), dtype=dtype, device=cases.DEVICE)
    return window, torch.full((SLOTS, *sizes[1:4]), float("nan"), dtype=FP32, device=cases.DEVICE)


def check(found, wanted, dtype):
    assert found.isfinite().all()
    assert (found.double() - wanted).abs().max() <= CLOSE[dtype] * wanted.abs().max().clamp(min=1.0)


def prefill(states, chunks, own, sizes, weights):
    """Run chunks (slot, start, tokens) whose inputs stand one after another in `own`; returns their outputs."""
    out = torch.full((len(own), sizes.value_heads * sizes.value_dim), 7.0, dtype=own.dtype, device=own.device)
    cu_q = integers([0, *torch.tensor([count for _, _, count in chunks]).cumsum(0).tolist()])
    contexts = integers([start + count for _, start, count in chunks])
    slots = integers([slot for slot, _, _ in chunks])
    delta_prefill(own, *states, cu_q, slots, contexts, sizes, weights, out)
    return out


def wanted_of(own, sizes, weights):
    return delta_reference(own, sizes, weights.conv, weights.decay, weights.norm, EPS)


@pytest.mark.parametrize(
    ("sizes", "cuts", "dtype"),
    [
        (UNEVEN, (66, 67), FP32),
        pytest.param(UNEVEN, (66, 67), BF16, marks=pytest.mark.slow),
        pytest.param(SIZES, (70,), FP32, marks=pytest.mark.slow),
        pytest.param(SIZES, (1, 3), BF16, marks=pytest.mark.slow),
    ],
)
def test_a_prompt_in_chunks_and_then_token_by_token(sizes, cuts, dtype):
    weights, states = weights_of(sizes, dtype), spoiled(sizes, dtype)
    total, prompt = 78, 75
    own = inputs_of(sizes, total, dtype, seed=3)
    wanted, state = wanted_of(own, sizes, weights)
    found = []
    for first, end in zip((0, *cuts), (*cuts, prompt), strict=True):
        found.append(prefill(states, [(2, first, end - first)], own[first:end], sizes, weights))
    for at in range(prompt, total):
        out = torch.empty((1, wanted.shape[1]), dtype=dtype, device=own.device)
        delta_decode(own[at : at + 1], *states, integers([2]), integers([at + 1]), sizes, weights, out)
        found.append(out)
    check(torch.cat(found), wanted, dtype)
    check(states[1][2], state, dtype)
    assert states[1][[0, 1, 3]].isnan().all() and states[0][[0, 1, 3]].isnan().all()
    newest = {at % sizes.width: own[at, : sizes.channels] for at in range(total - sizes.width, total)}
    assert all(torch.equal(states[0][2, row], kept) for row, kept in newest.items())


def test_several_chunks_and_rows_in_a_step_whose_size_the_device_knows():
    """As in a CUDA graph: chunks that are empty, rows after the last chunk, rows and tokens that are padding."""
    weights, states = weights_of(SIZES, FP32), spoiled(SIZES, FP32)
    before, rest = inputs_of(SIZES, 5, FP32, seed=4), inputs_of(SIZES, 90, FP32, seed=5)
    prefill(states, [(3, 0, 5)], before, SIZES, weights)
    own = rest.clone()
    out = torch.full((90, 128), 7.0, device=own.device)
    cu_q, slots = integers([0, 66, 66, 80, 80]), integers([1, 0, 0, 0])
    delta_prefill(own, *states, cu_q, slots, integers([66, 0, 14, 0]), SIZES, weights, out)
    rows = integers([3, 2]), integers([6, 0])
    delta_decode(own, *states, *rows, SIZES, weights, out, first_row=cu_q[4:])
    check(out[:66], wanted_of(own[:66], SIZES, weights)[0], FP32)
    check(out[66:80], wanted_of(own[66:80], SIZES, weights)[0], FP32)
    check(out[80:81], wanted_of(torch.cat((before, own[80:81])), SIZES, weights)[0][5:], FP32)
    assert (out[81:] == 7.0).all() and states[1][2].isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_equal_keys_without_decay_do_not_make_the_solution_grow(dtype):
    weights = weights_of(SIZES, dtype)
    weights.decay[0] = 0.0
    own = inputs_of(SIZES, 1, dtype, seed=6).expand(130, -1).contiguous()
    own[:, SIZES.channels + 128 :] = 8.0
    found = prefill(spoiled(SIZES, dtype), [(0, 0, 130)], own, SIZES, weights)
    check(found, wanted_of(own, SIZES, weights)[0], dtype)


def test_shapes_that_do_not_fit_are_refused():
    weights, states = weights_of(SIZES, FP32), spoiled(SIZES, FP32)
    own, one = inputs_of(SIZES, 3, FP32, seed=7), integers([1])
    out = torch.empty((3, 128), device=own.device)
    with pytest.raises(ValueError, match="projections"):
        delta_decode(own[:, :200], *states, one, one, SIZES, weights, out)
    with pytest.raises(ValueError, match="matrix"):
        delta_decode(own, states[0], states[1][:, :2], one, one, SIZES, weights, out)
    with pytest.raises(ValueError, match="conv, decay and norm"):
        delta_prefill(own, *states, one, one, one, SIZES, weights._replace(norm=weights.norm[:4]), out)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_the_gate(guarded, dtype):
    x, wide = normal(3, 1100, dtype=dtype, seed=8), normal(3, 1500, dtype=dtype, seed=9)
    expected = sigmoid_mul_reference(x, wide[:, 400:])
    torch.testing.assert_close(sigmoid_mul(x, wide[:, 400:]), expected, rtol=1e-2 if dtype == BF16 else 1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="one shape"):
        sigmoid_mul(x, wide)
