"""The body of POST /generate, SGLang's native route, and what of it this server does not serve."""

from typing import Any

import msgspec

from api_proc.openai.other_fields import FieldTable
from api_proc.openai.schema import SamplingFields


class NativeSampling(msgspec.Struct, kw_only=True):
    """`sampling_params`: how one prompt, or each, is continued; SGLang's names."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    sampling_seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    no_stop_trim: bool | None = None
    skip_special_tokens: bool | None = None
    json_schema: Any = None
    regex: Any = None
    ebnf: Any = None


class GenerateBody(msgspec.Struct, kw_only=True):
    """Body of POST /generate. Lists are batches; `sampling_params` and `rid` may have one entry for each prompt."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: Any = None
    stream: bool | None = None
    rid: str | list[str] | None = None
    return_logprob: bool | list[bool] | None = None
    top_logprobs_num: int | list[int] | None = None
    logprob_start_len: int | list[int] | None = None
    return_text_in_logprobs: bool | None = None
    model: str | None = None
    priority: int | None = None
    routing_key: str | None = None
    session_id: str | None = None
    cache_salt: str | None = None
    timeout: float | None = None
    first_token_timeout: float | None = None


NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}
"""Names that OpenAI's routes have otherwise."""

IN_BODY = FieldTable(
    refused=dict.fromkeys(
        (
            "bootstrap_host",
            "bootstrap_port",
            "bootstrap_room",
            "custom_logit_processor",
            "input_embeds",
            "kv_router_hint",
            "lora_id",
            "max_thinking_tokens",
            "mm_content_hashes",
            "mm_hashes",
            "multi_item_delimiter_indices",
            "positional_embed_overrides",
            "require_reasoning",
            "return_bytes",
            "return_entropy",
            "return_flat_raw_top_logprobs",
            "return_flat_raw_top_logprobs_b64",
            "return_hidden_states",
            "return_indexer_topk",
            "return_prompt_token_ids",
            "return_routed_experts",
            "return_sampling_mask",
            "token_ids_logprob",
        ),
        ((), ""),
    )
    | {
        "audio_data": ((), "this server reads text alone"),
        "background": ((), "send the request on a stream that is kept"),
        "extra_key": ((), "use cache_salt"),
        "image_data": ((), "this server reads text alone"),
        "lora_path": ((), "no adapter is served"),
        "routed_experts_start_len": ((0,), ""),
        "session_params": ((), "send the whole prompt: its prefix is cached"),
        "video_data": ((), "this server reads text alone"),
    },
    without_effect=frozenset(
        (
            "conversation_id",
            "custom_labels",
            "data_parallel_rank",
            "decode_tp_size",
            "disagg_prefill_dp_rank",
            "external_trace_header",
            "image_max_dynamic_patch",
            "images_config",
            "log_metrics",
            "max_dynamic_patch",
            "min_dynamic_patch",
            "modalities",
            "no_logs",
            "received_time",
            "routed_dp_rank",
            "use_audio_in_video",
            "video_config",
            "video_max_dynamic_patch",
        )
    ),
)
IN_SAMPLING_PARAMS = FieldTable(
    refused={
        "beam_width": ((0, 1), ""),
        "custom_params": ((), ""),
        "spaces_between_special_tokens": ((True,), ""),
        "stop_regex": ((), "use stop"),
        "structural_tag": ((), ""),
        "watermark": ((), ""),
    },
    without_effect=frozenset(("stream_interval",)),
)

DEFAULT_MAX_NEW_TOKENS = 128


def sampling_fields(given: NativeSampling, body: GenerateBody) -> SamplingFields:
    """Return the fields of one prompt under the names of OpenAI's routes."""
    values = {NAMES.get(name, name): value for name, value in msgspec.structs.asdict(given).items()}
    shared = (
        "model",
        "stream",
        "priority",
        "routing_key",
        "session_id",
        "cache_salt",
        "timeout",
        "first_token_timeout",
    )
    return SamplingFields(**values, **{name: getattr(body, name) for name in shared})
