"""Every kernel on a GPU against float64 or its torch reference, at the shapes that models have.

Inputs are random, what must not be read is NaN, and outputs start as NaN.
"""

import pytest
import torch

from benchmarks.kernels.random_inputs import BF16, FP16, FP32, RandomInputs, poisoned_empty
from tests.gpu.kernel_cases import (
    ATTENTION_TOLERANCE,
    CHUNKED_TOKENS,
    DECODE_LENS,
    EXTEND_RUNS,
    NORM_WIDTHS,
    ROPE_SHAPES,
    ROUNDING_TOLERANCE,
    SILU_WIDTHS,
    SPLITS,
    TOKENS,
    AttentionCase,
    attention_cases,
    shown,
)

# Without a device the tests skip; Triton must not be imported then, as tests/kernels has to switch it first.
if torch.cuda.is_available():
    from benchmarks.kernels.attention_errors import decode_error, error, extend_error, has_same_bits
    from kernels.paged_decode import paged_decode
    from kernels.paged_extend import paged_extend
    from kernels.paged_reference import paged_decode_reference, paged_extend_reference
    from kernels.rope_kv import rope_and_write_kv
    from tests.gpu.elementwise_errors import norm_error, rope_error, silu_error

pytestmark = pytest.mark.gpu
every_case = pytest.mark.parametrize("case", attention_cases(), ids=str)
every_dtype = pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=lambda dtype: str(dtype)[6:])
every_count = pytest.mark.parametrize("tokens", TOKENS)


@pytest.fixture
def make(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> RandomInputs:
    """Return inputs on the device, the same in each run; what is allocated during the test starts as NaN."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "empty", poisoned_empty(torch.empty))
    return RandomInputs(cuda)


@every_case
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("lens", DECODE_LENS, ids=shown)
def test_decode(make: RandomInputs, case: AttentionCase, lens: list[int], split: int | None) -> None:
    assert decode_error(make, *case, lens, split) <= ATTENTION_TOLERANCE[case.dtype]


@every_case
@pytest.mark.parametrize("runs", EXTEND_RUNS, ids=shown)
def test_extend(make: RandomInputs, case: AttentionCase, runs: list[tuple[int, int]]) -> None:
    assert extend_error(make, *case, runs) <= ATTENTION_TOLERANCE[case.dtype]


@every_case
def test_chunks_rows_and_reruns_have_the_same_bits(make: RandomInputs, case: AttentionCase) -> None:
    assert has_same_bits(make, *case, CHUNKED_TOKENS)


def test_pages_beyond_2_to_the_31_elements(make: RandomInputs) -> None:
    """The write, decode and extend on the last page of a cache whose offsets need 64 bits."""
    cache = torch.zeros((2**31 // (2 * 2 * 16 * 128) + 9, 2, 2, 16, 128), dtype=BF16, device=make.device)
    table, last = torch.zeros((1, 1), dtype=torch.int32, device=make.device), cache.shape[0] - 1
    table[0, 0] = last
    q, k, v = (make.normal(9, heads, 128, dtype=BF16) for heads in (4, 2, 2))
    angles = torch.zeros(16, 128, device=make.device)
    angles[:, :64] = 1.0
    positions = torch.arange(9, device=make.device)
    q = rope_and_write_kv(q, k, v, angles, positions, positions + last * 16, cache)
    near, near_table = torch.cat((cache[:1], cache[-1:])), make.integers([1]).view(1, 1)
    wide, lens, bounds = near.double(), make.integers([9]), make.integers([0, 9])
    assert torch.equal(near[1, 0, :, :9], k.transpose(0, 1))
    decode = paged_decode(q[:1], cache, table, lens, 0.1)
    extend = paged_extend(q, cache, table, bounds, lens, 0.1, max_q_len=9)
    expected = paged_extend_reference(q.double(), wide, near_table, bounds, lens, 0.1, max_q_len=9)
    assert (
        error(decode, paged_decode_reference(q[:1].double(), wide, near_table, lens, 0.1)) <= ATTENTION_TOLERANCE[BF16]
    )
    assert error(extend, expected) <= ATTENTION_TOLERANCE[BF16]


@every_dtype
@every_count
@pytest.mark.parametrize(("shape", "has_norms"), ROPE_SHAPES)
def test_rope(
    make: RandomInputs, shape: tuple[int, int, int], has_norms: bool, tokens: int, dtype: torch.dtype
) -> None:
    assert rope_error(make, shape, 16, dtype, tokens, has_norms) <= 2 * ROUNDING_TOLERANCE[dtype]


@every_dtype
@every_count
@pytest.mark.parametrize("width", NORM_WIDTHS)
def test_norms(make: RandomInputs, width: int, tokens: int, dtype: torch.dtype) -> None:
    assert norm_error(make, tokens, width, dtype) <= 2 * ROUNDING_TOLERANCE[dtype]


@every_dtype
@every_count
@pytest.mark.parametrize("width", SILU_WIDTHS)
def test_silu_mul(make: RandomInputs, width: int, tokens: int, dtype: torch.dtype) -> None:
    assert silu_error(make, tokens, width, dtype) <= 2 * ROUNDING_TOLERANCE[dtype]
