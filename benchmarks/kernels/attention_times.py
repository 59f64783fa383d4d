"""Microseconds of paged attention, launched as the worker launches it, for the models' 8 KV heads of dimension 128.

A time is the median over replays of a CUDA graph whose calls read disjoint copies of the KV: more than the L2 cache
holds.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.kernels.random_inputs import BF16, RandomInputs
from benchmarks.roofline import (
    HEAD_DIM,
    KV_HEADS,
    PEAK_BYTES_PER_S,
    PEAK_FLOPS,
    decode_gb_per_s,
    extend_flops,
    extend_tflop_per_s,
    kv_bytes,
)
from benchmarks.serving.speed_to_beat import FA3_DECODE, FA3_EXTEND, FA3_MIXED
from kernels.decode_partition import partition_decode
from kernels.paged_decode import paged_decode
from kernels.paged_extend import paged_extend, partition_extend

ROTATED_BYTES = 200 << 20
SCALE = HEAD_DIM**-0.5
PAGE_SIZE, HEADS = 16, 32


def graph_us(calls: Sequence[Callable[[], Any]]) -> float:
    """Return the median time of one call, in microseconds, inside a captured graph of all of them."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times[2:])


def copies_of(byte_count: int, most: int = 24) -> int:
    """Return how many copies of an operand of so many bytes exceed the L2 cache, from 2 to `most`."""
    return max(2, min(most, -(-ROTATED_BYTES // byte_count)))


def decode_us(
    make: RandomInputs, contexts: Sequence[int], page: int, heads: int, partition: torch.Tensor | None = None
) -> float:
    """Return the time of a decode of rows with these contexts, by `partition` or by the kernel's own."""
    batch = len(contexts)
    cache, tables = make.regions(batch, max(contexts), page, copies_of(kv_bytes(sum(contexts))))
    q, lens = make.normal(batch, heads, HEAD_DIM, dtype=BF16), make.integers(contexts)
    if partition is None:
        partition = partition_decode(lens, KV_HEADS, heads // KV_HEADS, HEAD_DIM, BF16)
    return graph_us([
        lambda t=table: paged_decode(q, cache, t, lens, SCALE, partition=partition, metadata_ready=True)
        for table in tables
    ])  # fmt: skip


def timed_decode(
    make: RandomInputs, batch: int, context: int, page: int = PAGE_SIZE, heads: int = HEADS
) -> dict[str, Any]:
    """Time a decode of rows that are alike, beside the time to read their KV once."""
    us = decode_us(make, [context] * batch, page, heads)
    return {
        "case": f"decode {batch} x {context} {heads}/{KV_HEADS} page {page}",
        "us": us,
        "floor_us": kv_bytes(batch * context) / PEAK_BYTES_PER_S * 1e6,
        "GB/s": decode_gb_per_s(batch, context, us),
        "fa3_us": FA3_DECODE.get((batch, context)),
    }


def timed_extend(
    make: RandomInputs, batch: int, new: int, cached: int, page: int = PAGE_SIZE, heads: int = HEADS
) -> dict[str, Any]:
    """Time an extend, beside the time of its multiplications at the tensor cores' peak."""
    copies = copies_of(kv_bytes(batch * (new + cached)), most=12)
    cache, tables = make.regions(batch, new + cached, page, copies)
    q = make.normal(batch * new, heads, HEAD_DIM, dtype=BF16)
    lens, cu_q = make.integers([new + cached] * batch), make.integers(range(0, batch * new + 1, new))
    plan = partition_extend(cu_q, lens, heads, KV_HEADS, HEAD_DIM, BF16, total=batch * new, max_q_len=new)
    us = graph_us([
        lambda t=table: paged_extend(q, cache, t, cu_q, lens, SCALE, max_q_len=new, partition=plan) for table in tables
    ])  # fmt: skip
    return {
        "case": f"extend {batch} x {new} on {cached} {heads}/{KV_HEADS} page {page}",
        "us": us,
        "floor_us": extend_flops(batch, new, cached, heads) / PEAK_FLOPS * 1e6,
        "TFLOP/s": extend_tflop_per_s(batch, new, cached, heads, us),
        "fa3_us": FA3_EXTEND.get((batch, new, cached, heads)),
    }


def timed_mixed(make: RandomInputs, heads: int, page: int = PAGE_SIZE) -> dict[str, Any]:
    """Time a step of 63 decodes at 1,024 tokens and a chunk of 512 on 1,024, one launch after the other."""
    chunk, rows, context = 512, 63, 1024
    cache, tables = make.regions(rows + 2, context, page, 2)
    q = make.normal(chunk + rows, heads, HEAD_DIM, dtype=BF16)
    lens, chunk_lens = make.integers([context] * rows), make.integers([context + chunk])
    cu_q, partition = make.integers([0, chunk]), partition_decode(lens, KV_HEADS, heads // KV_HEADS, HEAD_DIM, BF16)
    plan = partition_extend(cu_q, chunk_lens, heads, KV_HEADS, HEAD_DIM, BF16, total=chunk, max_q_len=chunk)
    calls = []
    for table in tables:
        own = table[rows:].reshape(1, -1)

        def call(table: torch.Tensor = table[:rows], own: torch.Tensor = own) -> None:
            paged_extend(q[:chunk], cache, own, cu_q, chunk_lens, SCALE, max_q_len=chunk, partition=plan)
            paged_decode(q[chunk:], cache, table, lens, SCALE, partition=partition, metadata_ready=True)

        calls.append(call)
    return {
        "case": f"mixed 63 decodes, 512 on 1024 {heads}/{KV_HEADS} page {page}",
        "us": graph_us(calls),
        "floor_us": kv_bytes((rows + 1) * context + chunk) / PEAK_BYTES_PER_S * 1e6,
        "fa3_us": FA3_MIXED[heads],
    }
