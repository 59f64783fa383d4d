"""On a GPU: one capture_graphs graph serves other lengths, pages and splits, so launches do not depend on data."""

import kernel_cases as cases
import pytest
import torch
from kernel_cases import BF16, TOLERANCE, assert_close, integers, normal, paged_batch

from kernels.paged_decode import paged_decode
from kernels.paged_extend import paged_extend
from kernels.paged_reference import paged_decode_reference, paged_extend_reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not cases.ON_GPU, reason="needs a CUDA device")]
SCALE = 0.125


def capture_graphs(call):
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


def test_decode_graph_follows_the_lengths():
    batch = paged_batch([600, 130, 900, 64], 2, 64, BF16)
    full = batch.lens.clone()
    q = normal(4, 4, 64, dtype=BF16, seed=1)
    graph, out = capture_graphs(lambda: paged_decode(q, batch.cache, batch.table, batch.lens, SCALE))
    for lens in (full, integers([1, 0, 257, 64]), integers([256, 100, 512, 63])):
        batch.lens.copy_(lens)
        graph.replay()
        expected = paged_decode_reference(q.double(), batch.cache.double(), batch.table, batch.lens, SCALE)
        assert_close(out, expected, TOLERANCE["decode"][BF16])


def test_extend_graph_follows_the_runs():
    batch = paged_batch([200, 90, 40], 2, 64, BF16)
    cu_q = integers([0, 150, 151, 190])
    q = normal(192, 4, 64, dtype=BF16, seed=1)
    rest = (batch.cache, batch.table, cu_q, batch.lens, SCALE)
    graph, out = capture_graphs(lambda: paged_extend(q, *rest, max_q_len=192))
    for bounds, lens in (([0, 150, 151, 190], [200, 90, 40]), ([0, 1, 80, 80], [17, 90, 3])):
        cu_q.copy_(integers(bounds))
        batch.lens.copy_(integers(lens))
        graph.replay()
        wide = (batch.cache.double(), *rest[1:])
        expected = paged_extend_reference(q.double(), *wide, max_q_len=192)
        assert_close(out[: bounds[-1]], expected[: bounds[-1]], TOLERANCE["extend"][BF16])
