"""Log-probabilities of tokens and of the most likely alternatives, from the raw logits.

Selects the best ids first, then computes one log-sum-exp a row, so that no [R, V] table of log-probabilities is made.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quartet.wire.frames import TokenLogprobs


@dataclass(frozen=True, slots=True)
class LogprobRows:
    """Log-probabilities of R rows on the logits' device: `own` [R] of the given ids, `best_ids` and `best` [R, K] of
    the most likely ones, in any order among equals. float32 and int64."""

    own: Tensor
    best_ids: Tensor
    best: Tensor


def logprob_rows(logits: Tensor, ids: Tensor, alternatives: int) -> LogprobRows:
    """Return log-probabilities of `ids` [R] and of `alternatives` others, from raw float32 `logits` [R, V].

    The sum is taken in float64, so that its order does not change the float32 result. Nothing waits for the device.
    """
    best = logits.topk(min(alternatives, logits.shape[1]), dim=1)
    largest = logits.amax(dim=1)
    log_sum = (logits - largest[:, None]).exp_().sum(dim=1, dtype=torch.float64).log() + largest
    own = (logits.gather(1, ids[:, None])[:, 0] - log_sum).to(torch.float32)
    return LogprobRows(own, best.indices, (best.values - log_sum[:, None]).to(torch.float32))


def row_logprobs(logits: Tensor, ids: Tensor, num_alternatives: list[int]) -> list[TokenLogprobs]:
    """Return log-probabilities of `ids` [R] and of the best ids, from raw `logits` [R, V] of any float type.

    `num_alternatives[r]` of the best are listed for row r, the lower id first among equals. Waits for the device.
    """
    rows = logprob_rows(logits.to(torch.float32), ids, max(num_alternatives))
    own, values, best_ids = rows.own.tolist(), rows.best.tolist(), rows.best_ids.tolist()
    answers = []
    for row, count in enumerate(num_alternatives):
        pairs = sorted(zip(best_ids[row], values[row], strict=True), key=lambda pair: (-pair[1], pair[0]))
        answers.append(TokenLogprobs(logprob=own[row], top=tuple(pairs[:count])))
    return answers
