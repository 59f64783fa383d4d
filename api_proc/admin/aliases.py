"""Metrics under the names that vLLM and SGLang give them, for routers and dashboards that know those.

An alias has the value of one of our families, summed over the processes that report it, and its labels but `process`.
"""

from typing import NamedTuple


class Alias(NamedTuple):
    """A foreign name without `_total`, the family it shows, and foreign names of its labels."""

    name: str
    family: str
    labels: tuple[tuple[str, str], ...] = ()


_REASON = (("finish_reason", "finished_reason"),)
_SIZES = (("page_size", "block_size"), ("num_pages", "num_gpu_blocks"))

VLLM = (
    Alias("vllm:num_requests_running", "num_running_reqs"),
    Alias("vllm:num_requests_waiting", "num_queue_reqs"),
    Alias("vllm:num_requests_waiting_by_reason", "num_queue_reqs_by_reason"),
    Alias("vllm:kv_cache_usage_perc", "token_usage"),
    # Names of earlier releases, which routers still read.
    Alias("vllm:gpu_cache_usage_perc", "token_usage"),
    Alias("vllm:gpu_prefix_cache_queries", "prefix_queries"),
    Alias("vllm:gpu_prefix_cache_hits", "prefix_hits"),
    Alias("vllm:gpu_prefix_cache_hit_rate", "cache_hit_rate"),
    Alias("vllm:time_per_output_token_seconds", "inter_token_latency_seconds"),
    Alias("vllm:cache_config_info", "cache_config_info", _SIZES),
    Alias("vllm:prefix_cache_queries", "prefix_queries"),
    Alias("vllm:prefix_cache_hits", "prefix_hits"),
    Alias("vllm:num_preemptions", "num_retracted_requests"),
    Alias("vllm:prompt_tokens", "prompt_tokens"),
    Alias("vllm:generation_tokens", "generation_tokens"),
    Alias("vllm:request_success", "requests", _REASON),
    Alias("vllm:time_to_first_token_seconds", "time_to_first_token_seconds"),
    Alias("vllm:inter_token_latency_seconds", "inter_token_latency_seconds"),
    Alias("vllm:request_time_per_output_token_seconds", "request_time_per_output_token_seconds"),
    Alias("vllm:e2e_request_latency_seconds", "e2e_request_latency_seconds"),
    Alias("vllm:request_queue_time_seconds", "request_queue_time_seconds"),
    Alias("vllm:request_prefill_time_seconds", "request_prefill_time_seconds"),
    Alias("vllm:request_decode_time_seconds", "request_decode_time_seconds"),
    Alias("vllm:request_prompt_tokens", "request_prompt_tokens"),
    Alias("vllm:request_generation_tokens", "request_generation_tokens"),
    Alias("vllm:request_max_num_generation_tokens", "request_max_num_generation_tokens"),
)

SGLANG = (
    Alias("sglang:num_running_reqs", "num_running_reqs"),
    Alias("sglang:num_queue_reqs", "num_queue_reqs"),
    Alias("sglang:num_grammar_queue_reqs", "num_grammar_queue_reqs"),
    Alias("sglang:token_usage", "token_usage"),
    Alias("sglang:num_used_tokens", "kv_used_tokens"),
    Alias("sglang:kv_used_tokens", "kv_used_tokens"),
    Alias("sglang:kv_available_tokens", "kv_available_tokens"),
    Alias("sglang:kv_evictable_tokens", "kv_evictable_tokens"),
    Alias("sglang:max_total_num_tokens", "kv_capacity_tokens"),
    Alias("sglang:cached_tokens", "prefix_hits"),
    Alias("sglang:cache_hit_rate", "cache_hit_rate"),
    Alias("sglang:num_retracted_requests", "num_retracted_requests"),
    Alias("sglang:new_token_ratio", "new_token_ratio"),
    Alias("sglang:prompt_tokens", "prompt_tokens"),
    Alias("sglang:generation_tokens", "generation_tokens"),
    Alias("sglang:gen_throughput", "gen_throughput"),
    Alias("sglang:num_requests", "finished"),
    Alias("sglang:time_to_first_token_seconds", "time_to_first_token_seconds"),
    Alias("sglang:inter_token_latency_seconds", "inter_token_latency_seconds"),
    Alias("sglang:e2e_request_latency_seconds", "e2e_request_latency_seconds"),
    Alias("sglang:queue_time_seconds", "request_queue_time_seconds"),
    Alias("sglang:prompt_tokens_histogram", "request_prompt_tokens"),
    Alias("sglang:generation_tokens_histogram", "request_generation_tokens"),
)

ALIASES: dict[str, tuple[Alias, ...]] = {"none": (), "vllm": VLLM, "sglang": SGLANG}
EXTRA_LABELS: dict[str, dict[str, str]] = {"none": {}, "vllm": {"engine": "0"}, "sglang": {}}
"""Labels that are the same for all aliases of one engine."""
