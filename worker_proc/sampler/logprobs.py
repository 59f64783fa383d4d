"""Log-probabilities of sampled tokens and of the most likely alternatives, from the raw logits.

Selects the best ids first, then computes one log-sum-exp a row, so that no [R, V] table of log-probabilities is made.
This is the only stage that waits for the device.
"""

import torch
from torch import Tensor

from quartet.wire.frames import TokenLogprobs


def row_logprobs(logits: Tensor, ids: Tensor, num_alternatives: list[int]) -> list[TokenLogprobs]:
    """Return log-probabilities of `ids` [R] and of the best ids, from raw `logits` [R, V] of any float type.

    `num_alternatives[r]` of the best are listed for row r, the lower id first among equals. The sum is taken in
    float64, so that its order does not change the float32 result.
    """
    rows = logits.to(torch.float32)
    best = rows.topk(min(max(num_alternatives), rows.shape[1]), dim=1)
    largest = rows.amax(dim=1)
    log_sum = (rows - largest[:, None]).exp_().sum(dim=1, dtype=torch.float64).log() + largest
    own = (rows.gather(1, ids[:, None])[:, 0] - log_sum).to(torch.float32).tolist()
    values = (best.values - log_sum[:, None]).to(torch.float32).tolist()
    answers = []
    for row, count in enumerate(num_alternatives):
        pairs = sorted(zip(best.indices[row].tolist(), values[row], strict=True), key=lambda pair: (-pair[1], pair[0]))
        answers.append(TokenLogprobs(logprob=own[row], top=tuple(pairs[:count])))
    return answers
