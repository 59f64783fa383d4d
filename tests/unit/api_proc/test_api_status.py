"""Routes that describe the service: probes, process table, metrics."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quartet.runtime.core import Metrics


async def test_health_and_ready_follow_the_engine(api: Any) -> None:
    states = {(False, False): (503, 503), (True, True): (200, 200), (True, False): (200, 503)}
    for (is_alive, is_accepting), expected in states.items():
        api.engine.is_alive, api.engine.is_accepting = is_alive, is_accepting
        assert ((await api.get("/health"))[0], (await api.get("/ready"))[0]) == expected


async def test_topology_and_index(api: Any) -> None:
    _, body, _ = await api.get("/topology")
    assert body["processes"][1] == {
        "role": "worker",
        "rank": 0,
        "pid": 42,
        "epoch": 3,
        "state": "starting",
        "phase": "loading",
        "restarts": 2,
        "last_cause": "",
        "last_recovery_s": 0.0,
    }
    status, body, _ = await api.get("/")
    assert (status, body["name"]) == (200, "quartet")


async def families(api: Any) -> dict[str, Any]:
    status, text, headers = await api.get("/metrics")
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {family.name: family for family in text_string_to_metric_families(text)}


async def test_metrics_of_every_process_can_be_parsed(api: Any) -> None:
    await api.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "stream": True})
    await api.post("/v1/chat/completions", {"messages": []})
    await api.get("/nothing")
    got = await families(api)
    assert all(name.startswith("quartet_") for name in got)
    assert [name for name, family in got.items() if not family.documentation] == []
    running = got["quartet_num_running_reqs"]
    assert (running.type, running.samples[0].value) == ("gauge", 3.0)
    assert running.samples[0].labels == {"process": "scheduler-0", "model_name": "toy"}
    tokens = got["quartet_generation_tokens"]
    assert (tokens.type, tokens.samples[0].name, tokens.samples[0].value) == (
        "counter",
        "quartet_generation_tokens_total",
        1234.0,
    )
    dropped = got["quartet_frames_dropped"].samples[0]
    labels = {"process": "scheduler-0", "reason": "crc", "model_name": "toy"}
    assert (dropped.labels, dropped.value) == (labels, 2.0)
    assert got["quartet_time_to_first_token_seconds"].type == "histogram"
    sizes = got["quartet_cache_config_info"].samples[0].labels
    assert (sizes["page_size"], sizes["num_pages"]) == ("16", "100")
    assert got["quartet_cache_hit_rate"].samples[0].value == 0.25
    assert got["quartet_prompt_tokens"].samples[0].value == got["quartet_prefix_queries"].samples[0].value == 400
    assert "quartet_bad name" not in got
    up = {(one.labels["role"], one.value) for one in got["quartet_process_up"].samples}
    assert up == {("scheduler", 1.0), ("worker", 0.0)}
    assert got["quartet_api_live_requests"].samples[0].labels == {"process": "api-0", "model_name": "toy"}


async def test_own_counts_and_latencies(api: Any) -> None:
    for _ in range(2):
        await api.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "stream": True})
    await api.post("/v1/completions", {"prompt": "x", "max_tokens": 2, "n": 2})
    await api.post("/v1/chat/completions", {"messages": []})
    await api.get("/no/such/1")
    await api.get("/no/such/2")
    got = await families(api)
    ttft = {one.name: one.value for one in got["quartet_time_to_first_token_seconds"].samples if "le" not in one.labels}
    assert ttft["quartet_time_to_first_token_seconds_count"] == 3
    generated = {one.name: one.value for one in got["quartet_request_generation_tokens"].samples}
    assert generated["quartet_request_generation_tokens_sum"] == 4 + 4 + 4
    for stage, seconds in (("queue", 0.002), ("prefill", 0.01), ("decode", 0.03)):
        sums = {one.name: one.value for one in got[f"quartet_request_{stage}_time_seconds"].samples}
        assert sums[f"quartet_request_{stage}_time_seconds_sum"] == pytest.approx(3 * seconds)
    http = {(one.labels["route"], one.labels["status"]): one.value for one in got["quartet_http_requests"].samples}
    assert http[("/v1/chat/completions", "200")] == 2
    assert http[("/v1/chat/completions", "400")] == 1
    assert http[("other", "404")] == 2, "unknown paths must not become labels"
    reasons = {one.labels["finish_reason"]: one.value for one in got["quartet_requests"].samples}
    assert reasons == {"stop": 2, "length": 2}
    rejected = {one.labels["reason"]: one.value for one in got["quartet_requests_rejected"].samples}
    assert rejected == {"invalid_value": 1}


async def test_own_snapshot_is_not_shown_twice(api: Any) -> None:
    from api_proc.admin.metrics import own_metrics
    from quartet.wire.frames import Snapshot
    from quartet.wire.ids import Epoch, Role

    own = own_metrics(api.service)
    assert isinstance(own, Metrics)
    api.engine.snapshots["api-0"] = Snapshot(Role.API, 0, Epoch(1), dict(own.gauges), dict(own.counters))
    got = await families(api)
    assert len(got["quartet_open_requests"].samples) == 1
