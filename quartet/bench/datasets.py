"""Workloads by name: token ids or texts, with the lengths that each request asks for. Reads files, sends nothing."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quartet.bench.plan import PlannedRequest
from quartet.bench.vocabulary import Vocabulary
from quartet.simulator.request import Workload
from quartet.simulator.trace import TraceError
from quartet.simulator.trace_source import NoTimesError, TraceOptions, load_trace
from quartet.wire.errors import ConfigError

Ids = NDArray[np.int32]

SHORTEST_TOKENS, LONGEST_PROMPT, LONGEST_TOTAL = 4, 1024, 2048
"""Conversations outside these lengths are left out, as in vLLM's client and in the published results with ShareGPT."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of a workload; each field is the flag of its name.

    `is_timed`: the requests are sent at times, so a trace without times needs a rate.
    """

    dataset_name: str = "random-ids"
    dataset_path: str = ""
    num_prompts: int | None = None
    seed: int = 0
    request_rate: float = math.inf
    random_input_len: int = 1024
    random_output_len: int = 128
    random_range_ratio: float = 0.0
    sharegpt_output_len: int | None = None
    gsp_num_groups: int = 64
    gsp_prompts_per_group: int = 16
    gsp_system_prompt_len: int = 2048
    gsp_question_len: int = 128
    gsp_output_len: int = 256
    gsp_ordered: bool = False
    speed: float = 1.0
    first: float = 0.0
    is_timed: bool = True


DEFAULT_PROMPTS = 1000


def make_requests(options: Options, vocabulary: Vocabulary) -> list[PlannedRequest]:
    """Return the requests of a workload; only those of a trace have times. Raises ConfigError."""
    requests = DATASETS[options.dataset_name](options, vocabulary)
    if not requests:
        raise ConfigError(f"--dataset-name {options.dataset_name} gives no request")
    return requests


def drawn_lengths(options: Options) -> tuple[list[int], list[int]]:
    """Return lengths of prompts and outputs: uniform within `random_range_ratio` of the mean, as vLLM's client draws.

    The same seed gives the same lengths there.
    """
    draw = np.random.default_rng(options.seed)
    count = options.num_prompts or DEFAULT_PROMPTS

    def lengths(mean: int) -> list[int]:
        low = max(1, math.floor(mean * (1 - options.random_range_ratio)))
        high = max(1, math.ceil(mean * (1 + options.random_range_ratio)))
        return [int(one) for one in draw.integers(low, high + 1, count)]

    return lengths(options.random_input_len), lengths(options.random_output_len)


def _random_ids(options: Options, vocabulary: Vocabulary) -> list[PlannedRequest]:
    draw = np.random.default_rng((options.seed, 1))
    pairs = zip(*drawn_lengths(options), strict=True)
    return [_planned(vocabulary.draw(draw, tokens), output) for tokens, output in pairs]


def _random(options: Options, vocabulary: Vocabulary) -> list[PlannedRequest]:
    vocabulary.require("--dataset-name random sends text")
    return as_texts(_random_ids(options, vocabulary), vocabulary)


def as_texts(requests: Sequence[PlannedRequest], vocabulary: Vocabulary) -> list[PlannedRequest]:
    """Replace token ids by text that has as many tokens, or nearly so."""
    found = []
    for request in requests:
        if request.ids:
            text, tokens = vocabulary.text_of(np.frombuffer(request.ids, np.int32))
            request = msgspec.structs.replace(request, ids=b"", text=text, input_tokens=tokens)
        found.append(request)
    return found


def _shared_prefixes(options: Options, vocabulary: Vocabulary) -> list[PlannedRequest]:
    """Make groups whose prompts share their beginning, as SGLang's client does; mixed unless `gsp_ordered`."""
    draw = np.random.default_rng((options.seed, 2))
    requests = []
    for _ in range(options.gsp_num_groups):
        shared = vocabulary.draw(draw, options.gsp_system_prompt_len)
        for _ in range(options.gsp_prompts_per_group):
            own = vocabulary.draw(draw, options.gsp_question_len)
            requests.append(_planned(np.concatenate([shared, own]), options.gsp_output_len))
    if not options.gsp_ordered:
        requests = [requests[number] for number in draw.permutation(len(requests))]
    return requests[: options.num_prompts]


def _sharegpt(options: Options, vocabulary: Vocabulary) -> list[PlannedRequest]:
    conversations = _read_conversations(_needed_path(options))
    order = np.random.default_rng(options.seed).permutation(len(conversations))
    wanted = options.num_prompts or DEFAULT_PROMPTS
    if options.sharegpt_output_len is None:
        vocabulary.require("--dataset-name sharegpt without --sharegpt-output-len counts the tokens of the answers")
    requests: list[PlannedRequest] = []
    for number in order:
        if len(requests) == wanted:
            break
        prompt, answer = conversations[number]
        tokens = vocabulary.count(prompt)
        output = options.sharegpt_output_len or vocabulary.count(answer)
        if vocabulary.has_tokenizer and (
            min(tokens, output if options.sharegpt_output_len is None else SHORTEST_TOKENS) < SHORTEST_TOKENS
            or tokens > LONGEST_PROMPT
            or tokens + output > LONGEST_TOTAL
        ):
            continue
        requests.append(PlannedRequest(text=prompt, input_tokens=tokens, output_tokens=output))
    return requests


def _read_conversations(path: Path) -> list[tuple[str, str]]:
    """Return the first message and its answer of each conversation that has both and a first message that is text."""
    try:
        entries: Any = json.loads(path.read_bytes())
        turns = [one.get("conversations") or one.get("conversation") or [] for one in entries]
        return [(two[0]["value"], two[1]["value"]) for two in turns if len(two) >= 2 and two[0]["value"].strip()]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'{path} is no ShareGPT file, a list of {{"conversations": [{{"value": ...}}, ...]}}: {error!r}'
        ) from error


def _trace(options: Options, vocabulary: Vocabulary) -> list[PlannedRequest]:
    found = _read_trace(options)
    maker = _TracePrompts(options.seed, vocabulary)
    return [
        msgspec.structs.replace(
            _planned(maker.make(one), one.output_tokens), due_s=one.arrival_s, priority=one.priority
        )
        for one in found[: options.num_prompts]
    ]


def _read_trace(options: Options) -> list[Workload]:
    path, is_rated = _needed_path(options), options.is_timed and not math.isinf(options.request_rate)
    rate = 0.0 if options.is_timed else 1.0
    wanted = TraceOptions(speed=options.speed, first_minutes=options.first, seed=options.seed, rate=rate)
    try:
        found = load_trace(path, wanted)
    except NoTimesError as error:
        if not is_rated:
            raise ConfigError(str(error).replace("--rate", "--request-rate")) from error
        return load_trace(path, msgspec.structs.replace(wanted, rate=options.request_rate))
    except TraceError as error:
        raise ConfigError(str(error)) from error
    if is_rated:
        raise ConfigError(f"{path} says when requests arrive: give --speed in place of --request-rate")
    return found


class _TracePrompts:
    """Makes prompts that share as much as a trace says: each name stands for ids drawn from it."""

    def __init__(self, seed: int, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._draw = np.random.default_rng((seed, 3))
        self._named: dict[tuple[str, int], Ids] = {}

    def make(self, request: Workload) -> Ids:
        """Return the prompt's ids; what no other request shares differs from all others."""
        if request.prompt_ids is not None:
            return np.array(request.prompt_ids, np.int32)
        shared: list[Ids] = []
        if request.page_hashes is not None:
            shared = [self._part(f"page {name}", request.page_tokens) for name in request.page_hashes]
        elif request.prefix_group is not None:
            shared = [self._part(f"group {request.prefix_group}", request.prefix_tokens)]
        own = request.input_tokens - sum(map(len, shared))
        return np.concatenate([*shared, self._vocabulary.draw(self._draw, own)])

    def _part(self, name: str, tokens: int) -> Ids:
        part = self._named.get((name, tokens))
        if part is None:
            part = self._named[name, tokens] = self._vocabulary.draw(self._draw, tokens)
        return part


def _needed_path(options: Options) -> Path:
    if not options.dataset_path:
        raise ConfigError(f"--dataset-name {options.dataset_name} needs --dataset-path FILE")
    return Path(options.dataset_path)


def _planned(ids: Ids, output_tokens: int) -> PlannedRequest:
    return PlannedRequest(ids=ids.astype("<i4").tobytes(), input_tokens=len(ids), output_tokens=output_tokens)


DATASETS: dict[str, Callable[[Options, Vocabulary], list[PlannedRequest]]] = {
    "random": _random,
    "random-ids": _random_ids,
    "sharegpt": _sharegpt,
    "generated-shared-prefix": _shared_prefixes,
    "trace": _trace,
}
