"""Reference sampling, one row at a time in float64, for the sampler's tests."""

import math

from quartet.wire.frames import SamplingParams


def adjusted(logits: list[float], params: SamplingParams, prompt: list[int], output: list[int], eos: list[int]) -> list:
    """Return the logits after bias, the mask of end tokens and penalties."""
    row = list(logits)
    for token, value in params.logit_bias:
        row[token] += value
    if len(output) < params.min_new_tokens:
        for token in (*params.stop_token_ids, *(() if params.ignore_eos else eos)):
            row[token] = -math.inf
    for token in set(prompt) | set(output):
        penalty = params.repetition_penalty
        row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    for token in set(output):
        row[token] -= params.presence_penalty + params.frequency_penalty * output.count(token)
    return row


def probabilities(logits: list[float], params: SamplingParams) -> list[float]:
    """Return the distribution that is drawn from, zero outside the support; ties at a filter's edge are all kept."""
    largest = max(logits)
    weights = [math.exp((value - largest) / params.temperature) for value in logits]
    if params.top_k > 0:
        edge = sorted(weights, reverse=True)[min(params.top_k, len(weights)) - 1]
        weights = [weight if weight >= edge else 0.0 for weight in weights]
    if params.top_p < 1.0:
        total, reached = sum(weights), 0.0
        for edge in sorted(weights, reverse=True):
            reached += edge
            if reached >= params.top_p * total:
                break
        weights = [weight if weight >= edge else 0.0 for weight in weights]
    weights = [weight if weight >= params.min_p else 0.0 for weight in weights]
    total = sum(weights)
    return [weight / total for weight in weights]
