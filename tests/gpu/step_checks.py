"""Checks of the kernels that make a step's inputs and sample its tokens, for tests.gpu.sanitize_kernels.

Each takes the device and returns 0.0, or infinity if anything differs from the reference.
"""

from collections.abc import Callable
from functools import partial

import torch

from kernels.decode_inputs import decode_inputs, decode_inputs_reference
from kernels.fused_sample import fused_sample, fused_sample_reference
from kernels.prefill_inputs import prefill_inputs, prefill_inputs_reference
from kernels.step_descriptor import (
    CONTEXTS,
    ENDS,
    GIVEN,
    SAMPLE_POSITIONS,
    SAMPLE_ROWS,
    ChunkOutputs,
    StepLayout,
    unpack_step_descriptor,
    unpack_step_descriptor_reference,
)
from kernels.step_descriptor import SLOTS as SLOTS_OF
from tests.gpu.host_operands import with_host_operands
from worker_proc.sampler.philox import exponentials

SLOTS, PAGES, PAGE, MOST_ROWS, MOST_TOKENS = 6, 300, 16, 8, 200
COLUMNS = {"temperature": 1, "key_low": 0, "key_high": 2, "is_greedy": 3}
Writes = list[tuple[int, int, int]]
Sequence = tuple[int, list[int], int]
MANY_WRITES: Writes = [(at % 5, at, 5000 + at) for at in range(150)]


def full(value: int, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """Return a tensor of one value that no kernel writes."""
    return torch.full(shape, value, dtype=dtype)


def ids(*values: int) -> torch.Tensor:
    """Return int32, the dtype of slots, contexts and positions."""
    return torch.tensor(values, dtype=torch.int32)


def page_table() -> torch.Tensor:
    """Return a page table in which every entry is another page."""
    return torch.arange(1, 1 + SLOTS * PAGES, dtype=torch.int32).view(SLOTS, PAGES).clone()


def verdict(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Return 0.0 if all are equal."""
    return 0.0 if all(map(torch.equal, found, expected)) else float("inf")


def write_descriptor(layout: StepLayout, sequences: list[Sequence], rows: int, writes: Writes) -> torch.Tensor:
    """Return a ring of three whose last descriptor has these sequences, the last `rows` of them decode rows."""
    ring = full(-7, 3, layout.width)
    body, flat = ring[2], torch.tensor(writes, dtype=torch.int32).reshape(-1)
    layout.set_counts(body, rows, len(writes))
    body[layout.writes_at :][: len(flat)] = flat
    sections = [layout.section(body, name) for name in (SLOTS_OF, CONTEXTS)]
    if layout.chunks:
        sections += [layout.section(body, name) for name in (ENDS, SAMPLE_ROWS, SAMPLE_POSITIONS)]
        for section in sections:
            section[: layout.chunks] = 0
    tokens: list[int] = []
    chunks = len(sequences) - rows
    for at, (slot, own, context) in enumerate(sequences):
        tokens += own
        place = at if at < chunks else layout.chunks + at - chunks
        values = (slot, context, len(tokens), len(tokens) - 1, context)
        for section, value in zip(sections, values if at < chunks else values[:2], strict=False):
            section[place] = value
        layout.section(body, GIVEN)[place] = 70 + at if at % 2 else -1
    if layout.chunks:
        sections[2][chunks : layout.chunks] = len(tokens)
        body[layout.ids_at :][: len(tokens)] = ids(*tokens)
    return ring


def unpacked(
    layout: StepLayout, ring: torch.Tensor, bucket: int, device: torch.device
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return what kernel and reference make of a descriptor for a graph of `bucket` rows: sequence, slots, contexts,
    given ids, page table, and for chunks cu_q, sample rows and positions."""
    results = []
    for run in (with_host_operands(unpack_step_descriptor, device), unpack_step_descriptor_reference):
        count = layout.chunks + bucket
        outs = [ids(1), full(99, count), full(99, count), full(99, count), page_table()]
        chunks = None
        if layout.chunks:
            more = full(99, layout.chunks + 1), full(99, count, dtype=torch.int64), full(99, count)
            outs, chunks = [*outs, *more], ChunkOutputs(*more)
        run(layout, ring, *outs[:5], dummy_slot=SLOTS - 1, chunks=chunks)
        results.append(outs)
    return results[0], results[1]


def decode_descriptor(rows: list[tuple[int, int]], writes: Writes, bucket: int, device: torch.device) -> float:
    """Check the descriptor of a decode step of (slot, context) rows, the second of a ring."""
    layout = StepLayout(MOST_ROWS, len(MANY_WRITES))
    ring = write_descriptor(layout, [(slot, [], context) for slot, context in rows], len(rows), writes)
    return verdict(*unpacked(layout, ring, bucket, device))


def decode_rows(device: torch.device) -> float:
    """Check the inputs of a decode step: page edges, a row without context, more pages than are copied at once."""
    slots, contexts = ids(2, 0, 4, 5, 1), ids(1, 16, 17, 0, 280 * PAGE)
    newest, results = torch.arange(100, 100 + SLOTS), []
    for made in (with_host_operands(decode_inputs, device), decode_inputs_reference):
        results.append([*(full(-9, 5, dtype=torch.int64) for _ in range(3)), full(-9, 5, PAGES)])
        made(slots, contexts, ids(-1, 7, -1, -1, 0), page_table(), newest, *results[-1], PAGE)
    return verdict(*results)


def prompt_descriptor(runs: list[Sequence], rows: list[tuple[int, int]], writes: Writes, device: torch.device) -> float:
    """Check the descriptor and inputs of a step of chunks (slot, tokens, context after them) and decode rows (slot,
    context), with padding."""
    layout, bucket = StepLayout(MOST_ROWS, len(MANY_WRITES), 4, MOST_TOKENS), 6
    sequences = [*runs, *((slot, list[int](), context) for slot, context in rows)]
    ring = write_descriptor(layout, sequences, len(rows), writes)
    found, expected = unpacked(layout, ring, bucket, device)
    sequence, slots, contexts, given, table, cu_q, *_ = expected
    newest, copied = torch.arange(1000, 1001 + SLOTS), full(-9, 4 + bucket, PAGES)
    for at, (slot, context) in enumerate(zip(slots.tolist(), contexts.tolist(), strict=True)):
        pages = -(-context // PAGE)
        copied[at, :pages] = table[slot, :pages]
    outs = [*(full(-9, 192, dtype=torch.int64) for _ in range(3)), full(-9, 4 + bucket, PAGES)]
    with_host_operands(prefill_inputs, device)(
        layout, ring, sequence, cu_q, slots, contexts, given, table, newest, *outs, PAGE
    )
    inputs = prefill_inputs_reference(layout, ring[2], table, newest, 192, PAGE)
    return verdict([*found, *outs], [*expected, *inputs, copied])


def sampled_tokens(vocab_size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Check the tokens of greedy, drawn and non-finite rows; the last row is padding."""
    generator = torch.Generator().manual_seed(vocab_size)
    logits = (torch.randn((6, vocab_size), generator=generator) * 3).to(dtype)
    logits[4, vocab_size - 1] = float("nan")
    slots, positions = ids(3, 1, 0, 6, 4, 7), ids(5, 900, 12, 1, 3, 0)
    floats = torch.rand((7, 3), generator=generator, dtype=torch.float64) + 0.3
    ints = torch.randint(0, 1 << 32, (7, 5), generator=generator)
    ints[:, 3] = torch.tensor([0, 1, 0, 0, 1, 0, 0])
    newest, outputs, sequence = full(77, 8, dtype=torch.int64), full(55, 4, 8), ids(6)
    with_host_operands(fused_sample, device)(
        logits, slots, positions, floats, ints, newest, outputs, sequence, **COLUMNS
    )
    real = slots[:5].long()
    noise = exponentials(ints[real, 0], ints[real, 2], positions[:5].long(), vocab_size)
    sampled = fused_sample_reference(logits[:5], real, positions[:5], floats[:, 1], ints[:, 3], noise)
    expected_outputs, expected_newest = full(55, 4, 8), full(77, 8, dtype=torch.int64)
    expected_outputs[2, :5] = sampled.int()
    expected_newest[real] = sampled.clamp(min=0)
    return verdict([outputs, newest], [expected_outputs, expected_newest])


STEP_CHECKS: dict[str, Callable[[torch.device], float]] = {
    "decode descriptor of one row": partial(decode_descriptor, [(3, 40)], [], 1),
    "decode descriptor with padding and a write": partial(decode_descriptor, [(0, 17), (4, 1)], [(0, 1, 900)], 4),
    "decode descriptor with many writes": partial(
        decode_descriptor, [(slot, 10 + slot) for slot in range(5)], MANY_WRITES, 8
    ),
    "decode inputs": decode_rows,
    "prompt descriptor of one run": partial(prompt_descriptor, [(2, [7, 8, 9], 3)], [], []),
    "prompt descriptor with rows": partial(
        prompt_descriptor, [(0, list(range(50, 115)), 200)], [(3, 33), (1, 1)], [(3, 2, 999), (1, 0, 888)]
    ),
    "prompt descriptor with many writes": partial(
        prompt_descriptor, [(at, [at] * 40, 41 + 100 * at) for at in range(4)], [(4, 80)], MANY_WRITES
    ),
    "tokens of 96": partial(sampled_tokens, 96, torch.float32),
    "tokens of 4097": partial(sampled_tokens, 4097, torch.bfloat16),
    "tokens of 9000": partial(sampled_tokens, 9000, torch.float32),
}
