"""SGLang's routes for routers, benchmarks and operators: information, loads, health by a token, aborts."""

import json
from typing import Any

import pytest
from error_shape import CHAT, MESSAGES, assert_error
from prometheus_client.parser import text_string_to_metric_families

from quartet.wire.errors import RequestError
from quartet.wire.frames import Snapshot
from quartet.wire.ids import Epoch, Role

GAUGES = {
    "num_running_reqs": 3.0,
    "num_queue_reqs": 1.0,
    "num_grammar_queue_reqs": 1.0,
    "num_queue_tokens": 70.0,
    "kv_used_tokens": 400.0,
    "kv_capacity_tokens": 1600.0,
    "max_running_reqs": 6.0,
    "token_usage": 0.25,
}


@pytest.fixture
def loaded(api: Any) -> Any:
    """A server whose scheduler has reported."""
    counters = {"cached_tokens": 300.0, "prefill_tokens": 100.0, "output_tokens": 50.0}
    api.engine.snapshots["scheduler-0"] = Snapshot(Role.SCHEDULER, 0, Epoch(1), GAUGES, counters)
    return api


async def test_loads_have_sglangs_names(loaded: Any) -> None:
    status, body, _ = await loaded.get("/v1/loads")
    assert status == 200 and set(body) == {"timestamp", "version", "accelerator", "num_accelerators", "loads"}
    (load,) = body["loads"]
    assert load["queues"]["waiting"] == 2
    assert {name: load[name] for name in ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")} == {
        "num_running_reqs": 3,
        "num_waiting_reqs": 2,
        "num_used_tokens": 400,
    }
    assert (load["num_total_tokens"], load["max_total_num_tokens"], load["max_running_requests"]) == (470, 1600, 6)
    assert (load["token_usage"], load["cache_hit_rate"], load["utilization"]) == (0.25, 0.75, 0.5)
    assert "queues" not in (await loaded.get("/v1/loads?include=core"))[1]["loads"][0]
    assert (await loaded.get("/v1/loads?dp_rank=1"))[1]["loads"] == []
    status, body, _ = await loaded.get("/get_load")
    assert body == [{"dp_rank": 0, "num_reqs": 5, "num_waiting_reqs": 2, "num_tokens": 470}]


@pytest.mark.parametrize(
    ("query", "accept"), [("?format=prometheus", "application/json"), ("", "text/plain;version=0.0.4")]
)
async def test_loads_in_prometheus_format(loaded: Any, query: str, accept: str) -> None:
    status, text, headers = await loaded.get("/v1/loads" + query, headers={"Accept": accept})
    assert status == 200 and headers["Content-Type"].startswith("text/plain")
    found = {family.name: family.samples[0] for family in text_string_to_metric_families(text)}
    assert found["sglang_num_waiting_reqs"].value == 2.0
    assert found["sglang_queues_waiting"].labels == {"dp_rank": "0"}


@pytest.mark.parametrize("query", ["include=all,x", "dp_rank=x", "dp_rank=-1", "dp_rank=²", "format=xml"])
async def test_wrong_parameters_of_loads_are_named(loaded: Any, query: str) -> None:
    status, body, _ = await loaded.get(f"/v1/loads?{query}")
    assert status == 400
    assert_error(body, "invalid_value", query.partition("=")[0])


async def test_no_load_is_known_before_the_scheduler_reports(api: Any) -> None:
    api.engine.snapshots.clear()
    assert (await api.get("/v1/loads"))[1]["loads"] == [] and (await api.get("/get_load"))[1] == []


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
async def test_server_info_has_the_configuration_without_keys(make_api: Any, path: str) -> None:
    api = await make_api(api_key=("secret-key",), admin_api_key=("secret-root",))
    status, body, _ = await api.get(path, headers={"Authorization": "Bearer secret-key"})
    assert status == 200 and "secret" not in json.dumps(body)
    assert (body["context_length"], body["schedule_policy"], body["served_model_name"]) == (64, "fcfs", "toy")
    assert isinstance(body["internal_states"], list) and body["version"]


async def test_routers_find_the_sources_of_events(make_api: Any) -> None:
    api = await make_api()
    assert (await api.get("/kv_event_sources"))[1] == {} and "kv_events" not in (await api.get("/server_info"))[1]
    ports = {"endpoint": "tcp://127.0.0.1:5557", "replay_endpoint": "tcp://127.0.0.1:5558", "topic": "kv"}
    api = await make_api(kv_events_config=json.dumps(ports))
    (source,) = (await api.get("/kv_event_sources"))[1].values()
    assert ports.items() <= source.items() and (source["enable_kv_cache_events"], source["publisher"]) == (True, "zmq")
    info = (await api.get("/get_server_info"))[1]
    assert info["kv_events"] == {
        "publisher": "zmq", "endpoint_host": "127.0.0.1", "endpoint_port_base": 5557, "topic": "kv",
        "block_size": 16, "dp_size": 1, "replay_endpoint_port_base": 5558,
    }  # fmt: skip
    # vllm-router indexes the pages of a server by these two; it takes kv_block_size for block_size given twice.
    assert info["model_id"] == "toy" and "block_size" in info and "kv_block_size" not in info


async def test_model_info(api: Any) -> None:
    status, body, _ = await api.get("/model_info")
    assert (status, body) == (200, (await api.get("/get_model_info"))[1])
    assert (body["is_generation"], body["architectures"], body["vocab_size"]) == (True, ["LlamaForCausalLM"], 1000)


async def test_version_is_served_on_request_only(make_api: Any) -> None:
    assert (await (await make_api()).get("/version"))[0] == 404
    assert (await (await make_api(serve_version=True)).get("/version"))[1]["version"]


async def test_health_by_a_token(api: Any) -> None:
    assert (await api.get("/health_generate"))[0] == 200
    (output,) = api.engine.outputs
    assert (output.request.params.max_new_tokens, output.request.params.temperature) == (1, 0.0)
    assert output.is_finished and not output.aborted.is_set()


async def test_health_by_a_token_that_does_not_come(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api_proc.native.health.LIMIT_S", 0.05)

    async def silent(output: Any) -> None:
        pass

    async def failing(output: Any) -> None:
        await output.subscribed.wait()
        output.fail(RequestError(500, "internal_error", "bad"))

    api.engine.script = silent
    assert (await api.get("/health_generate"))[0] == 503
    assert api.engine.outputs[0].aborted.is_set(), "nothing of it is left"
    api.engine.script = failing
    assert (await api.get("/health_generate"))[1]["status"] == "internal_error"
    api.engine.refusal = RequestError(503, "queue_full", "full")
    assert (await api.get("/health_generate"))[0] == 503
    api.service.is_draining = True
    assert (await api.get("/health_generate"))[0] == 503


async def test_an_abort_is_passed_on_for_the_requests_of_its_key(make_api: Any) -> None:
    api = await make_api(api_key=("one",), admin_api_key=("root",))
    answers = {}
    for key in ("one", "root"):
        headers = {"Authorization": f"Bearer {key}"}
        _, body, _ = await api.post("/abort_request", {"rid": "mine"}, headers=headers)
        answers[key] = body["tenant"]
        assert (body["what"], body["argument"]) == ("abort", "mine")
        status, body, _ = await api.post("/abort_request", {"abort_all": True}, headers=headers)
        assert (status, body.get("argument")) == ((200, "") if key == "root" else (403, None))
    assert answers["root"] is None and answers["one"]


@pytest.mark.parametrize("body", [{}, {"rid": ""}, {"abort_all": False}, {"rid": 5}])
async def test_an_abort_of_nothing_is_refused(api: Any, body: Any) -> None:
    status, answer, _ = await api.post("/abort_request", body)
    assert status == 400
    assert_error(answer)


async def test_without_keys_an_abort_reaches_every_request(api: Any) -> None:
    assert (await api.post("/abort_request", {"abort_all": True}))[1]["tenant"] is None
    await api.post(CHAT, {"messages": MESSAGES})


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_what_this_server_does_not_do_is_refused_in_one_line(api: Any, method: str) -> None:
    for path in ("/v1/embeddings", "/rerank", "/v1/images/generations", "/v1/audio/speech", "/v1/moderations"):
        async with api.http.request(method, api.url + path) as response:
            assert response.status == 404
            body = await response.json()
            assert_error(body, "unsupported_route")
            assert "generates text" in body["error"]["message"]
