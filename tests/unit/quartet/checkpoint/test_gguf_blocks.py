"""The parts of quantised GGUF blocks stand for exactly the numbers that gguf's own dequantisation gives."""

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from quartet.checkpoint.gguf_blocks import divide_blocks
from quartet.checkpoint.quantization import GGUF_FORMS

# Where a block has its scales as half floats; random bytes there would be infinite at times.
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def random_rows(kind: str, rows: int, columns: int) -> np.ndarray:
    size, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    random = np.random.default_rng(1)
    blocks = random.integers(0, 256, (rows, columns // size, block_bytes), dtype=np.uint8)
    for at in HALVES.get(kind, (0,)):
        halves = random.normal(size=(rows, columns // size, 1)).astype(np.float16)
        blocks[..., at : at + 2] = halves.view(np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("kind", GGUF_FORMS)
def test_parts_are_the_numbers_of_the_file(kind):
    form, rows = GGUF_FORMS[kind], random_rows(kind, 3, 512)
    parts = divide_blocks(rows, kind)
    codes = parts["codes"]
    if form.bits == 4:
        runs = codes.reshape(3, -1, 16)
        codes = np.concatenate((runs & 15, runs >> 4), axis=-1).reshape(3, -1)
    numbers = codes * np.repeat(parts["scale"].astype(np.float32), form.group, 1)
    if form.has_minimum:
        numbers = numbers + np.repeat(parts["minimum"].astype(np.float32), form.group, 1)
    assert codes.shape == (3, 512) and numbers.dtype == np.float32
    assert np.array_equal(numbers, dequantize(rows, GGMLQuantizationType[kind]))
