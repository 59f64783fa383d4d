"""Inputs of a step with prefill chunks on the device: sequences, padding, newest tokens, page table writes."""

import pytest
import torch
from kernel_cases import integers

from kernels.decode_inputs import HEADER
from kernels.prefill_inputs import (
    prefill_descriptor_width,
    prefill_inputs,
    prefill_inputs_reference,
    unpack_prefill_descriptor,
)

SLOTS, PAGES, PAGE, SEQS, TOKENS, WRITES = 5, 40, 16, 4, 200, 150
DEVICE = integers([0]).device


def descriptor_of(seqs, writes):
    """`seqs` are (slot, tokens, context after them, samples)."""
    descriptor = torch.full((prefill_descriptor_width(TOKENS, SEQS, WRITES),), -7, dtype=torch.int32)
    fields = torch.zeros((5, SEQS), dtype=torch.int32)
    ids, end = [], 0
    for seq, (slot, tokens, context, samples) in enumerate(seqs):
        ids += tokens
        end += len(tokens)
        fields[:3, seq] = torch.tensor([end, slot, context])
        if samples:
            fields[3:, seq] = torch.tensor([end - 1, context])
    fields[0, len(seqs) :] = end
    descriptor[:2] = torch.tensor([end, len(writes)])
    descriptor[HEADER] = 0
    descriptor[HEADER + 1 :][: 5 * SEQS] = fields.reshape(-1)
    descriptor[HEADER + 5 * SEQS + 1 :][: len(ids)] = torch.tensor(ids, dtype=torch.int32)
    flat = torch.tensor(writes, dtype=torch.int32).reshape(-1)
    descriptor[HEADER + 5 * SEQS + 1 + TOKENS :][: len(flat)] = flat
    return descriptor, fields, end


@pytest.mark.parametrize(
    ("seqs", "writes"),
    [
        ([(2, [7, 8, 9], 3, True)], []),
        ([(0, list(range(50, 115)), 200, False), (3, [-1], 33, True), (1, [5], 1, True)], [(3, 2, 999), (1, 0, 888)]),
        ([(at, [at] * 40, 41 + 100 * at, True) for at in range(4)], [(at // 40, at % 40, at) for at in range(150)]),
    ],
)
def test_a_descriptor_becomes_the_inputs_of_its_sequences(seqs, writes):
    descriptor, fields, end = descriptor_of(seqs, writes)
    ring = torch.full((3, len(descriptor)), -7, dtype=torch.int32)
    ring[2] = descriptor
    ring, sequence = ring.to(DEVICE), integers([4])
    cu_q = torch.full((SEQS + 1,), 99, dtype=torch.int32, device=DEVICE)
    slots, contexts, positions_of = torch.full((3, SEQS), 99, dtype=torch.int32, device=DEVICE)
    rows = torch.full((SEQS,), 99, dtype=torch.int64, device=DEVICE)
    table = torch.arange(1, 1 + SLOTS * PAGES, dtype=torch.int32, device=DEVICE).view(SLOTS, PAGES).clone()
    unpack_prefill_descriptor(ring, sequence, cu_q, slots, contexts, rows, positions_of, table, max_tokens=TOKENS)
    assert int(sequence) == 5
    assert cu_q.tolist() == [0, *fields[0].tolist()]
    assert [x.tolist() for x in (slots, contexts, rows, positions_of)] == fields[1:].tolist()
    expected_table = torch.arange(1, 1 + SLOTS * PAGES, dtype=torch.int32).view(SLOTS, PAGES)
    for slot, at, page in writes:
        expected_table[slot, at] = page
    assert torch.equal(table.cpu(), expected_table)

    last_token = torch.arange(1000, 1001 + SLOTS, device=DEVICE)
    ids, positions, mapping = torch.full((3, 192), 99, dtype=torch.int64, device=DEVICE)
    batch_page_table = torch.full((SEQS, PAGES), -9, dtype=torch.int32, device=DEVICE)
    outs = ids, positions, mapping, batch_page_table
    prefill_inputs(ring, sequence, cu_q, slots, contexts, table, last_token, *outs, PAGE)
    expected = prefill_inputs_reference(descriptor, SEQS, expected_table, last_token.cpu(), 192, PAGE)
    for got, wanted in zip((ids, positions, mapping), expected, strict=True):
        assert torch.equal(got.cpu(), wanted)
    assert (mapping[end:] == -1).all()
    for seq, (slot, _, context, _) in enumerate(seqs):
        pages = -(-context // PAGE)
        assert torch.equal(batch_page_table[seq, :pages].cpu(), expected_table[slot, :pages])
        assert (batch_page_table[seq, pages:] == -9).all()
