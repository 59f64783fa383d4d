"""A launch of the real processes on a model of random weights, with a measuring client in the place of the api process.

Used by the gpu_*.py commands, and runnable by itself for several workloads in one launch:

    python -m benchmarks.gpu_launch MODEL WORKLOADS [--set section.field=value ...] [--json FILE]

MODEL is a folder below benchmarks/models; WORKLOADS is a JSON list as benchmarks/gpu_client.py takes it. Prints
one JSON object: device, commit, settings, seconds until ready, and one result for each workload.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from quartet.checkpoint.resolve import resolve_model
from quartet.config import Config, ModelConfig, SchedulerConfig, ServerConfig, WorkerConfig
from quartet.ids import Role
from quartet.supervisor.plan import plan_processes
from quartet.supervisor.supervisor import Supervisor

HERE = Path(__file__).resolve().parent
TOKENIZER = HERE.parent / "tests" / "golden" / "models" / "qwen3"
MODELS = ("qwen3-0.6b", "llama-3.1-8b")


def make_config(model: str, settings: dict[str, Any]) -> Config:
    """Return the configuration of a launch; `settings` maps section.field to a value."""
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "model_path": str(HERE / "models" / model),
            "tokenizer_path": str(TOKENIZER),
            "load_format": "dummy",
            "context_length": 20480,
        },
        "server": {"port": 0, "shutdown_timeout": 1.0},
        "scheduler": {"disable_radix_cache": True},
        "worker": {"mem_fraction_static": 0.9},
    }
    for name, value in settings.items():
        section, _, field = name.partition(".")
        sections[section][field] = value
    config = Config(
        model=ModelConfig(**sections["model"]),
        server=ServerConfig(**sections["server"]),
        scheduler=SchedulerConfig(**sections["scheduler"]),
        worker=WorkerConfig(**sections["worker"]),
    )
    return msgspec.structs.replace(config, resolved=resolve_model(config.model))


def run_launch(model: str, workloads: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """Run the workloads one after the other in one launch and return what the client measured."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        plan = {"out": str(out), "started": time.time(), "workloads": workloads}
        command = [sys.executable, "-m", "benchmarks.gpu_launch", "--child", model, json.dumps(settings)]
        environment = {**os.environ, "BENCH_PLAN": json.dumps(plan)}
        done = subprocess.run(command, env=environment, check=False, stdout=sys.stderr, cwd=HERE.parent)
        if not out.exists():
            raise SystemExit(f"the launch ended with {done.returncode} and no results")
        return {"model": model, "settings": settings, **describe_host(), **json.loads(out.read_text())}


def describe_host() -> dict[str, str]:
    """Return the device and the commit the numbers belong to."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    commit = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return {"device": _output(query), "commit": os.environ.get("BENCH_COMMIT") or _output(commit)}


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that all commands share."""
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="VALUE is JSON")
    parser.add_argument("--json", default="", help="file to write the results to")


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Return section.field -> value."""
    return {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in pairs)}


def report(results: Any, path: str) -> None:
    """Print the results, and write them where asked."""
    text = json.dumps(results, indent=1)
    print(text, flush=True)
    if path:
        Path(path).write_text(text + "\n")


def run_child(model: str, settings: str) -> int:
    """Be the supervisor of the launch."""
    config = make_config(model, json.loads(settings))
    plan = [
        spec._replace(module="benchmarks.gpu_client") if spec.role is Role.API else spec
        for spec in plan_processes(config)
    ]
    return Supervisor(config, plan).run()


def main(arguments: list[str]) -> int:
    """Run several workloads in one launch."""
    if arguments[:1] == ["--child"]:
        return run_child(*arguments[1:])
    parser = argparse.ArgumentParser(description="workloads on one launch")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("workloads")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    report(run_launch(options.model, json.loads(options.workloads), parse_settings(options.set)), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
