"""Inputs, tolerances and guarded outputs for the kernel tests; everything a kernel must not read is poisoned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FP32, FP16, BF16)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"

# Largest absolute error for inputs of unit variance. Attention is compared with float64, the rest with the
# reference in the same dtype, where one flipped rounding of a value near 4 must pass. A GPU's exp2 and division are
# approximate in the last bits.
TOLERANCE = {
    "decode": {FP32: 1e-5 if ON_GPU else 2e-6, FP16: 2e-3, BF16: 1.6e-2},
    "extend": {FP32: 1e-5 if ON_GPU else 2e-6, FP16: 3e-3, BF16: 2.5e-2},
    "elementwise": {FP32: 5e-6, FP16: 4e-3, BF16: 3.2e-2},
}

# An entry of a page table that no kernel may follow: far outside any cache of these tests.
BAD_PAGE = 1 << 30
CANARY = 77.0
GUARD = 64


def normal(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Reproducible values of unit variance on the test's device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def norm_weight(width: int, *, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Like trained norm weights, near one: large ones would multiply a single flipped rounding."""
    return 1.0 + 0.1 * normal(width, dtype=dtype, seed=seed)


def integers(values: Sequence[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=DEVICE)


@dataclass(slots=True)
class PagedBatch:
    """A cache with shuffled pages: page 0, unused pages and the rest of last pages are NaN, unused entries wild."""

    cache: torch.Tensor
    table: torch.Tensor
    lens: torch.Tensor

    def rows(self, wanted: slice) -> "PagedBatch":
        """The same cache under fewer sequences."""
        return PagedBatch(self.cache, self.table[wanted].contiguous(), self.lens[wanted].contiguous())

    def forget(self, seq: int, length: int) -> "PagedBatch":
        """A copy in which sequence `seq` has `length` tokens and those after it are NaN again."""
        cache, lens, page = self.cache.clone(), self.lens.clone(), self.cache.shape[3]
        for token in range(length, int(lens[seq])):
            cache[self.table[seq, token // page], :, :, token % page] = float("nan")
        lens[seq] = length
        return PagedBatch(cache, self.table, lens)


def paged_batch(
    lens: Sequence[int], kv_heads: int, head_dim: int, dtype: torch.dtype, *, page: int = 16, seed: int = 0
) -> PagedBatch:
    """Sequences of the given lengths; a sequence's K/V depends on the seed and its index, its pages on the batch."""
    counts = [-(-length // page) for length in lens]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(seed)) + 1
    cache = torch.full((sum(counts) + 1, 2, kv_heads, page, head_dim), float("nan"), dtype=dtype, device=DEVICE)
    table = torch.full((len(lens), max(counts) + 1), BAD_PAGE, dtype=torch.int32)
    taken = 0
    for seq, (length, count) in enumerate(zip(lens, counts, strict=True)):
        pages = order[taken : taken + count]
        taken += count
        table[seq, :count] = pages.int()
        kv = normal(length, 2, kv_heads, head_dim, dtype=dtype, seed=1000 * seed + seq)
        for token in range(length):
            cache[int(pages[token // page]), :, :, token % page] = kv[token]
    return PagedBatch(cache, table.to(DEVICE), integers(lens))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= tolerance, f"largest error {error:.3g} exceeds {tolerance:.3g}"


def assert_within_two_roundings(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """bfloat16 results differ by at most two units in the last place, or two of those of 1 for smaller results.

    A fixed tolerance is below one rounding of results above 4."""
    error = (actual.double() - expected.double()).abs()
    allowed = 2.0**-6 * expected.double().abs().clamp(min=1.0)
    worst = (error - allowed).max().item()
    assert worst <= 0.0, f"{worst:.3g} more than two roundings"


def assert_rounded_alike(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Nearly all bits agree: the same roundings at the same buffers, which a tolerance cannot see."""
    share = (actual == expected).double().mean().item()
    assert actual.dtype == FP32 or share > 0.99, f"only {share:.1%} of the values are bit-equal"


class GuardedAllocator:
    """A replacement for torch.empty: floating outputs start as NaN between two runs of canaries."""

    def __init__(self, plain: Callable[..., torch.Tensor]) -> None:
        self._plain = plain
        self._buffers: list[torch.Tensor] = []

    def __call__(self, *shape: Any, **options: Any) -> torch.Tensor:
        inner = self._plain(*shape, **options)
        if not inner.is_floating_point():
            return inner
        buffer = self._plain(inner.numel() + 2 * GUARD, dtype=inner.dtype, device=inner.device).fill_(CANARY)
        self._buffers.append(buffer)
        return buffer[GUARD : GUARD + inner.numel()].fill_(float("nan")).view(inner.shape)

    def check(self) -> None:
        assert self._buffers, "the kernel allocated nothing through torch.empty"
        for buffer in self._buffers:
            assert (buffer[:GUARD] == CANARY).all() and (buffer[-GUARD:] == CANARY).all(), "written past the output"
