"""Inputs of a step with prompt chunks on the device: chunks, decode rows, padding, page table writes."""

import pytest
import torch
from kernel_cases import integers

from kernels.prefill_inputs import prefill_inputs, prefill_inputs_reference
from kernels.step_descriptor import (
    CONTEXTS,
    ENDS,
    SAMPLE_POSITIONS,
    SAMPLE_ROWS,
    SLOTS,
    ChunkOutputs,
    StepLayout,
    unpack_step_descriptor,
    unpack_step_descriptor_reference,
)

COUNT, PAGES, PAGE, CHUNKS, ROWS, TOKENS, WRITES = 7, 40, 16, 4, 5, 200, 150
LAYOUT = StepLayout(ROWS, WRITES, CHUNKS, TOKENS)
DEVICE = integers([0]).device


def descriptor_of(chunks, rows, writes):
    """`chunks` are (slot, tokens, context after them, samples), `rows` (slot, context)."""
    descriptor = torch.full((LAYOUT.width,), -7, dtype=torch.int32)
    ids = [token for _, tokens, _, _ in chunks for token in tokens]
    sections = [LAYOUT.section(descriptor, name) for name in (SLOTS, CONTEXTS, ENDS, SAMPLE_ROWS, SAMPLE_POSITIONS)]
    for section in sections:
        section[:CHUNKS] = 0
    end = 0
    for at, (slot, tokens, context, samples) in enumerate(chunks):
        end += len(tokens)
        values = slot, context, end, (end - 1) * samples, context * samples
        for section, value in zip(sections, values, strict=True):
            section[at] = value
    sections[2][len(chunks) : CHUNKS] = end
    if rows:
        own = torch.tensor([70 + at if at % 2 else -1 for at in range(len(rows))])
        LAYOUT.set_rows(descriptor, *(torch.tensor(column) for column in zip(*rows, strict=True)), own)
    descriptor[LAYOUT.ids_at :][: len(ids)] = torch.tensor(ids, dtype=torch.int32)
    LAYOUT.set_counts(descriptor, len(rows), len(writes))
    flat = torch.tensor(writes, dtype=torch.int32).reshape(-1)
    descriptor[LAYOUT.writes_at :][: len(flat)] = flat
    return descriptor, end


def page_table():
    return torch.arange(1, 1 + COUNT * PAGES, dtype=torch.int32).view(COUNT, PAGES).clone()


def unpacked(function, ring, graph_rows, device):
    """What `function` fills for a graph of so many decode rows: counter, slots, contexts, given ids, cu_q,
    sample rows and positions, page table."""
    used = CHUNKS + graph_rows
    sequence = torch.tensor([4], dtype=torch.int32, device=device)
    slots, contexts, given, positions = torch.full((4, used), 99, dtype=torch.int32, device=device)
    rows = torch.full((used,), 99, dtype=torch.int64, device=device)
    cu_q = torch.full((CHUNKS + 1,), 99, dtype=torch.int32, device=device)
    table, chunks = page_table().to(device), ChunkOutputs(cu_q, rows, positions)
    function(LAYOUT, ring, sequence, slots, contexts, given, table, dummy_slot=COUNT - 1, chunks=chunks)
    return [sequence, slots, contexts, given, cu_q, rows, positions, table]


@pytest.mark.parametrize(
    ("chunks", "rows", "graph_rows", "writes"),
    [
        ([(2, [7, 8, 9], 3, True)], [], 0, []),
        ([(0, list(range(50, 115)), 200, False)], [(3, 33), (1, 1)], 5, [(3, 2, 999), (1, 0, 888)]),
        ([(0, [4] * 60, 60, True), (2, [6] * 20, 33, False)], [(1, 16), (3, 17), (4, 600)], 3, []),
        (
            [(at, [at] * 40, 41 + 100 * at, True) for at in range(4)],
            [(5, 30)],
            5,
            [(at // 40, at % 40, at) for at in range(150)],
        ),
    ],
)
def test_a_descriptor_becomes_the_inputs_of_its_sequences(chunks, rows, graph_rows, writes):
    descriptor, chunk_tokens = descriptor_of(chunks, rows, writes)
    ring = torch.full((3, len(descriptor)), -7, dtype=torch.int32)
    ring[2] = descriptor
    found = unpacked(unpack_step_descriptor, ring.to(DEVICE), graph_rows, DEVICE)
    expected = unpacked(unpack_step_descriptor_reference, ring, graph_rows, torch.device("cpu"))
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got.cpu(), wanted)
    sequence, slots, contexts, given, cu_q, sample_rows, sample_positions, table = found
    assert int(sequence) == 5 and int(cu_q[CHUNKS]) == chunk_tokens
    assert sample_rows[CHUNKS:][: len(rows)].tolist() == [chunk_tokens + at for at in range(len(rows))]
    assert sample_positions[CHUNKS:].tolist() == [context for _, context in rows] + [0] * (graph_rows - len(rows))
    assert [int(table[slot, at]) for slot, at, _ in writes] == [page for *_, page in writes]

    end = chunk_tokens + len(rows)
    last_token = torch.arange(1000, 1001 + COUNT, device=DEVICE)
    ids, positions, mapping = torch.full((3, 192), 99, dtype=torch.int64, device=DEVICE)
    batch_page_table = torch.full((CHUNKS + graph_rows, PAGES), -9, dtype=torch.int32, device=DEVICE)
    outs = ids, positions, mapping, batch_page_table
    prefill_inputs(LAYOUT, ring.to(DEVICE), sequence, cu_q, slots, contexts, given, table, last_token, *outs, PAGE)
    wanted = prefill_inputs_reference(LAYOUT, descriptor, table.cpu(), last_token.cpu(), 192, PAGE)
    for got, one in zip((ids, positions, mapping), wanted, strict=True):
        assert torch.equal(got.cpu(), one)
    assert (mapping[end:] == -1).all()
    sequences = [(at, slot, context) for at, (slot, _, context, _) in enumerate(chunks)]
    sequences += [(CHUNKS + at, *row) for at, row in enumerate(rows)]
    for at, slot, context in sequences:
        pages = -(-context // PAGE)
        assert torch.equal(batch_page_table[at, :pages], table[slot, :pages])
        assert (batch_page_table[at, pages:] == -9).all()
