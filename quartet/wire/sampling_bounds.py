"""The bounds of sampling parameters: for requests, and for the defaults that a model's generation_config.json sets."""

from collections.abc import Mapping

MAX_TOP_LOGPROBS = 20
"""Alternatives beside each sampled token."""

MAX_PROMPT_LOGPROBS = 1 << 17
"""Log-probabilities of one prompt: tokens times one and the number of alternatives. Some 15 MB of JSON."""

_MAX_INT32 = 2**31 - 1

SAMPLING_BOUNDS: Mapping[str, tuple[float, float, float]] = {
    "temperature": (0, 2, 1.0),
    "top_k": (-1, _MAX_INT32, 0),
    "top_p": (0, 1, 1.0),
    "min_p": (0, 1, 0.0),
    "presence_penalty": (-2, 2, 0.0),
    "frequency_penalty": (-2, 2, 0.0),
    "repetition_penalty": (0.01, 10, 1.0),
}
"""Lowest value, highest value and default of each parameter; top_p must be above its lowest value."""
