"""The compiled kernels for the CPU against plain torch."""

import pytest
import torch

from quartet.checkpoint.attention_kinds import Heads
from quartet.checkpoint.quantization import GroupForm
from worker_proc.ops.compiled import CompiledAttention, CompiledNorm
from worker_proc.ops.grouped import GroupedLinear
from worker_proc.weights.integers import packed
from worker_proc.weights.quantized import QuantizedWeight, dequantized

FORMS = [GroupForm(4, 32, True), GroupForm(4, 128, True), GroupForm(8, 32, False), GroupForm(8, 16, True)]


def random_weight(form: GroupForm, rows: int, columns: int) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(rows)
    least, most = (0, 16) if form.bits == 4 else (-128, 128)
    codes = torch.randint(least, most, (rows, columns), generator=generator)
    codes = packed(codes) if form.bits == 4 else codes.to(torch.int8)
    names = ("scale", "minimum") if form.has_minimum else ("scale",)
    scales = {name: torch.randn(rows, columns // form.group, generator=generator) for name in names}
    return QuantizedWeight(form.kind, (rows, columns), (1, form.group), codes, scales)


def random_inputs(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


# 896 columns are the most of which eight tokens are computed at once.
@pytest.mark.parametrize("columns", [128, 1024])
@pytest.mark.parametrize("form", FORMS)
def test_linear_is_that_of_the_dequantised_weight(form, columns):
    weight = random_weight(form, 27, columns)
    numbers, linear = dequantized(weight, torch.float64), GroupedLinear(weight, None, None)
    for tokens in (1, 2, 3, 15):
        x, residual = random_inputs(tokens, columns), random_inputs(tokens, 27)
        expected = x.double() @ numbers.T
        scale = expected.abs().max()
        assert (linear(x) - expected).abs().max() < 1e-6 * scale
        assert (linear.add(x, residual) - (expected + residual)).abs().max() < 1e-6 * scale


def test_linear_adds_its_bias_and_takes_other_dtypes():
    weight, bias = random_weight(FORMS[0], 12, 64), random_inputs(12)
    x, residual = random_inputs(3, 64).bfloat16(), random_inputs(3, 12).bfloat16()
    expected = x.float() @ dequantized(weight, torch.float32).T + bias
    linear = GroupedLinear(weight, bias, None)
    assert linear(x).dtype == torch.bfloat16
    assert (
        torch.equal(linear(x), expected.bfloat16()) or (linear(x) - expected).abs().max() < 0.05 * expected.abs().max()
    )
    assert (linear.add(x, residual) - expected - residual).abs().max() < 0.05 * expected.abs().max()


def test_a_token_does_not_depend_on_the_others_nor_on_threads(monkeypatch):
    weight, x = random_weight(FORMS[0], 70, 256), random_inputs(11, 256)
    linear = GroupedLinear(weight, None, None)
    together = linear(x)
    assert torch.equal(together, torch.cat([linear(row) for row in x.split(1)]))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(together, linear(x))


@pytest.mark.parametrize("window", [0, 64])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 16), (4, 1, 256)])
def test_decode_attention_matches_softmax(heads, kv_heads, head_dim, window):
    compiled = CompiledAttention(Heads(heads, kv_heads, head_dim), 16, head_dim**-0.5)
    lengths = [1, 7, 8, 63, 64, 65, 150]
    table = torch.randint(0, 40, (len(lengths), 10), generator=torch.Generator().manual_seed(1))
    kv, wide = random_inputs(40, 16, 2, kv_heads, head_dim), random_inputs(len(lengths), 2 * heads * head_dim) * 3
    query = wide[:, : heads * head_dim]
    found = compiled.decode(query, kv, table, torch.tensor(lengths), window)
    for row, length in enumerate(lengths):
        first = max(0, length - window) if window else 0
        keys, values = kv[table[row]].reshape(-1, 2, kv_heads, head_dim)[first:length].permute(1, 2, 0, 3)
        grouped = query[row].view(kv_heads, -1, head_dim).double()
        weights = torch.softmax(grouped @ keys.double().transpose(1, 2) * head_dim**-0.5, dim=-1)
        assert torch.allclose(found[row].view(grouped.shape).double(), weights @ values.double(), atol=2e-6)


def test_norm_and_rotation_match_torch():
    compiled, x, weight = CompiledAttention(Heads(4, 2, 32), 4, 1.0), random_inputs(5, 72), random_inputs(72)
    expected = torch.nn.functional.rms_norm(x, (72,), weight, 1e-5)
    assert torch.allclose(CompiledNorm()(x, weight, 1e-5), expected, atol=1e-6)
    qkv, angles = random_inputs(3, 9 * 32)[:, : 8 * 32], random_inputs(3, 32)
    cosine, sine = angles.unsqueeze(1).chunk(2, dim=-1)
    cos, sin = torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)
    heads = qkv[:, : 6 * 32].reshape(3, 6, 32).clone()
    turned, values = heads * cos + heads.roll(16, -1) * sin, qkv[:, 6 * 32 :].clone()
    kv, slots = torch.zeros(5, 4, 2, 2, 32), torch.tensor([7, 0, 19])
    compiled.rotate_and_write(qkv, angles, kv, slots)
    assert torch.allclose(qkv[:, : 6 * 32].reshape(3, 6, 32), turned, atol=1e-6)
    written = kv.view(20, 2, 64)
    assert torch.equal(written[slots, 0], qkv[:, 4 * 32 : 6 * 32]) and torch.equal(written[slots, 1], values)
    assert written.count_nonzero() == 3 * 128
