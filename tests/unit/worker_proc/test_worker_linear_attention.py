"""Linear attention in plain torch against the recurrence, token by token in float64; and what its states may hold."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quartet.checkpoint.linear_attention import LinearSpec
from tests.support.delta_reference import delta_reference
from worker_proc.batch import ChunkBatch, DecodeBatch, ForwardBatch
from worker_proc.ops.interface import LinearState, LinearWeights, zero_states
from worker_proc.ops.torch_linear_attention import TorchLinearAttention

SPEC = LinearSpec(num_key_heads=2, num_value_heads=6, key_dim=8, value_dim=12, conv_width=4)
EPS = 1e-6
SLOTS = 5
NOTHING = torch.empty(0, dtype=torch.int64)


def weights(generator: torch.Generator) -> LinearWeights:
    decay = torch.stack((torch.rand(6, generator=generator), torch.randn(6, generator=generator)))
    conv, norm = torch.randn(4, SPEC.channels, generator=generator), torch.randn(12, generator=generator)
    return LinearWeights(conv, decay, norm, EPS)


def expected(projected: Tensor, w: LinearWeights) -> Tensor:
    sizes = SPEC.num_key_heads, SPEC.num_value_heads, SPEC.key_dim, SPEC.value_dim, SPEC.conv_width
    return delta_reference(projected, sizes, w.conv, w.decay, w.norm, w.eps)[0]


def batch(chunks: list[tuple[int, int, int]], rows: list[tuple[int, int]]) -> ForwardBatch:
    """Return a step of chunks (slot, start, length) and decode rows (slot, position)."""
    lengths, contexts = [length for _, _, length in chunks], [start + length for _, start, length in chunks]
    total, part, decode = sum(lengths), None, None
    if chunks:
        cu_q = torch.tensor([0, *lengths]).cumsum(0)
        slots = torch.tensor([slot for slot, _, _ in chunks])
        part = ChunkBatch(lengths, contexts, cu_q, torch.tensor(contexts), NOTHING, slots, total)
    if rows:
        slots, positions = (torch.tensor(column) for column in zip(*rows, strict=True))
        decode = DecodeBatch((positions + 1).numpy(), (positions + 1).int(), NOTHING, slots)
    fields = dict.fromkeys(("input_ids", "positions", "slot_mapping", "sample_rows", "sample_slots"), NOTHING)
    more = {"sample_positions": NOTHING, "host_positions": NOTHING.numpy(), "is_all_sampled": False}
    return ForwardBatch(num_tokens=total + len(rows), **fields, **more, chunks=part, decode=decode)


def spoiled() -> LinearState:
    state = zero_states(SPEC, SLOTS, torch.float32, torch.device("cpu"))
    state.window.fill_(float("nan"))
    state.matrix.fill_(float("nan"))
    return state


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3], [64], [63, 65], [5, 70, 71, 130]])
def test_two_sequences_in_chunks_and_then_token_by_token(cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(cuts))
    w, attention = weights(generator), TorchLinearAttention(SPEC)
    state = spoiled()
    prompts = {4: 140, 1: 134}
    inputs = {slot: torch.randn(n + 6, sum(SPEC.projections) + 3, generator=generator) for slot, n in prompts.items()}
    found: dict[int, list[Tensor]] = {slot: [] for slot in prompts}
    for first, end in zip([0, *cuts], [*cuts, None], strict=True):
        chunks = [(slot, first, (end or n) - first) for slot, n in prompts.items()]
        own = torch.cat([inputs[slot][first : first + length] for slot, _, length in chunks])
        out = attention(batch(chunks, []), own, state, w)
        for (slot, _, _), part in zip(chunks, out.split([length for _, _, length in chunks]), strict=True):
            found[slot].append(part)
    for step in range(6):
        rows = [(slot, n + step) for slot, n in prompts.items()]
        out = attention(batch([], rows), torch.stack([inputs[slot][at] for slot, at in rows]), state, w)
        for slot, part in zip(prompts, out.split(1), strict=True):
            found[slot].append(part)
    for slot, own in inputs.items():
        torch.testing.assert_close(torch.cat(found[slot]).double(), expected(own, w), rtol=2e-4, atol=2e-4)


def test_a_chunk_beside_decode_rows_gives_what_each_gives_alone() -> None:
    generator = torch.Generator().manual_seed(7)
    w, attention = weights(generator), TorchLinearAttention(SPEC)
    projected = torch.randn(20, sum(SPEC.projections) + 3, generator=generator)
    state = spoiled()
    attention(batch([(2, 0, 9)], []), projected[:9], state, w)
    beside = LinearState(state.window.clone(), state.matrix.clone())
    together = attention(batch([(0, 0, 10)], [(2, 9)]), projected[9:], beside, w)
    alone = [attention(batch([(0, 0, 10)], []), projected[9:19], state, w)]
    alone.append(attention(batch([], [(2, 9)]), projected[19:], state, w))
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(replace(beside, matrix=beside.matrix[[0, 2]]).matrix, state.matrix[[0, 2]])


def test_a_state_is_that_of_its_slot_alone() -> None:
    generator = torch.Generator().manual_seed(8)
    w, attention = weights(generator), TorchLinearAttention(SPEC)
    state = spoiled()
    attention(batch([(3, 0, 70)], []), torch.randn(70, sum(SPEC.projections) + 3, generator=generator), state, w)
    touched = state.matrix.isfinite().all(-1).all(-1).all(-1)
    assert touched.tolist() == [False, False, False, True, False]


def test_equal_keys_do_not_make_the_solution_grow() -> None:
    """All tokens alike: powers of the system would grow without bound, its solution does not."""
    w, attention = weights(torch.Generator().manual_seed(9)), TorchLinearAttention(SPEC)
    one = torch.randn(1, sum(SPEC.projections) + 3, generator=torch.Generator().manual_seed(10))
    out = attention(batch([(0, 0, 200)], []), one.expand(200, -1), spoiled(), w)
    torch.testing.assert_close(out.double(), expected(one.expand(200, -1), w), rtol=2e-4, atol=2e-4)
