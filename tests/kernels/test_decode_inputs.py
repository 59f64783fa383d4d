"""Inputs of a decode step on the device: the descriptor, its page table writes, padding rows, and the ring."""

import pytest
import torch
from kernel_cases import integers

from kernels.decode_inputs import decode_inputs, decode_inputs_reference
from kernels.prefix_decode import SharedPrefixes
from kernels.step_descriptor import (
    GROUP_ENDS,
    GROUP_PREFIXES,
    GROUP_SLOTS,
    MEMBERS,
    PREFIXES,
    StepLayout,
    unpack_step_descriptor,
    unpack_step_descriptor_reference,
)

COUNT, PAGES, PAGE, ROWS = 6, 300, 16, 8
LAYOUT = StepLayout(ROWS, 200)
DEVICE = integers([0]).device


def descriptor_ring(rows, writes, sequence):
    """A ring of three descriptors: that of `sequence` is filled, the others hold values that must not be read."""
    ring = torch.full((3, LAYOUT.width), -7, dtype=torch.int32)
    descriptor = ring[sequence % 3]
    LAYOUT.set_counts(descriptor, len(rows), len(writes))
    LAYOUT.set_rows(descriptor, *(torch.tensor(column) for column in zip(*rows, strict=True)), given_ids(rows))
    flat = torch.tensor(writes, dtype=torch.int32).reshape(-1)
    descriptor[LAYOUT.writes_at :][: len(flat)] = flat
    return ring.to(DEVICE)


def given_ids(rows):
    """Every other row has an id of its own."""
    return torch.tensor([70 + at if at % 2 else -1 for at in range(len(rows))])


def unpacked(function, ring, sequence, batch_size):
    counter = integers([sequence - 1])
    slots, contexts, given = torch.full((3, ROWS), 99, dtype=torch.int32, device=DEVICE)
    table = torch.arange(COUNT * PAGES, dtype=torch.int32, device=DEVICE).view(COUNT, PAGES).clone()
    rows = (tensor[:batch_size] for tensor in (slots, contexts, given))
    function(LAYOUT, ring, counter, *rows, table, dummy_slot=COUNT - 1)
    return [tensor.cpu() for tensor in (counter, slots, contexts, given, table)]


@pytest.mark.parametrize("sequence", [1, 2, 5])
@pytest.mark.parametrize(
    ("rows", "writes", "batch_size"),
    [
        ([(3, 40)], [], 1),
        ([(0, 17), (4, 1)], [(0, 1, 900), (4, 0, 901)], 4),
        ([(slot, 10 + slot) for slot in range(5)], [(at % 5, at, 5000 + at) for at in range(200)], 8),
    ],
)
def test_descriptors_are_unpacked_by_sequence_number(rows, writes, batch_size, sequence):
    ring = descriptor_ring(rows, writes, sequence)
    found = unpacked(unpack_step_descriptor, ring, sequence, batch_size)
    expected = unpacked(unpack_step_descriptor_reference, ring, sequence, batch_size)
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted)
    _, slots, contexts, given, table = found
    assert given[:batch_size].tolist() == given_ids(rows).tolist() + [-1] * (batch_size - len(rows))
    assert slots.tolist() == [slot for slot, _ in rows] + [COUNT - 1] * (batch_size - len(rows)) + [99] * (
        ROWS - batch_size
    )
    assert contexts[:batch_size].tolist() == [context for _, context in rows] + [0] * (batch_size - len(rows))
    assert [int(table[slot, at]) for slot, at, _ in writes] == [page for *_, page in writes]


def test_decode_inputs_match_the_reference():
    contexts = integers([1, 16, 17, 0, 280 * PAGE])
    slots, given = integers([2, 0, 4, 5, 1]), integers([-1, 7, -1, -1, 0])
    table = torch.randperm(COUNT * PAGES).to(torch.int32).view(COUNT, PAGES).to(DEVICE)
    last_token = torch.arange(100, 100 + COUNT, device=DEVICE)
    found, expected = [], []
    for function, outs in ((decode_inputs, found), (decode_inputs_reference, expected)):
        outs += [torch.full((5,), -9, dtype=torch.int64, device=DEVICE) for _ in range(3)]
        outs.append(torch.full((5, PAGES), -9, dtype=torch.int32, device=DEVICE))
        function(slots, contexts, given, table, last_token, *outs, PAGE)
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got.cpu(), wanted.cpu())
    ids, positions, mapping, batch_page_table = found
    assert ids.tolist() == [102, 7, 104, 105, 0]
    assert positions.tolist() == [0, 15, 16, 0, 280 * PAGE - 1]
    assert mapping[3] == -1 and mapping[2] == int(table[4, 1]) * PAGE
    assert (batch_page_table[3] == -9).all() and batch_page_table[2, :3].tolist() == [*table[4, :2].tolist(), -9]


@pytest.mark.parametrize("groups", [2, 0])
def test_groups_of_rows_are_unpacked(groups):
    ring = descriptor_ring([(3, 70), (0, 90), (4, 17), (2, 80)], [(3, 1, 900)], 1)
    descriptor = ring[1]
    LAYOUT.set_counts(descriptor, 4, 1, groups)
    groups_of = (PREFIXES, [64, 16, 0, 64]), (MEMBERS, [0, 3, 1]), (GROUP_ENDS, [2, 3]), (GROUP_PREFIXES, [64, 16])
    for name, values in (*groups_of, (GROUP_SLOTS, [3, 0])):
        LAYOUT.section(descriptor, name)[: len(values)] = integers(values if groups else [0] * len(values))
    found = []
    for function in (unpack_step_descriptor, unpack_step_descriptor_reference):
        slots, contexts, given, members, tokens = torch.full((5, 6), 99, dtype=torch.int32, device=DEVICE)
        ends, lengths, group_slots = (torch.full((count,), 99, dtype=torch.int32, device=DEVICE) for count in (5, 4, 4))
        table = torch.zeros((COUNT, PAGES), dtype=torch.int32, device=DEVICE)
        prefixes = SharedPrefixes(ends, lengths, group_slots, members, tokens)
        step = LAYOUT, ring, integers([0]), slots, contexts, given, table
        function(*step, dummy_slot=COUNT - 1, prefixes=prefixes)
        found.append([slots.tolist(), contexts.tolist(), *(tensor.tolist() for tensor in prefixes)])
    assert found[0] == found[1]
    if groups:
        assert found[0][2:] == [
            [0, 2, 3, 3, 3],
            [64, 16, 0, 0],
            [3, 0, 0, 0],
            [0, 3, 1, 0, 0, 0],
            [64, 16, 0, 64, 0, 0],
        ]


def test_inputs_of_rows_that_share_prefixes_match_the_reference():
    contexts, slots, prefixes = integers([40, 33, 17, 0]), integers([2, 0, 4, 5]), integers([32, 16, 0, 0])
    table = torch.randperm(COUNT * PAGES).to(torch.int32).view(COUNT, PAGES).to(DEVICE)
    last_token = torch.arange(100, 100 + COUNT, device=DEVICE)
    found, expected = [], []
    for function, outs in ((decode_inputs, found), (decode_inputs_reference, expected)):
        outs += [torch.full((4,), -9, dtype=torch.int64, device=DEVICE) for _ in range(3)]
        outs.append(torch.full((4, PAGES), -9, dtype=torch.int32, device=DEVICE))
        tails = integers([-9] * 4)
        function(slots, contexts, integers([-1] * 4), table, last_token, *outs, PAGE, prefixes=prefixes, tails=tails)
        outs.append(tails)
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted)
    _, positions, mapping, batch_page_table, tails = found
    assert positions.tolist() == [39, 32, 16, 0] and tails.tolist() == [8, 17, 17, 0]
    assert mapping[0] == int(table[2, 2]) * PAGE + 7
    assert batch_page_table[1, :3].tolist() == [*table[0, 1:3].tolist(), -9]
