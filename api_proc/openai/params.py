"""OpenAI's sampling fields -> SamplingParams: every default resolved, every bound checked before any work is done."""

import math
from collections.abc import Callable, Mapping

from api_proc.openai.schema import SamplingFields
from api_proc.server.errors import invalid
from quartet.wire.frames import SamplingParams

MAX_N = 16
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKEN_IDS = 256
MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
GREEDY_BELOW = 1e-4
"""A positive temperature below this would overflow the scaled logits, and picks the best token anyway."""


def sampling_params(
    fields: SamplingFields,
    *,
    max_new_tokens: int | None,
    logprobs: int,
    defaults: Mapping[str, float],
    vocab_size: int,
    draw_seed: Callable[[], int],
) -> SamplingParams:
    """Return the resolved parameters of one request.

    `max_new_tokens` and `logprobs` are read by the route, where chat and completions differ. `defaults` are the
    model's own (generation_config.json). Raises RequestError 400 with the field at fault.
    """

    def number(name: str, given: float | None, low: float, high: float, fallback: float) -> float:
        return _between(name, defaults.get(name, fallback) if given is None else given, low, high)

    temperature = number("temperature", fields.temperature, 0.0, 2.0, 1.0)
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        min_new_tokens=_min_tokens(fields.min_tokens, max_new_tokens),
        temperature=0.0 if temperature < GREEDY_BELOW else temperature,
        top_k=_top_k(fields.top_k, defaults),
        top_p=_top_p(number("top_p", fields.top_p, 0.0, 1.0, 1.0)),
        min_p=number("min_p", fields.min_p, 0.0, 1.0, 0.0),
        seed=_seed(fields.seed, draw_seed),
        presence_penalty=number("presence_penalty", fields.presence_penalty, -2.0, 2.0, 0.0),
        frequency_penalty=number("frequency_penalty", fields.frequency_penalty, -2.0, 2.0, 0.0),
        repetition_penalty=number("repetition_penalty", fields.repetition_penalty, 0.01, 10.0, 1.0),
        logit_bias=_logit_bias(fields.logit_bias, vocab_size),
        stop_token_ids=_stop_token_ids(fields.stop_token_ids, vocab_size),
        ignore_eos=bool(fields.ignore_eos),
        logprobs=logprobs,
        stop=_stops(fields.stop),
        include_stop_in_output=bool(fields.include_stop_str_in_output),
        skip_special_tokens=fields.skip_special_tokens is not False,
    )


def choices_wanted(n: int | None) -> int:
    """Return `n`, by default 1; raises RequestError 400 out of 1 to MAX_N."""
    return whole("n", 1 if n is None else n, 1, MAX_N)


def whole(name: str, value: int, low: int, high: int) -> int:
    """Return `value`; raises RequestError 400 naming the field and its bounds."""
    if not low <= value <= high:
        raise invalid(name, f"{name} must be between {low} and {high}")
    return value


def _between(name: str, value: float, low: float, high: float) -> float:
    # A NaN fails both comparisons, so it is refused here too.
    if not (math.isfinite(value) and low <= value <= high):
        raise invalid(name, f"{name} must be between {low:g} and {high:g}")
    return float(value)


def _min_tokens(given: int | None, max_new_tokens: int | None) -> int:
    value = whole("min_tokens", given or 0, 0, MAX_INT32)
    if max_new_tokens is not None and value > max_new_tokens:
        raise invalid("min_tokens", f"min_tokens ({value}) is above the tokens asked for ({max_new_tokens})")
    return value


def _top_k(given: int | None, defaults: Mapping[str, float]) -> int:
    value = int(defaults.get("top_k", 0)) if given is None else given
    return max(0, whole("top_k", value, -1, MAX_INT32))


def _top_p(value: float) -> float:
    if value == 0.0:
        raise invalid("top_p", "top_p must be above 0; for the most likely token set temperature to 0")
    return value


def _seed(given: int | None, draw_seed: Callable[[], int]) -> int:
    if given is None:
        return draw_seed()
    # Downstream a seed is a non-negative 63-bit number; a negative one is folded, which keeps it a pure function.
    return whole("seed", given, -MAX_INT64 - 1, MAX_INT64) & MAX_INT64


def _logit_bias(given: Mapping[str, float] | None, vocab_size: int) -> tuple[tuple[int, float], ...]:
    if not given:
        return ()
    if len(given) > MAX_LOGIT_BIAS:
        raise invalid("logit_bias", f"logit_bias has more than {MAX_LOGIT_BIAS} entries")
    pairs: dict[int, float] = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < vocab_size):
            raise invalid("logit_bias", f"logit_bias keys must be token ids below {vocab_size}")
        pairs[int(key)] = _between("logit_bias", bias, -100.0, 100.0)
    return tuple(pairs.items())


def _stop_token_ids(given: list[int] | None, vocab_size: int) -> tuple[int, ...]:
    ids = given or []
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise invalid("stop_token_ids", f"stop_token_ids has more than {MAX_STOP_TOKEN_IDS} entries")
    return tuple(whole("stop_token_ids", one, 0, vocab_size - 1) for one in ids)


def _stops(given: str | list[str] | None) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given or []
    if len(stops) > MAX_STOPS:
        raise invalid("stop", f"stop has more than {MAX_STOPS} strings")
    for stop in stops:
        if not stop or len(stop.encode()) > MAX_STOP_BYTES:
            raise invalid("stop", f"each stop string must have 1 to {MAX_STOP_BYTES} bytes")
    return tuple(stops)
