"""Checks of the kernels that make a step's inputs and sample its tokens, for tests.gpu.sanitize_kernels.

Each takes the device and returns 0.0, or infinity if anything differs from the reference.
"""

from collections.abc import Callable
from functools import partial

import torch

from kernels import decode_inputs as steps
from kernels import prefill_inputs as prompts
from kernels.decode_inputs import HEADER
from kernels.fused_sample import fused_sample, fused_sample_reference
from tests.gpu.host_operands import with_host_operands
from worker_proc.sampler.philox import exponentials

SLOTS, PAGES, PAGE, MOST_ROWS, MOST_TOKENS = 6, 300, 16, 8, 200
COLUMNS = {"temperature": 1, "key_low": 0, "key_high": 2, "is_greedy": 3}
Writes = list[tuple[int, int, int]]
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


def decode_descriptor(rows: list[tuple[int, int]], writes: Writes, bucket: int, device: torch.device) -> float:
    """Check the descriptor of a decode step of (slot, context) rows, the second of a ring."""
    ring = full(-7, 3, steps.decode_descriptor_width(MOST_ROWS, len(MANY_WRITES)))
    body, flat = ring[2], torch.tensor(writes, dtype=torch.int32).reshape(-1)
    body[:2] = ids(len(rows), len(writes))
    body[HEADER : HEADER + len(rows)] = ids(*(slot for slot, _ in rows))
    body[HEADER + MOST_ROWS :][: len(rows)] = ids(*(context for _, context in rows))
    body[HEADER + 2 * MOST_ROWS :][: len(flat)] = flat
    results = []
    for unpacked in (
        with_host_operands(steps.unpack_decode_descriptor, device),
        steps.unpack_decode_descriptor_reference,
    ):
        results.append([ids(1), full(99, MOST_ROWS), full(99, MOST_ROWS), page_table()])
        unpacked(ring, *results[-1], rows=bucket, max_rows=MOST_ROWS, dummy_slot=SLOTS - 1)
    return verdict(*results)


def decode_rows(device: torch.device) -> float:
    """Check the inputs of a decode step: page edges, a row without context, more pages than are copied at once."""
    slots, contexts = ids(2, 0, 4, 5, 1), ids(1, 16, 17, 0, 280 * PAGE)
    newest, results = torch.arange(100, 100 + SLOTS), []
    for made in (with_host_operands(steps.decode_inputs, device), steps.decode_inputs_reference):
        results.append([*(full(-9, 5, dtype=torch.int64) for _ in range(3)), full(-9, 5, PAGES)])
        made(slots, contexts, page_table(), newest, *results[-1], PAGE)
    return verdict(*results)


def prefill_descriptor(runs: list[tuple[int, list[int], int]], writes: Writes, device: torch.device) -> float:
    """Check the descriptor and inputs of a prefill step of runs (slot, tokens, context after them), with padding."""
    count = 4
    ring = full(-7, 3, prompts.prefill_descriptor_width(MOST_TOKENS, count, len(MANY_WRITES)))
    fields, tokens = full(0, 5, count), [token for _, own, _ in runs for token in own]
    for run, (slot, own, context) in enumerate(runs):
        end = int(fields[0, run - 1]) * bool(run) + len(own)
        fields[:, run] = ids(end, slot, context, end - 1, context)
    fields[0, len(runs) :] = len(tokens)
    flat = torch.tensor(writes, dtype=torch.int32).reshape(-1)
    body = ring[2]
    body[:2], body[HEADER] = ids(len(tokens), len(writes)), 0
    body[HEADER + 1 :][: fields.numel()] = fields.reshape(-1)
    body[HEADER + 1 + fields.numel() :][: len(tokens)] = ids(*tokens)
    body[HEADER + 1 + fields.numel() + MOST_TOKENS :][: len(flat)] = flat

    sequence, table, bounds, slots, contexts, positions = ids(1), page_table(), full(99, count + 1), *full(99, 3, count)
    rows = full(99, count, dtype=torch.int64)
    unpack = with_host_operands(prompts.unpack_prefill_descriptor, device)
    unpack(ring, sequence, bounds, slots, contexts, rows, positions, table, max_tokens=MOST_TOKENS)
    expected_table, newest = page_table(), torch.arange(1000, 1001 + SLOTS)
    for slot, at, page in writes:
        expected_table[slot, at] = page
    unpacked = [bounds[1:], slots, contexts, rows.int(), positions, table, sequence]

    outs = [*(full(-9, 192, dtype=torch.int64) for _ in range(3)), full(-9, count, PAGES)]
    with_host_operands(prompts.prefill_inputs, device)(
        ring, sequence, bounds, slots, contexts, table, newest, *outs, PAGE
    )
    expected = prompts.prefill_inputs_reference(body, count, expected_table, newest, 192, PAGE)
    copied = full(-9, count, PAGES)
    for run, (slot, _, context) in enumerate(runs):
        pages = -(-context // PAGE)
        copied[run, :pages] = expected_table[slot, :pages]
    return verdict([*unpacked, *outs], [*fields, expected_table, ids(2), *expected, copied])


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
    "prefill descriptor of one run": partial(prefill_descriptor, [(2, [7, 8, 9], 3)], []),
    "prefill descriptor of several runs": partial(
        prefill_descriptor, [(0, list(range(50, 115)), 200), (3, [-1], 33), (1, [5], 1)], [(3, 2, 999), (1, 0, 888)]
    ),
    "prefill descriptor with many writes": partial(
        prefill_descriptor, [(at, [at] * 40, 41 + 100 * at) for at in range(4)], MANY_WRITES
    ),
    "tokens of 96": partial(sampled_tokens, 96, torch.float32),
    "tokens of 4097": partial(sampled_tokens, 4097, torch.bfloat16),
    "tokens of 9000": partial(sampled_tokens, 9000, torch.float32),
}
