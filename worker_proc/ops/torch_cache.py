"""The paged KV cache of the torch operations: [pages, page_size, 2, Hkv, D] of a layer, in any type.

FP8 is handled as bytes, because not every operator of torch takes the type itself.
"""

import math

import numpy as np
import torch
from torch import Tensor

from worker_proc.weights.fp8 import E4M3, coded


def empty_cache(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the zeroed cache of a layer."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    # numpy gets zeroed memory from the system, which costs nothing until it is used; torch would write the zeros.
    return torch.from_numpy(np.zeros(math.prod(size) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(size)


def write_tokens(kv: Tensor, slots: Tensor, tokens: Tensor) -> None:
    """Write keys and values [T, 2 Hkv D] of tokens to their slots, rounded to the type of the cache."""
    if kv.dtype == E4M3:
        kv, tokens = kv.view(torch.uint8), coded(tokens)
    kv.view(-1, tokens.shape[1]).index_copy_(0, slots, tokens)


def read_pages(kv: Tensor, pages: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of the pages [n, page_size * 2 Hkv D] in `dtype`."""
    if kv.dtype == E4M3:
        return kv.view(torch.uint8).view(kv.shape[0], -1).index_select(0, pages).view(E4M3).to(dtype)
    return kv.view(kv.shape[0], -1).index_select(0, pages)
