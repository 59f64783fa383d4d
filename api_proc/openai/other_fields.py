"""Fields of request bodies that no schema here has: those that would change the answer elsewhere are refused by name.

The tables name what OpenAI, vLLM and SGLang take for chat and completions. A name in none of them is accepted, and
logged the first time it comes.
"""

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, NamedTuple

import msgspec

from api_proc.server.unknown_names import UnknownNames
from quartet.wire.errors import RequestError

_NOTHING: tuple[Any, ...] = (None, False, [], {}, "", "none")
"""Values that ask for nothing, of every field that names no others."""

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    # OpenAI
    "verbosity": (("medium",), "say in the prompt how long the answer is to be"),
    "web_search_options": ((), "this server searches nothing"),
    # vLLM
    "documents": ((), "give them in chat_template_kwargs"),
    "ec_transfer_params": ((), ""),
    "include_reasoning": ((True,), ""),
    "kv_transfer_params": ((), ""),
    "logprob_token_ids": ((), "use top_logprobs"),
    "repetition_detection": ((), ""),
    "return_prompt_text": ((), "the tokenize route gives the prompt's ids"),
    "return_tokens_as_token_ids": ((), "use return_token_ids"),
    "routed_experts_prompt_start": ((0,), ""),
    "spaces_between_special_tokens": ((True,), ""),
    "thinking_token_budget": ((-1,), ""),
    "vllm_xargs": ((), ""),
    "watermarking": ((), ""),
    # SGLang
    "bootstrap_host": ((), ""),
    "bootstrap_port": ((), ""),
    "bootstrap_room": ((), ""),
    "custom_logit_processor": ((), "nothing that a client sends is executed"),
    "custom_params": ((), ""),
    "extra_key": ((), "use cache_salt"),
    "input_ids": ((), "text completions take ids"),
    "lora_path": ((), "no adapter is served"),
    "return_cached_tokens_details": ((), "usage has cached_tokens"),
    "return_hidden_states": ((), ""),
    "return_meta_info": ((), "the generate route has meta_info"),
    "return_prompt_token_ids": ((), "use return_token_ids"),
    "return_routed_experts": ((), ""),
    "routed_experts_start_len": ((0,), ""),
    "separate_reasoning": ((True,), ""),
    "session_params": ((), "send the whole prompt: its prefix is cached"),
    "stop_regex": ((), "use stop"),
    "stream_reasoning": ((True,), ""),
    "task": ((), ""),
    # Names that further servers give the thinking
    "enable_thinking": ((True,), "use chat_template_kwargs"),
    "reasoning": ((), "use reasoning_effort"),
    "thinking": ((), "use chat_template_kwargs"),
}
"""By name: values that ask for what is done anyway, where they are not those of _NOTHING, and what to do instead."""

WITHOUT_EFFECT = {
    "custom_labels": "labels of metrics",
    "data_parallel_rank": "there is one rank",
    "disagg_prefill_dp_rank": "there is one rank",
    "images_config": "for images, which are refused themselves",
    "length_penalty": "for beam search, which is refused itself",
    "max_dynamic_patch": "for images",
    "media_io_kwargs": "for images",
    "metadata": "nothing is stored",
    "min_dynamic_patch": "for images",
    "mm_processor_kwargs": "for images",
    "ngram_corpus_id": "for speculative decoding, which changes no answer",
    "prediction": "for speculative decoding",
    "prompt_cache_retention": "the prefix cache keeps what it can",
    "return_mm_kwargs": "for images",
    "return_token_offsets": "of routes that only render",
    "routed_dp_rank": "there is one rank",
    "safety_identifier": "nothing is moderated",
    "store": "nothing is stored",
    "stream_interval": "how a stream is cut is the server's",
    "truncation_side": "for truncate_prompt_tokens, which is refused itself",
    "use_audio_in_video": "for videos",
}
"""Accepted: by name, why no answer depends on it here."""


class FieldTable(NamedTuple):
    """What a route does not serve: as in REFUSED and WITHOUT_EFFECT."""

    refused: Mapping[str, tuple[tuple[Any, ...], str]]
    without_effect: Collection[str]


OPENAI = FieldTable(REFUSED, WITHOUT_EFFECT)

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def check_names(body: bytes, kind: type[msgspec.Struct], unknown: UnknownNames, table: FieldTable = OPENAI) -> None:
    """Check the names of a body that has been decoded; raises RequestError 400 for one that asks for what is not done.

    `kind` is its schema, `table` has the fields of other servers.
    """
    members: Mapping[str, msgspec.Raw] = _members(body)
    known = _names_of(kind)
    for name in members:
        if name in known:
            continue
        if name in table.refused:
            _refuse(name, msgspec.json.decode(members[name]), *table.refused[name])
        elif name not in table.without_effect:
            unknown.note(name)


@cache
def _names_of(kind: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(kind.__struct_fields__)


def _refuse(name: str, value: Any, neutral: tuple[Any, ...], instead: str) -> None:
    # A bool equals a number: 0 is no False here, nor 1 a True.
    if any(value == one and type(value) is type(one) for one in ((None, *neutral) if neutral else _NOTHING)):
        return
    advice = f": {instead}" if instead else ""
    raise RequestError(400, "unsupported_parameter", f"{name} is not supported{advice}", name)
