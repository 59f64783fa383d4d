"""A prompt step's inputs on the device: runs, padding, newest tokens, page table writes."""

import pytest
import torch
from kernel_cases import integers

from kernels.prompt_inputs import open_prompt_letter, prompt_inputs, prompt_inputs_reference, prompt_letter_width
from kernels.step_inputs import HEADER

SLOTS, PAGES, PAGE, RUNS, TOKENS, WRITES = 5, 40, 16, 4, 200, 150
DEVICE = integers([0]).device


def letter_of(runs, writes):
    """`runs` are (slot, tokens, context after them, samples)."""
    letter = torch.full((prompt_letter_width(TOKENS, RUNS, WRITES),), -7, dtype=torch.int32)
    fields = torch.zeros((5, RUNS), dtype=torch.int32)
    ids, end = [], 0
    for run, (slot, tokens, context, samples) in enumerate(runs):
        ids += tokens
        end += len(tokens)
        fields[:3, run] = torch.tensor([end, slot, context])
        if samples:
            fields[3:, run] = torch.tensor([end - 1, context])
    fields[0, len(runs) :] = end
    letter[:2] = torch.tensor([end, len(writes)])
    letter[HEADER] = 0
    letter[HEADER + 1 :][: 5 * RUNS] = fields.reshape(-1)
    letter[HEADER + 5 * RUNS + 1 :][: len(ids)] = torch.tensor(ids, dtype=torch.int32)
    flat = torch.tensor(writes, dtype=torch.int32).reshape(-1)
    letter[HEADER + 5 * RUNS + 1 + TOKENS :][: len(flat)] = flat
    return letter, fields, end


@pytest.mark.parametrize(
    ("runs", "writes"),
    [
        ([(2, [7, 8, 9], 3, True)], []),
        ([(0, list(range(50, 115)), 200, False), (3, [-1], 33, True), (1, [5], 1, True)], [(3, 2, 999), (1, 0, 888)]),
        ([(at, [at] * 40, 41 + 100 * at, True) for at in range(4)], [(at // 40, at % 40, at) for at in range(150)]),
    ],
)
def test_a_letter_becomes_the_inputs_of_its_runs(runs, writes):
    letter, fields, end = letter_of(runs, writes)
    ring = torch.full((3, len(letter)), -7, dtype=torch.int32)
    ring[2] = letter
    ring, turn = ring.to(DEVICE), integers([4])
    bounds = torch.full((RUNS + 1,), 99, dtype=torch.int32, device=DEVICE)
    slots, contexts, positions_of = torch.full((3, RUNS), 99, dtype=torch.int32, device=DEVICE)
    rows = torch.full((RUNS,), 99, dtype=torch.int64, device=DEVICE)
    table = torch.arange(1, 1 + SLOTS * PAGES, dtype=torch.int32, device=DEVICE).view(SLOTS, PAGES).clone()
    open_prompt_letter(ring, turn, bounds, slots, contexts, rows, positions_of, table, max_tokens=TOKENS)
    assert int(turn) == 5
    assert bounds.tolist() == [0, *fields[0].tolist()]
    assert [x.tolist() for x in (slots, contexts, rows, positions_of)] == fields[1:].tolist()
    expected_table = torch.arange(1, 1 + SLOTS * PAGES, dtype=torch.int32).view(SLOTS, PAGES)
    for slot, at, page in writes:
        expected_table[slot, at] = page
    assert torch.equal(table.cpu(), expected_table)

    last_token = torch.arange(1000, 1001 + SLOTS, device=DEVICE)
    ids, positions, mapping = torch.full((3, 192), 99, dtype=torch.int64, device=DEVICE)
    rows_table = torch.full((RUNS, PAGES), -9, dtype=torch.int32, device=DEVICE)
    outs = ids, positions, mapping, rows_table
    prompt_inputs(ring, turn, bounds, slots, contexts, table, last_token, *outs, PAGE)
    expected = prompt_inputs_reference(letter, RUNS, expected_table, last_token.cpu(), 192, PAGE)
    for got, wanted in zip((ids, positions, mapping), expected, strict=True):
        assert torch.equal(got.cpu(), wanted)
    assert (mapping[end:] == -1).all()
    for run, (slot, _, context, _) in enumerate(runs):
        pages = -(-context // PAGE)
        assert torch.equal(rows_table[run, :pages].cpu(), expected_table[slot, :pages])
        assert (rows_table[run, pages:] == -9).all()
