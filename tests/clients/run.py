"""Every client, unmodified, against two servers: `make test-clients`, or `python -m tests.clients.run [CLIENT ...]`.

Makes an environment for each client under .clients/, launches a server with SmolLM2 and one with the simulated worker
and a script, runs each client's checks and writes results.md beside this file. Needs a package index, and npm for `ai`.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from quartet.checkpoint.resolve import resolve_model
from quartet.wire.config import ModelConfig
from tests.clients import checks
from tests.clients.environments import CLIENTS, make_environment
from tests.clients.script import replies
from tests.support.server import Server

HERE = Path(__file__).resolve().parent
LIMIT_S = 900
QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LOGFIRE_SEND_TO_LOGFIRE": "false",
    "NEXT_TELEMETRY_DISABLED": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "PYDANTIC_AI_HIDE_BANNER": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Variables with which a client connects to the server alone: no telemetry, no downloads."""
BOTH = ("--chat-template", str(HERE / "hermes.jinja"), "--api-key", checks.KEY)
MODEL_FLAGS = ("smollm2", "--dtype", "float32", *BOTH)
SCRIPT_FLAGS = (
    *("smollm2", "--simulated-worker", "--simulated-step-ms", "4", "--max-requests-per-key", "4"),
    *("--max-running-requests", "8", "--max-queued-requests", "8", *BOTH),
)
"""Limits low enough to be met: a fifth request of the key is 429, one of more than 8 choices 503."""


def main() -> int:
    """Run the clients that are named, or all; returns 1 if any check failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(CLIENTS)}; default: all")
    parser.add_argument("--only", default="", help="run the checks whose name contains this, and write no results")
    arguments = parser.parse_args()
    chosen = arguments.clients or list(CLIENTS)
    for client in chosen:
        make_environment(client, CLIENTS[client])
    with tempfile.TemporaryDirectory() as folder:
        write_shared(Path(folder))
        script = ("--simulated-script", f"{folder}/script.json")
        with Server(*SCRIPT_FLAGS, *script) as scripted, Server(*MODEL_FLAGS) as model:
            reports = [run_client(name, scripted.url, model.url, folder, arguments.only) for name in chosen]
    print(f"\n{table(reports)}")
    failed = sum(bool(row["error"]) for report in reports for row in report["checks"])
    passed = sum(len(report["checks"]) for report in reports) - failed
    print(f"{passed} passed, {failed} failed")
    if not arguments.clients and not arguments.only:
        (HERE / "results.md").write_text(page(reports))
    return bool(failed)


def write_shared(folder: Path) -> None:
    """Write the script, and what checks in another language share with it."""
    (folder / "script.json").write_text(json.dumps(replies()))
    facts = {
        "key": checks.KEY,
        "model": checks.MODEL,
        "capital_question": checks.CAPITAL_QUESTION,
        "capital_answer": checks.CAPITAL_ANSWER,
        "weather_question": checks.WEATHER_QUESTION,
        "weather_answer": checks.WEATHER_ANSWER,
        "arguments": checks.WEATHER_ARGUMENTS,
        "person_question": checks.PERSON_QUESTION,
        "person": checks.PERSON,
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def run_client(client: str, url: str, model_url: str, folder: str, only: str) -> dict[str, Any]:
    """Run one client's checks in its environment and return their report."""
    command = [*CLIENTS[client].command, "--url", url, "--model-url", model_url, "--only", only]
    command += ["--facts", f"{folder}/facts.json"] if client == "ai" else ["--folder", model_folder()]
    variables = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    try:
        finished = subprocess.run(
            command, cwd=HERE, env={**variables, **QUIET}, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S
        )
        lines = finished.stdout.splitlines()
        print("\n".join(lines[:-1]), flush=True)
        report: dict[str, Any] = json.loads(lines[-1])
        return report
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        row = {"check": "its process", "on": "", "error": f"{type(error).__name__}: no report", "seconds": 0}
        return {"client": client, "versions": {}, "checks": [row]}


@functools.cache
def model_folder() -> str:
    """Return the folder in which the converted SmolLM2 lies."""
    return resolve_model(ModelConfig()).folder


def table(reports: list[dict[str, Any]]) -> str:
    """Return a row for each client as Markdown."""
    rows = ["| client | versions | checks | passed |", "|---|---|---|---|"]
    for report in reports:
        versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
        passed = sum(not row["error"] for row in report["checks"])
        rows.append(f"| {report['client']} | {versions} | {len(report['checks'])} | {passed} |")
    return "\n".join(rows)


def page(reports: list[dict[str, Any]]) -> str:
    """Return the page of results."""
    parts = [
        "# Clients that were run",
        "Written by `make test-clients`: each client unmodified, against a server with SmolLM2 in float32 (*model*)\n"
        "and one with the simulated worker and a script (*script*).",
        table(reports),
    ]
    for report in reports:
        rows = [f"## {report['client']}", "", "| what | on | result |", "|---|---|---|"]
        rows += [f"| {row['check']} | {row['on']} | {_cell(row['error'])} |" for row in report["checks"]]
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _cell(error: str) -> str:
    return ("failed: " + error[:160].replace("|", "\\|").replace("<", "&lt;")) if error else "passed"


if __name__ == "__main__":
    sys.exit(main())
