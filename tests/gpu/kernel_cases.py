"""The shapes that the kernels are tested at on a GPU, and the tolerances. Imports no kernel."""

import itertools
from typing import NamedTuple

import torch

from benchmarks.kernels.random_inputs import BF16, FP16, FP32

ATTENTION_TOLERANCE = {FP32: 1e-5, FP16: 3e-3, BF16: 2.5e-2}
ROUNDING_TOLERANCE = {FP32: 5e-6, FP16: 4e-3, BF16: 3.2e-2}

MAIN, SMALL = (32, 8, 128), (9, 3, 64)
SHAPES = [MAIN, SMALL, (16, 8, 128), (8, 8, 80), (16, 1, 64), (16, 2, 256), (8, 4, 96), (4, 2, 32)]
DECODE_LENS = [[1, 17, 64, 129], [255, 256, 257, 1000, 4097, 0, 3], [20000], [33] * 300]
SPLITS = (64, None)
EXTEND_RUNS = [
    [(0, 17), (40, 9), (0, 1), (31, 33)],
    [(0, 700)],
    [(1000, 300), (0, 1), (513, 64), (63, 65), (5, 0), (2000, 1)],
    [(0, 2048)],
    [(7, 1)] * 40,
    [(8000, 16)],
    [(2048, 128), (5, 0), (3001, 7), (0, 40)],
]
"""Runs of (cached, new) tokens."""
CHUNKED_TOKENS = 1000

ROPE_SHAPES = [((9, 3, 64), False), ((16, 8, 128), True), ((32, 8, 128), False), ((8, 8, 80), True)]
"""Head shapes, and whether q and k are normed."""
NORM_WIDTHS, SILU_WIDTHS, TOKENS = (576, 1024, 4096, 5000), (1536, 14336), (1, 7, 300)


class AttentionCase(NamedTuple):
    """(query heads, KV heads, head dimension), page size, dtype."""

    shape: tuple[int, int, int]
    page: int
    dtype: torch.dtype

    def __str__(self) -> str:
        heads, kv_heads, dim = self.shape
        return f"{heads}/{kv_heads} D{dim} page {self.page} {str(self.dtype)[6:]}"


def attention_cases() -> list[AttentionCase]:
    """Return every head shape with pages of 16 in bf16; other pages and dtypes with the shapes that models have."""
    cases = [AttentionCase(shape, 16, BF16) for shape in SHAPES]
    cases += [AttentionCase(shape, page, BF16) for shape, page in itertools.product((MAIN, SMALL), (32, 64, 128))]
    cases += [AttentionCase(shape, 16, FP16) for shape in (MAIN, SMALL)]
    cases += [AttentionCase(MAIN, page, FP32) for page in (16, 64)]
    return [*cases, *(AttentionCase(shape, 16, FP32) for shape in (SMALL, (8, 8, 80)))]


def shown(values: list[object]) -> str:
    """Return a list as a test's id."""
    return str(values) if len(values) < 8 else f"{len(values)} x {values[0]}"
