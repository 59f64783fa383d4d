"""Random operands of the kernels on one device; whatever a kernel must not read is NaN or a wild page id.

Values come from torch's global generators: seed them for the same inputs again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.roofline import HEAD_DIM, KV_HEADS

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
BAD_PAGE = 1 << 30
"""An entry of a page table that no kernel may follow."""


@dataclass(frozen=True, slots=True)
class RandomInputs:
    """Makes operands on `device`."""

    device: torch.device

    def normal(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Return values of unit variance, made in place: a cache of many GB leaves no room for a wider copy."""
        return torch.empty(shape, dtype=dtype, device=self.device).normal_()

    def norm_weight(self, width: int, dtype: torch.dtype) -> torch.Tensor:
        """Return weights near one, like trained ones: large weights would multiply a single flipped rounding."""
        return 1.0 + 0.1 * self.normal(width, dtype=dtype)

    def integers(self, values: Sequence[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """Return a tensor of the values."""
        return torch.tensor(values, dtype=dtype, device=self.device)

    def paged(
        self, lens: Sequence[int], kv_heads: int, dim: int, page: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return KV cache, page table and lengths: pages shuffled, unused elements NaN, unused entries BAD_PAGE."""
        counts = [-(-length // page) for length in lens]
        pages = iter((torch.randperm(sum(counts), device=self.device) + 1).split(counts))
        shape = (sum(counts) + 1, 2, kv_heads, page, dim)
        cache = torch.full(shape, float("nan"), dtype=dtype, device=self.device)
        table = torch.full((len(lens), max(counts) + 1), BAD_PAGE, dtype=torch.int32, device=self.device)
        for seq, (length, count) in enumerate(zip(lens, counts, strict=True)):
            own = next(pages)
            kv = self.normal(count * page, 2, kv_heads, dim, dtype=dtype)
            kv[length:] = float("nan")
            cache[own] = kv.view(count, page, 2, kv_heads, dim).permute(0, 2, 3, 1, 4)
            table[seq, :count] = own.int()
        return cache, table, self.integers(lens)

    def regions(self, batch: int, context: int, page: int, copies: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return one bf16 KV cache and `copies` page tables over disjoint random pages of it."""
        width = -(-context // page)
        cache = self.normal(copies * batch * width + 1, 2, KV_HEADS, page, HEAD_DIM, dtype=BF16)
        pages = torch.randperm(copies * batch * width, device=self.device).int() + 1
        return cache, list(pages.view(copies, batch, width))


def poisoned_empty(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a torch.empty whose floating-point results are NaN, so that an element left unwritten shows."""

    def empty(*shape: Any, **options: Any) -> torch.Tensor:
        out = plain(*shape, **options)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    return empty
