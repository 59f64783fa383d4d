"""A launch of the real processes on a model with random weights; a measuring client takes the place of the api process.

Used by the gpu_*.py commands, and runnable by itself for several workloads in one launch:

    python -m benchmarks.serving.gpu_launch MODEL WORKLOADS [--set section.field=value ...] [--json FILE]

MODEL is a folder below benchmarks/models; WORKLOADS is a JSON list of workloads of any kinds, see gpu_client.py.
The prefix cache is off unless a setting says otherwise. No two rounds share a prefix, so it matters to shared_prefix
alone, and one launch can run all kinds:

    '[{"kind": "nano", "passes": 2}, {"kind": "decode", "batch": 64}, {"kind": "ttft", "prompt": 1024},
      {"kind": "shared_prefix", "groups": 10}]' --set scheduler.disable_radix_cache=false

Prints one JSON object {"launches": [...]}, as all the commands do. A launch has its model, device, software,
commit, settings, seconds until ready, kernels compiled after it was ready, and one result for each workload.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.model_configs import FOLDER, MODELS, ROOT, TOKENIZER
from benchmarks.report import describe_host, report
from quartet.checkpoint.resolve import resolve_model
from quartet.supervisor.plan import ProcessSpec, plan_processes
from quartet.supervisor.supervisor import Supervisor
from quartet.wire.config import Config, ModelConfig, SchedulerConfig, ServerConfig, WorkerConfig
from quartet.wire.ids import Role

SETTINGS: dict[str, Any] = {
    "model.load_format": "dummy",
    "model.context_length": 20480,
    "server.port": 0,
    "server.shutdown_timeout": 1.0,
    "scheduler.disable_radix_cache": True,
    "worker.mem_fraction_static": 0.9,
}
"""How a launch differs from the defaults of quartet/wire/config.py."""
NOT_REPORTED = ("server.port", "server.shutdown_timeout", "model.tokenizer_path")
LAUNCH_LIMIT_S, END_LIMIT_S = 1800.0, 20.0


def make_config(model: str, settings: dict[str, Any]) -> Config:
    """Return the configuration for a name of MODELS or a folder; `settings` maps section.field to a value."""
    paths = {"model.model_path": str(FOLDER / model), "model.tokenizer_path": str(TOKENIZER)}
    sections: dict[str, dict[str, Any]] = {"model": {}, "server": {}, "scheduler": {}, "worker": {}}
    for name, value in {**paths, **SETTINGS, **settings}.items():
        section, _, field = name.partition(".")
        sections[section][field] = value
    config = Config(
        model=ModelConfig(**sections["model"]),
        server=ServerConfig(**sections["server"]),
        scheduler=SchedulerConfig(**sections["scheduler"]),
        worker=WorkerConfig(**sections["worker"]),
    )
    return msgspec.structs.replace(config, resolved=resolve_model(config.model))


@contextmanager
def launched(
    kind: str, model: str, settings: dict[str, Any], environment: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a launch and yield its supervisor; end the launch on the way out, also after SIGTERM.

    `kind` is --measured (by gpu_client.py) or --served (the real api process). `environment` is added to this
    process's own.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    command = [sys.executable, "-m", "benchmarks.serving.gpu_launch", kind, model, json.dumps(settings)]
    variables = {**os.environ, **(environment or {})}
    supervisor = subprocess.Popen(command, env=variables, stdout=sys.stderr, cwd=ROOT)
    try:
        yield supervisor
    finally:
        supervisor.terminate()
        try:
            supervisor.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            # Its children end when their parent dies.
            supervisor.kill()
            supervisor.wait()
        signal.signal(signal.SIGTERM, before)


def run_launch(
    model: str, workloads: list[dict[str, Any]], settings: dict[str, Any], environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run the workloads one after the other in one launch and return what the client measured.

    The result of a launch that ends early has `error`.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        plan = {"out": str(out), "started": time.time(), "workloads": workloads}
        with launched("--measured", model, settings, {**(environment or {}), "BENCH_PLAN": json.dumps(plan)}) as one:
            end = _end_of(one)
        found = json.loads(out.read_text()) if out.exists() else {"results": [], "error": f"no results: {end}"}
        return {**describe(model, settings), **found}


def _end_of(supervisor: "subprocess.Popen[bytes]") -> str:
    """Wait for a launch to end by itself; return how it ended."""
    try:
        return f"exit code {supervisor.wait(LAUNCH_LIMIT_S)}"
    except subprocess.TimeoutExpired:
        return f"not over after {LAUNCH_LIMIT_S:g} s"


def describe(model: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what the numbers of a launch belong to: model, settings, device, software, commit."""
    shown = {name: value for name, value in {**SETTINGS, **settings}.items() if name not in NOT_REPORTED}
    return {"model": model, "settings": shown, **describe_host()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that all commands share."""
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="VALUE is JSON")
    parser.add_argument("--json", default="", help="file to write the results to")


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Return section.field -> value."""
    return {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in pairs)}


def report_launches(launches: list[dict[str, Any]], path: str) -> int:
    """Report launches in the layout that benchmarks/plots/gpu_plot.py reads; returns 1 if one has an error."""
    report({"launches": launches}, path)
    return int(any("error" in launch for launch in launches))


def plan_with_client(plan: list[ProcessSpec], module: str) -> list[ProcessSpec]:
    """Return a plan whose api process is a client of the engine: the actor of `module`."""
    return [spec._replace(module=module) if spec.role is Role.API else spec for spec in plan]


def run_child(kind: str, model: str, settings: str) -> int:
    """Run the supervisor of a launch."""
    config = make_config(model, json.loads(settings))
    plan = plan_processes(config)
    if kind == "--measured":
        plan = plan_with_client(plan, "benchmarks.serving.gpu_client")
    return Supervisor(config, plan).run()


def main(arguments: list[str]) -> int:
    """Run several workloads in one launch."""
    if arguments[:1] in (["--measured"], ["--served"]):
        return run_child(*arguments)
    parser = argparse.ArgumentParser(description="workloads on one launch")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("workloads")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    launch = run_launch(options.model, json.loads(options.workloads), parse_settings(options.set))
    return report_launches([launch], options.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
