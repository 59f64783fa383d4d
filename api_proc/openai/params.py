"""OpenAI's sampling fields -> SamplingParams: every default resolved, every bound checked before any work is done."""

from collections.abc import Callable, Mapping, Sequence

from api_proc.openai.schema import SamplingFields
from api_proc.openai.structured import check_end
from api_proc.server.errors import invalid
from quartet.wire.config import ResolvedModel
from quartet.wire.frames import Grammar, SamplingParams
from quartet.wire.sampling_bounds import SAMPLING_BOUNDS

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
    model: ResolvedModel,
    draw_seed: Callable[[], int],
    max_new_tokens: int | None,
    logprobs: int,
    grammar: Grammar | None = None,
) -> SamplingParams:
    """Return the resolved parameters of one request; raises RequestError 400 with the field at fault."""
    check_end(fields, grammar)
    numbers = _numbers(fields, model.default_sampling)
    min_tokens = fields.min_tokens or 0
    check_range("min_tokens", min_tokens, 0, MAX_INT32)
    if max_new_tokens is not None and min_tokens > max_new_tokens:
        raise invalid("min_tokens", f"min_tokens ({min_tokens}) is above the tokens asked for ({max_new_tokens})")
    seed = draw_seed() if fields.seed is None else fields.seed
    check_range("seed", seed, -MAX_INT64 - 1, MAX_INT64)
    stop_token_ids = fields.stop_token_ids or ()
    _check_stop_token_ids(stop_token_ids, model.vocab_size)
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_tokens,
        temperature=0.0 if numbers["temperature"] < GREEDY_BELOW else numbers["temperature"],
        top_k=max(0, int(numbers["top_k"])),
        top_p=numbers["top_p"],
        min_p=numbers["min_p"],
        # Downstream a seed is a non-negative 63-bit number; a negative one is folded, which keeps it a pure function.
        seed=seed & MAX_INT64,
        presence_penalty=numbers["presence_penalty"],
        frequency_penalty=numbers["frequency_penalty"],
        repetition_penalty=numbers["repetition_penalty"],
        logit_bias=_logit_bias(fields.logit_bias or {}, model.vocab_size),
        stop_token_ids=tuple(stop_token_ids),
        ignore_eos=bool(fields.ignore_eos),
        logprobs=logprobs,
        stop=_stops(fields.stop),
        include_stop_in_output=bool(fields.include_stop_str_in_output or fields.no_stop_trim),
        skip_special_tokens=fields.skip_special_tokens is not False,
        grammar=grammar,
    )


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise RequestError 400, naming the field and its bounds, unless `value` is within them."""
    # A NaN fails the comparison, so it is refused too.
    if not low <= value <= high:
        raise invalid(name, f"{name} must be between {low} and {high}")


def _numbers(fields: SamplingFields, model_defaults: Mapping[str, float]) -> dict[str, float]:
    """Return the value of each field in SAMPLING_BOUNDS, within its bounds."""
    values: dict[str, float] = {}
    for name, (low, high, default) in SAMPLING_BOUNDS.items():
        given = getattr(fields, name)
        values[name] = model_defaults.get(name, default) if given is None else given
        check_range(name, values[name], low, high)
    if values["top_p"] == 0:
        raise invalid("top_p", "top_p must be above 0; for the most likely token set temperature to 0")
    return values


def _check_stop_token_ids(ids: Sequence[int], vocab_size: int) -> None:
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise invalid("stop_token_ids", f"stop_token_ids has more than {MAX_STOP_TOKEN_IDS} entries")
    for token in ids:
        check_range("stop_token_ids", token, 0, vocab_size - 1)


def _logit_bias(given: Mapping[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    if len(given) > MAX_LOGIT_BIAS:
        raise invalid("logit_bias", f"logit_bias has more than {MAX_LOGIT_BIAS} entries")
    biases: dict[int, float] = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < vocab_size):
            raise invalid("logit_bias", f"logit_bias keys must be token ids below {vocab_size}")
        check_range("logit_bias", bias, -100, 100)
        biases[int(key)] = bias
    return tuple(biases.items())


def _stops(given: str | list[str] | None) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given or []
    if len(stops) > MAX_STOPS:
        raise invalid("stop", f"stop has more than {MAX_STOPS} strings")
    for stop in stops:
        if not 0 < len(stop.encode()) <= MAX_STOP_BYTES:
            raise invalid("stop", f"each stop string must have 1 to {MAX_STOP_BYTES} bytes")
    return tuple(stops)
