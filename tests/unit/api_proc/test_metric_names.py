"""The names of metrics: every one is defined and documented, and other engines' dashboards and gateways find theirs."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api_proc.admin.aliases import ALIASES
from api_proc.admin.families import FAMILIES, SECTIONS, by_key
from quartet.runtime.vitals import Vitals
from quartet.wire.frames import Snapshot
from quartet.wire.ids import Epoch, Role
from quartet.wire.monitoring import MonitoringConfig
from scheduler_proc.core.counters import SchedulerCounters
from tests.support.memory_engine import MemoryEngine

ROOT = Path(__file__).parents[3]

CONTRACT = {
    *("num_running_reqs", "num_queue_reqs", "num_queue_reqs_by_reason", "token_usage", "kv_available_tokens"),
    *("kv_evictable_tokens", "kv_used_tokens", "cache_config_info", "prefix_queries_total", "prefix_hits_total"),
    *("cache_hit_rate", "num_retracted_requests_total", "num_preempted_requests_total", "new_token_ratio"),
    *("prompt_tokens_total", "generation_tokens_total", "gen_throughput", "requests_total"),
    *("requests_rejected_total", "time_to_first_token_seconds", "inter_token_latency_seconds"),
    *("request_time_per_output_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"),
    *("request_prefill_time_seconds", "request_decode_time_seconds", "request_prompt_tokens"),
    *("request_generation_tokens", "http_requests_total", "process_up", "process_restarts_total", "ipc_queue_depth"),
}
"""The names that others may rely upon."""

VLLM_DASHBOARD = {
    *("vllm:e2e_request_latency_seconds_bucket", "vllm:e2e_request_latency_seconds_sum"),
    *("vllm:e2e_request_latency_seconds_count", "vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
    *("vllm:inter_token_latency_seconds_bucket", "vllm:num_requests_running", "vllm:num_requests_waiting"),
    *("vllm:time_to_first_token_seconds_bucket", "vllm:kv_cache_usage_perc", "vllm:request_prompt_tokens_bucket"),
    *("vllm:request_generation_tokens_bucket", "vllm:request_success_total", "vllm:request_queue_time_seconds_sum"),
    *("vllm:request_prefill_time_seconds_sum", "vllm:request_decode_time_seconds_sum"),
    "vllm:request_max_num_generation_tokens_sum",
}
"""What vLLM's Grafana dashboard queries, each by `model_name`."""

GATEWAY = {
    "vllm": {
        "queued": "vllm:num_requests_waiting",
        "running": "vllm:num_requests_running",
        "kv usage": "vllm:kv_cache_usage_perc",
        "kv usage, before": "vllm:gpu_cache_usage_perc",
        "cache info": "vllm:cache_config_info",
    },
    "sglang": {
        "queued": "sglang:num_queue_reqs",
        "running": "sglang:num_running_reqs",
        "kv usage": "sglang:token_usage",
    },
    "none": {
        "queued": "quartet_num_queue_reqs",
        "running": "quartet_num_running_reqs",
        "kv usage": "quartet_token_usage",
        "cache info": "quartet_cache_config_info",
    },
}
"""The gauges that the Gateway API inference extension maps, by engine type."""

PRODUCTION_STACK = {
    *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:gpu_cache_usage_perc"),
    *("vllm:gpu_prefix_cache_hits_total", "vllm:gpu_prefix_cache_queries_total", "vllm:gpu_prefix_cache_hit_rate"),
}


async def sampled(make_api: Any, alias: Any) -> dict[str, Any]:
    """Return the samples of a server that has answered a request, the last of each name."""
    api = await make_api(monitoring=MonitoringConfig(metrics_alias=alias))
    api.engine.snapshots["scheduler-0"] = snapshot_of_the_scheduler()
    api.engine.snapshots["api-1"] = Snapshot(Role.API, 1, Epoch(1), {}, {'requests{finish_reason="stop"}': 2.0})
    await api.post("/v1/completions", {"prompt": "x"})
    _, text, _ = await api.get("/metrics")
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    assert [family.name for family in families if not family.documentation] == []
    return {sample.name: sample for family in families for sample in family.samples}


def snapshot_of_the_scheduler() -> Snapshot:
    gauges, counters = MemoryEngine().metrics_of(Role.SCHEDULER)
    return Snapshot(Role.SCHEDULER, 0, Epoch(1), dict(gauges), dict(counters))


@pytest.mark.parametrize("alias", ["none", "vllm", "sglang"])
async def test_gateways_find_their_gauges(make_api: Any, alias: str) -> None:
    samples = await sampled(make_api, alias)
    assert [name for name in GATEWAY[alias].values() if name not in samples] == []
    assert samples[GATEWAY[alias]["queued"]].labels["model_name"] == "toy"


async def test_the_dashboard_of_vllm_finds_its_metrics(make_api: Any) -> None:
    samples = await sampled(make_api, "vllm")
    assert sorted((VLLM_DASHBOARD | PRODUCTION_STACK) - samples.keys()) == []
    assert all(samples[name].labels["model_name"] == "toy" for name in VLLM_DASHBOARD)
    assert samples["vllm:cache_config_info"].labels.keys() == {"model_name", "engine", "block_size", "num_gpu_blocks"}


async def test_an_alias_sums_over_processes(make_api: Any) -> None:
    done = (await sampled(make_api, "vllm"))["vllm:request_success_total"]
    assert done.labels == {"model_name": "toy", "engine": "0", "finished_reason": "stop"} and done.value == 1 + 2


async def test_without_metrics_there_is_no_route(make_api: Any) -> None:
    api = await make_api(monitoring=MonitoringConfig(disable_metrics=True))
    assert (await api.get("/metrics"))[0] == 404


def test_contract_names_are_defined_and_aliases_name_what_is() -> None:
    exported = {family.exported.removeprefix("quartet_") for family in FAMILIES.values()}
    assert sorted(CONTRACT - exported) == []
    assert sum(map(len, SECTIONS.values())) == len(FAMILIES), "a name is defined twice"
    for chosen in ALIASES.values():
        assert [alias.name for alias in chosen if alias.family not in FAMILIES] == []


def test_every_key_of_a_process_is_defined() -> None:
    keys = set(by_key())
    assert [name for name in SchedulerCounters.__slots__ if name not in keys] == []
    found = snapshot_of_the_scheduler()
    used = Vitals(Counter(crc=1)).metrics("api")
    for name in [*found.gauges, *found.counters, *used.gauges, *used.counters]:
        assert name.partition("{")[0] in keys, name


@pytest.mark.parametrize("folder", ["tokenizer_proc", "detok_proc", "worker_proc", "quartet/client", "api_proc/admin"])
def test_every_key_in_the_source_is_defined(folder: str) -> None:
    """Counters that only a fault raises are not in an exposition that a test can see."""
    pattern = re.compile(r'(?:counters|gauges)\[f?["\']([a-z_]+)|"((?:tokenizer|detok|worker|api)_[a-z_]+)": ')
    keys = set(by_key())
    for path in sorted((ROOT / folder).rglob("*.py")):
        for match in pattern.finditer(path.read_text()):
            assert (match[1] or match[2]) in keys, f"{path.name}: {match[0]}"
