"""Greedy decoding with transformers, step by step, with the margin of each choice, for the scripts of this folder."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Greedy:
    """`ids` chosen one after another; `margins[i]` is the best logit less the second best where ids[i] was chosen.

    `first_logits` are the logits of tokens 0 to 7 where ids[0] was chosen.
    """

    ids: list[int]
    margins: list[float]
    first_logits: list[float]


@torch.inference_mode()
def continue_greedily(model, prompt_ids: list[int], new_tokens: int) -> Greedy:
    """Return `new_tokens` greedy tokens after `prompt_ids`; an end-of-sequence token does not end them."""
    ids, margins, first_logits = [], [], []
    inputs, cache = torch.tensor([prompt_ids]), None
    for _ in range(new_tokens):
        answer = model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = answer.past_key_values
        logits = answer.logits[0, -1].float()
        first_logits = first_logits or [round(value, 5) for value in logits[:8].tolist()]
        best = logits.topk(2)
        ids.append(int(logits.argmax()))
        margins.append(round(float(best.values[0] - best.values[1]), 5))
        inputs = torch.tensor([ids[-1:]])
    return Greedy(ids, margins, first_logits)
