"""The figures that GPU results are compared with: vLLM 0.24.0 on one H100, the goals, and arithmetic bounds.

Measured with bf16, random weights, prompts as token ids. The floor of a decode step is the bytes that it must read over
the measured read rate of benchmarks/roofline.py; the roofline of the nano workload adds its prefill at the measured
matrix rate, without overlap. Where vLLM was measured more than once, the figure is the mean; its attention is
FlashAttention-3 unless a name says Triton.
"""

from typing import NamedTuple


class Decode(NamedTuple):
    """Milliseconds of a decode step at contexts of 960 to 1,120 tokens."""

    vllm: float
    goal: float
    floor: float


DECODE = {
    "qwen3-0.6b": {
        1: Decode(2.27, 1.2, 0.43),
        8: Decode(2.17, 1.4, 0.70),
        32: Decode(3.11, 2.3, 1.64),
        64: Decode(4.49, 3.7, 2.90),
        128: Decode(7.19, 6.5, 5.41),
        256: Decode(12.44, 12.0, 10.43),
    },
    "llama-3.1-8b": {
        1: Decode(6.60, 6.2, 4.93),
        8: Decode(6.99, 6.6, 5.25),
        32: Decode(8.25, 7.9, 6.32),
        64: Decode(9.93, 9.4, 7.76),
        128: Decode(13.49, 12.8, 10.63),
        256: Decode(20.84, 20.0, 16.37),
    },
}


class Throughput(NamedTuple):
    """Output tokens a second; None where there is no such figure."""

    vllm: float | None
    goal: float | None
    roofline: float | None


# By model, then by the workload's name in the plots.
NANO, NANO_HTTP, TEN_GROUPS, ONE_GROUP = "nano", "nano over HTTP", "prefix, 10 groups", "prefix, 1 group"
THROUGHPUT = {
    "qwen3-0.6b": {
        NANO: Throughput(18164, 18500, 26300),
        NANO_HTTP: Throughput(None, None, 26300),
        TEN_GROUPS: Throughput(10762, None, None),
        ONE_GROUP: Throughput(12903, None, None),
    },
    "llama-3.1-8b": {
        NANO: Throughput(8067, 8100, 10400),
        NANO_HTTP: Throughput(None, None, 10400),
        TEN_GROUPS: Throughput(4824, 4900, None),
        ONE_GROUP: Throughput(6161, 6200, None),
    },
}

# Milliseconds to the first token of one request alone, by prompt tokens. vLLM's 512 was measured on another machine of
# the same kind with its default engine, the rest with a context limit of 20,480 and no prefix cache.
FIRST_TOKEN_VLLM = {
    "qwen3-0.6b": {128: 15.6, 512: 14.9, 1024: 37.3, 4096: 38.6, 16384: 93.6},
    "llama-3.1-8b": {128: 18.9, 512: 16.8, 1024: 35.3, 4096: 104.8, 16384: 491.0},
}
FIRST_TOKEN_GOAL = {
    "qwen3-0.6b": {128: 7.0, 256: 7.0, 512: 7.0, 1024: 9.0, 4096: 24.0, 16384: 95.0},
    "llama-3.1-8b": {128: 14.0, 256: 14.0, 512: 14.0, 1024: 30.0, 4096: 107.0, 16384: 520.0},
}

# Microseconds of one attention call, page 16, 8 KV heads, head dimension 128. Decode by (batch, context); rows of 16
# and 32 query heads take the same time. Extend by (batch, new tokens, cached tokens, query heads). Mixed, by query
# heads, is a step of 63 decodes at 1,024 tokens and a chunk of 512 on 1,024.
FA3_DECODE = {
    (1, 1024): 10.6, (8, 1024): 20.9, (64, 1024): 101.8, (256, 1024): 372.3,
    (1, 4096): 15.2, (8, 4096): 55.7, (64, 4096): 360.9, (256, 4096): 1407.0,
    (1, 16384): 34.0, (8, 16384): 187.8, (64, 16384): 1411.0, (256, 16384): 5598.0,
}  # fmt: skip
TRITON_DECODE = {
    (1, 1024): 10.0, (8, 1024): 24.5, (64, 1024): 97.3, (256, 1024): 373.8,
    (1, 4096): 25.1, (8, 4096): 70.5, (64, 4096): 363.3, (256, 4096): 1444.0,
    (1, 16384): 84.0, (8, 16384): 241.0, (64, 16384): 1429.0, (256, 16384): 5720.0,
}  # fmt: skip
FA3_EXTEND = {
    (1, 4096, 0, 32): 261.6, (1, 16384, 0, 32): 3659.0, (8, 1024, 0, 32): 170.2, (1, 512, 8192, 32): 120.9,
    (1, 4096, 0, 16): 127.0, (1, 16384, 0, 16): 1893.0, (8, 1024, 0, 16): 98.3, (1, 512, 8192, 16): 70.5,
}  # fmt: skip
TRITON_EXTEND = {
    (1, 4096, 0, 32): 1916.0, (1, 16384, 0, 32): 28847.0, (8, 1024, 0, 32): 1029.0, (1, 512, 8192, 32): 1020.0,
    (1, 4096, 0, 16): 1036.0, (1, 16384, 0, 16): 14624.0, (8, 1024, 0, 16): 532.0, (1, 512, 8192, 16): 507.0,
}  # fmt: skip
FA3_MIXED = {32: 125.1, 16: 126.8}
