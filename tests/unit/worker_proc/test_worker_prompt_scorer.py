"""Log-probabilities of prompts against a dense float64 forward: whole, in chunks, beside other rows, in blocks."""

import math
from array import array

import pytest
import torch
from dense_decoder import dense_logits
from step_feeder import StepFeeder
from tiny_models import TINY, MakeRunner, make_weights

from quartet.wire.frames import Chunk, PromptLogprobs, SamplingParams, ScoredChunk, StepResult, unpack_ids
from worker_proc import prompt_scorer

SCORED = SamplingParams(temperature=0.0, prompt_logprobs=3)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def floats(data: bytes) -> list[float]:
    return array("f", data).tolist()


def check(chunks: list[ScoredChunk], weights: dict[str, torch.Tensor], ids: list[int], generation: int = 100) -> None:
    """The chunks have every token but the first, once and in order, and each number is the reference's."""
    logprobs = dense_logits(TINY, weights, ids).log_softmax(-1)
    position = 0
    for chunk in chunks:
        assert (chunk.generation, chunk.start) == (generation, position)
        columns = chunk.logprobs
        top = list(zip(unpack_ids(columns.top_ids), floats(columns.top_logprobs), strict=True))
        for row, (own, rank) in enumerate(zip(floats(columns.logprobs), unpack_ids(columns.ranks), strict=True)):
            expected = logprobs[position]
            assert math.isclose(own, expected[ids[position + 1]], abs_tol=1e-4)
            assert rank == 1 + int((expected > expected[ids[position + 1]]).sum())
            best = expected.topk(3)
            assert [token for token, _ in top[3 * row : 3 * row + 3]] == best.indices.tolist()
            assert all(
                math.isclose(value, wanted, abs_tol=1e-4)
                for (_, value), wanted in zip(top[3 * row : 3 * row + 3], best.values.tolist(), strict=True)
            )
            position += 1
    assert position == len(ids) - 1


@pytest.mark.parametrize("cuts", [[], [1], [33], [16, 32], [39], [7, 8, 39]])
def test_the_last_row_of_a_chunk_is_for_the_first_token_of_the_next(make_runner: MakeRunner, cuts: list[int]) -> None:
    weights, ids = make_weights(TINY), prompt(40)
    feeder = StepFeeder(make_runner(TINY, weights))
    found, starts = list[ScoredChunk](), [0, *cuts]
    for start, end in zip(starts, [*cuts, 40], strict=True):
        enter = [feeder.enter(0, ids, 4, SCORED)] if not start else []
        found += feeder.step(enter, [Chunk(0, end - start, end == 40)]).scored
    check(found, weights, ids)
    assert not feeder.step().scored, "a decode step scores nothing"


def test_chunks_of_one_step_and_decode_rows_do_not_mix(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_scorer, "BLOCK_ELEMENTS", 5 * TINY["vocab_size"])
    weights = make_weights(TINY)
    feeder = StepFeeder(make_runner(TINY, weights))
    first, plain, second = prompt(21, 1), prompt(9, 2), prompt(13, 3)
    feeder.step([feeder.enter(0, prompt(6, 4), 4)], [Chunk(0, 6, True)])
    entering = [feeder.enter(1, first, 4, SCORED), feeder.enter(2, plain, 4), feeder.enter(3, second, 4, SCORED)]
    result = feeder.step(entering, [Chunk(1, 21, True), Chunk(2, 9, True), Chunk(3, 13, True)])
    assert len(unpack_ids(result.ids)) == 4 and [one.generation for one in result.scored] == [101, 103]
    check(result.scored[:1], weights, first, 101)
    check(result.scored[1:], weights, second, 103)


def test_resumed_output_is_not_scored_nor_the_token_after_a_lone_one(make_runner: MakeRunner) -> None:
    weights, ids = make_weights(TINY), prompt(20)
    feeder = StepFeeder(make_runner(TINY, weights))
    result = feeder.step([feeder.enter(0, ids, 4, SCORED, prompt_length=12)], [Chunk(0, 20, True)])
    check(result.scored, weights, ids[:12])
    result = feeder.step([feeder.enter(1, ids[:1], 4, SCORED)], [Chunk(1, 1, True)])
    assert result.scored == [ScoredChunk(101, 0, PromptLogprobs(b"", b"", b"", b""))]


def test_without_alternatives_there_are_log_probabilities_and_ranks(make_runner: MakeRunner) -> None:
    feeder, ids = StepFeeder(make_runner(TINY, make_weights(TINY))), prompt(20)
    params = SamplingParams(prompt_logprobs=0)
    result: StepResult = feeder.step([feeder.enter(0, ids, 4, params)], [Chunk(0, 20, True)])
    (columns,) = [chunk.logprobs for chunk in result.scored]
    assert (len(floats(columns.logprobs)), len(columns.ranks), columns.top_ids) == (19, 4 * 19, b"")
