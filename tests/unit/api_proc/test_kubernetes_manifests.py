"""deploy/kubernetes: every path, port, flag, label and metric that the manifests name is one of the engine's."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml

from api_proc.server.auth import PUBLIC_ROUTES
from quartet.cli import serve
from quartet.settings import build_config
from quartet.wire.config import Config
from tests.support.memory_engine import ROLES, MemoryEngine

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "kubernetes"
FILES = sorted(FOLDER.rglob("*.yaml"))
ROLE_DRAIN_S = 2
"""Each other role's share of a drain, after the open requests."""


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / name).read_text()))


def deployed() -> dict[str, Any]:
    return dict(read("engine/deployment.yaml")["spec"]["template"])


def container() -> dict[str, Any]:
    (only,) = deployed()["spec"]["containers"]
    return dict(only)


def config(*more: str, environment: dict[str, str]) -> Config:
    command, *arguments = container()["args"]
    assert command == "serve"
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return build_config(vars(parser.parse_args([*arguments, *more])), environment)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_is_one_document_of_a_known_kind(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    assert document["apiVersion"] and document["kind"]


def test_the_flags_are_ours_with_and_without_a_key() -> None:
    (variable,) = container()["env"]
    with_key = config(environment={variable["name"]: "secret"})
    assert with_key.server.api_key == ("secret",)
    (patch,) = read("gateway/kustomization.yaml")["patches"]
    removed, added = yaml.safe_load(patch["patch"])
    assert removed["path"].endswith("/env") and config(added["value"], environment={}).server.insecure


def test_ports_are_the_one_that_is_listened_on() -> None:
    port = config(environment={"QUARTET_API_KEY": "x"}).server.port
    (named,) = container()["ports"]
    (served,) = read("engine/service.yaml")["spec"]["ports"]
    (monitored,) = read("pod-monitor.yaml")["spec"]["podMetricsEndpoints"]
    (pooled,) = read("gateway/inference-pool.yaml")["spec"]["targetPorts"]
    (admitted,) = read("engine/network-policy.yaml")["spec"]["ingress"][0]["ports"]
    assert (named["containerPort"], pooled["number"], admitted["port"]) == (port, port, port)
    assert named["name"] == served["targetPort"] == monitored["port"]


async def test_probes_and_scrapes_ask_for_what_is_served(make_api: Any) -> None:
    api = await make_api(api_key=("secret",))
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container()[name]["httpGet"]
        assert probe["port"] == "http" and probe["path"] in PUBLIC_ROUTES
        assert (await api.get(probe["path"]))[0] == 200
    (monitored,) = read("pod-monitor.yaml")["spec"]["podMetricsEndpoints"]
    key = container()["env"][0]["valueFrom"]["secretKeyRef"]
    assert monitored["authorization"]["credentials"] == key
    assert (await api.get(monitored["path"], headers={"Authorization": "Bearer secret"}))[0] == 200


def test_a_drain_ends_before_the_kill() -> None:
    pause_s = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    open_s = config(environment={"QUARTET_API_KEY": "x"}).server.shutdown_timeout
    assert deployed()["spec"]["terminationGracePeriodSeconds"] >= pause_s + open_s + ROLE_DRAIN_S * len(ROLES)


def test_selectors_find_the_pods() -> None:
    labels = deployed()["metadata"]["labels"].items()
    selectors = [
        read("engine/deployment.yaml")["spec"]["selector"]["matchLabels"],
        read("engine/service.yaml")["spec"]["selector"],
        read("engine/network-policy.yaml")["spec"]["podSelector"]["matchLabels"],
        read("pod-monitor.yaml")["spec"]["selector"]["matchLabels"],
        read("gateway/inference-pool.yaml")["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels for selector in selectors)


def test_the_endpoint_picker_reads_metrics_that_exist() -> None:
    picker = read("gateway/endpoint-picker.yaml")
    parameters = {plugin.get("name", plugin["type"]): plugin.get("parameters", {}) for plugin in picker["plugins"]}
    (engine,) = parameters["metrics-extractor"]["engineConfigs"]
    assert engine.pop("name") == deployed()["metadata"]["labels"]["llm-d.ai/engine-type"]
    names = {f"quartet_{name}" for name in MemoryEngine().scheduler_gauges()}
    assert len(engine) == 3 and set(engine.values()) <= names
    used = {entry["pluginRef"] for profile in picker["schedulingProfiles"] for entry in profile["plugins"]}
    (source,) = picker["dataLayer"]["sources"]
    used |= {source["pluginRef"], source["extractors"][0]["pluginRef"]}
    assert used == parameters.keys() and parameters["metrics-source"]["path"] == "/metrics"


def test_files_that_are_named_exist() -> None:
    for name in ("engine", "gateway"):
        listed = read(f"{name}/kustomization.yaml")
        files = [*listed["resources"], *(file.partition("=")[2] for file in _generated(listed))]
        assert all((FOLDER / name / file).exists() for file in files)


def _generated(listed: dict[str, Any]) -> list[str]:
    return [file for one in listed.get("configMapGenerator", []) for file in one["files"]]
