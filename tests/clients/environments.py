"""An environment for each client under .clients/, made again when what it requires changes."""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements"
FOLDER = HERE.parents[1] / ".clients"


class Client(NamedTuple):
    """One client: its environment, the command of its checks, and the files with its requirements.

    `alone` is installed without what it requires itself; `needs_torch` puts the build that TORCH names, words of pip,
    there first, so that no other build is chosen.
    """

    environment: Path
    command: tuple[str, ...]
    requirements: tuple[Path, ...]
    alone: str = ""
    needs_torch: bool = False


def _python(name: str, alone: str = "", needs_torch: bool = False) -> Client:
    environment = FOLDER / name
    command = (str(environment / "bin" / "python"), str(HERE / f"check_{name}.py"))
    return Client(environment, command, (REQUIREMENTS / f"{name}.txt",), alone, needs_torch)


def _node(name: str) -> Client:
    environment = FOLDER / name
    command = ("node", str(HERE / f"check_{name}.mjs"), "--modules", str(environment))
    return Client(environment, command, (REQUIREMENTS / name / "package.json",))


CLIENTS: dict[str, Client] = {
    "openai": _python("openai"),
    "anthropic": _python("anthropic"),
    "openai-agents": _python("openai_agents"),
    "litellm": _python("litellm"),
    "langchain-openai": _python("langchain"),
    "llama-index": _python("llama_index"),
    "instructor": _python("instructor"),
    "pydantic-ai": _python("pydantic_ai"),
    "ai": _node("ai"),
    "lm-eval": _python("lm_eval"),
    "sglang": _python("sglang", alone="sglang==0.5.23", needs_torch=True),
}


def make_environment(name: str, client: Client) -> None:
    """Make the environment of a client, unless it is there and complete."""
    texts = [client.alone, *(path.read_text() for path in client.requirements)]
    wanted = hashlib.sha256("".join(texts).encode()).hexdigest()
    stamp = client.environment / "requirements.sha256"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing {name}", flush=True)
    shutil.rmtree(client.environment, ignore_errors=True)
    if client.command[0] == "node":
        client.environment.mkdir(parents=True)
        shutil.copy(client.requirements[0], client.environment)
        _run("npm", "install", "--silent", "--no-audit", "--no-fund", cwd=client.environment)
    else:
        venv.create(client.environment, with_pip=True)
        install = (client.command[0], "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check")
        if client.needs_torch:
            _run(*install, *os.environ.get("TORCH", "torch==2.13.0").split())
        if client.alone:
            _run(*install, "--no-deps", client.alone)
        for path in client.requirements:
            _run(*install, "-r", str(path))
    stamp.write_text(wanted)


def _run(*command: str, cwd: Path | None = None) -> None:
    finished = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"{' '.join(command[:5])}: exit code {finished.returncode}\n{finished.stderr[-2000:]}")
