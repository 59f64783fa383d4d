"""Mistakes at the start: each is one line that names the cause and what to do, the right exit code, within seconds."""

import ctypes
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from quartet.cli.main import main
from tests.golden.oracles import FOLDER
from tests.support.unprivileged import PR_CAPBSET_DROP, heed_file_modes
from tests.unit.quartet.checkpoint.gguf_models import write_gguf

pytestmark = pytest.mark.e2e
TINY = FOLDER / "models" / "qwen3"
CAP_NET_BIND_SERVICE = 10
PRIVILEGED_PORTS = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
CPU_LIMIT_S = 3.0
"""Of processor time, so that it holds on a loaded machine; a launch spawns processes in parallel."""
NO_TORCH = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find_spec(name, *rest)
"""


class Outcome(NamedTuple):
    """How a launch has ended, and what it has written."""

    code: object
    out: str
    err: str


class Launch:
    """Arguments and surroundings of one `quartet serve`, for a mistake to spoil. `model` is a copy of a tiny model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model"
        shutil.copytree(TINY, self.model)
        self.arguments = [str(self.model), "--device", "cpu", "--port", "0"]
        (folder / "cache").mkdir()
        self.environment = {**os.environ, "HF_HUB_OFFLINE": "1", "QUARTET_CACHE_DIR": str(folder / "cache")}
        self.limits: list[tuple[int, int]] = []
        self.sink: int = subprocess.PIPE

    def give(self, *arguments: str) -> None:
        self.arguments += arguments

    def serve(self, name: str) -> None:
        self.arguments[0] = name

    def change_config(self, **fields: object) -> None:
        path = self.model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    def put_on_path(self, name: str, program: str) -> None:
        folder = self.folder / "path"
        folder.mkdir()
        (folder / name).write_text(program)
        self.environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(Path.cwd())])

    def run_here(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> "Outcome":
        """Run the command line in this process, which is what has the modules."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        try:
            code = main(["serve", "--run-dir", str(self.folder), *self.arguments])
        except SystemExit as refusal:
            code = refusal.code
        return Outcome(code, *capfd.readouterr())

    def run(self) -> "Outcome":
        """Run the command as a process, with file modes heeded."""

        def restrict() -> None:
            heed_file_modes()
            if os.getuid() == 0:
                ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_NET_BIND_SERVICE, 0, 0, 0)
            for kind, limit in self.limits:
                resource.setrlimit(kind, (limit, limit))

        command = [sys.executable, "-m", "quartet.cli.main", "serve", "--run-dir", str(self.folder), *self.arguments]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=self.sink,
            text=True,
            timeout=60,
            env=self.environment,
            preexec_fn=restrict,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr or "")


class Mistake(NamedTuple):
    """What is done to a launch, the exit code, and what the line must contain."""

    spoil: Callable[[Launch], object]
    code: int
    words: tuple[str, ...]
    place: str = "here"
    """Where the command runs: `here`, in this process; as a `process` of its own; or `spawning` others, too."""


def hold_port(launch: Launch) -> socket.socket:
    holder = socket.create_server(("127.0.0.1", 0))
    launch.give("--port", str(holder.getsockname()[1]))
    return holder


def cut_weights(launch: Launch) -> None:
    path = launch.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def damage_gguf(launch: Launch) -> None:
    path = launch.folder / "toy.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:200])
    launch.serve(str(path))


def forbid_cache(launch: Launch) -> None:
    write_gguf(launch.folder / "toy.gguf")
    launch.serve(str(launch.folder / "toy.gguf"))
    (launch.folder / "cache").chmod(0)


def read_only_home(launch: Launch) -> None:
    write_gguf(launch.folder / "toy.gguf")
    launch.serve(str(launch.folder / "toy.gguf"))
    for name in ("QUARTET_CACHE_DIR", "XDG_CACHE_HOME"):
        launch.environment.pop(name, None)
    (launch.folder / "home").mkdir(mode=0o500)
    launch.environment["HOME"] = str(launch.folder / "home")


def write_template(launch: Launch, text: str) -> None:
    (launch.folder / "template.jinja").write_text(text)
    launch.give("--simulated-worker", "--chat-template", str(launch.folder / "template.jinja"))


MISTAKES = {
    "port in use": Mistake(hold_port, 2, ("cannot listen on 127.0.0.1:", "in use", "--port"), "process"),
    "privileged port": Mistake(
        lambda one: one.give("--port", "80"), 2, ("cannot listen on 127.0.0.1:80: Permission denied",), "process"
    ),
    "port out of range": Mistake(lambda one: one.give("--port", "70000"), 2, ("--port: 70000", "65535")),
    "host of another machine": Mistake(
        lambda one: one.give("--host", "192.0.2.1", "--insecure"), 2, ("192.0.2.1", "--host"), "process"
    ),
    "open to the world": Mistake(lambda one: one.give("--host", "0.0.0.0"), 2, ("--host 0.0.0.0", "--api-key")),
    "model folder": Mistake(lambda one: one.serve("/no/such/model"), 3, ("/no/such/model",)),
    "hub id without network": Mistake(lambda one: one.serve("some-owner/some-model"), 3, ("some-owner/some-model",)),
    "damaged safetensors": Mistake(cut_weights, 3, ("model.safetensors",)),
    "damaged GGUF": Mistake(damage_gguf, 3, ("toy.gguf", "download it again")),
    "damaged config.json": Mistake(
        lambda one: (one.model / "config.json").write_text("{"), 3, ("config.json", "damaged")
    ),
    "unsupported architecture": Mistake(
        lambda one: one.change_config(architectures=["MambaForCausalLM"]), 3, ("MambaForCausalLM", "supported")
    ),
    "no tokenizer": Mistake(
        lambda one: (one.model / "tokenizer.json").unlink(), 3, ("tokenizer.json", "--tokenizer-path")
    ),
    "too many KV tokens": Mistake(
        lambda one: one.give("--max-total-tokens", "100000000000"), 2, ("GiB", "give --max-total-tokens")
    ),
    "too many KV tokens, simulated": Mistake(
        lambda one: one.give("--simulated-worker", "--max-total-tokens", "100000000000"),
        2,
        ("give --max-total-tokens",),
    ),
    "too many KV tokens, dummy weights": Mistake(
        lambda one: one.give("--load-format", "dummy", "--max-total-tokens", "100000000000"),
        2,
        ("give --max-total-tokens",),
    ),
    "too many requests": Mistake(
        lambda one: one.give("--max-running-requests", "1000000000"), 2, ("give --max-running-requests",)
    ),
    "context beyond the model": Mistake(
        lambda one: one.give("--context-length", "1000000"), 2, ("1000000", "the model's limit is")
    ),
    "huge context": Mistake(
        lambda one: one.change_config(max_position_embeddings=1 << 24), 3, ("config.json", "--context-length")
    ),
    "unknown flag": Mistake(lambda one: one.give("--no-such-flag", "2"), 2, ("--no-such-flag",)),
    "unknown dtype": Mistake(lambda one: one.give("--dtype", "float7"), 2, ("float7", "bfloat16")),
    "missing torch": Mistake(
        lambda one: one.put_on_path("sitecustomize.py", NO_TORCH), 2, ("torch", "pip install"), "process"
    ),
    "no GPU": Mistake(lambda one: one.give("--device", "cuda"), 2, ("--device cuda", "--device cpu")),
    "triton without a GPU": Mistake(
        lambda one: one.give("--attention-backend", "triton"), 2, ("triton", "--attention-backend torch")
    ),
    "unreadable cache": Mistake(forbid_cache, 3, ("QUARTET_CACHE_DIR", "Permission denied"), "process"),
    "read-only home": Mistake(read_only_home, 3, ("QUARTET_CACHE_DIR", "Permission denied"), "process"),
    "run directory": Mistake(lambda one: one.give("--run-dir", "/no/such/folder"), 2, ("--run-dir /no/such/folder",)),
    "long run directory": Mistake(
        lambda one: one.give("--run-dir", f"/tmp/{'x' * 120}"), 2, ("too long a path for sockets", "shorter")
    ),
    "missing chat template": Mistake(
        lambda one: one.give("--chat-template", "/no/such/template"), 2, ("chat_template", "/no/such/template")
    ),
    "scheduler-set": Mistake(
        lambda one: one.give("--scheduler-set", "new_token_ration=1"), 2, ("--scheduler-set", "did you mean")
    ),
    "unknown tool parser": Mistake(lambda one: one.give("--tool-call-parser", "gpt-9"), 2, ("gpt-9", "auto, none")),
    "few descriptors": Mistake(
        lambda one: one.limits.append((resource.RLIMIT_NOFILE, 16)), 2, ("Too many open files", "ulimit"), "process"
    ),
    "little address space": Mistake(
        lambda one: (one.limits.append((resource.RLIMIT_AS, 1500 << 20)), one.give("--max-total-tokens", "5000000")),
        2,
        ("of 1.5 GiB free", "give --max-total-tokens"),
        "process",
    ),
    "broken chat template": Mistake(
        lambda one: write_template(one, "{% if"),
        3,
        ("tokenizer-0", "template is broken", "--chat-template"),
        "spawning",
    ),
    "trace that cannot be written": Mistake(
        lambda one: one.give("--simulated-worker", "--record-trace", "/no/such/folder/trace"),
        2,
        ("--record-trace", "/no/such/folder/trace"),
        "spawning",
    ),
    "broken torch": Mistake(
        lambda one: one.put_on_path("torch.py", "raise ImportError('libtorch.so: cannot open')"),
        70,
        ("worker-0: ImportError: libtorch.so: cannot open", "the traceback is in"),
        "spawning",
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (one.place == "spawning")) for name, one in MISTAKES.items()],
)
def test_a_mistake_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if name == "no GPU" and Path("/proc/driver/nvidia/version").exists():
        pytest.skip("there is a GPU")
    if name == "privileged port" and int(PRIVILEGED_PORTS.read_text()) <= 80:
        pytest.skip("no port is privileged")
    mistake, launch = MISTAKES[name], Launch(tmp_path)
    kept = mistake.spoil(launch)
    before_s = spent_s()
    done = launch.run_here(monkeypatch, capfd) if mistake.place == "here" else launch.run()
    after_s = spent_s()
    if isinstance(kept, socket.socket):
        kept.close()
    assert done.code == mistake.code, done.err
    assert "Traceback" not in done.err and done.out == ""
    *others, last = done.err.splitlines()
    assert all(word in last for word in mistake.words), done.err
    # A launch that has spawned shows the phases of its processes before.
    assert mistake.place == "spawning" or others == []
    assert not list(tmp_path.glob("quartet-[0-9]*")), "the run directory is left behind"
    assert mistake.place == "spawning" or after_s - before_s < CPU_LIMIT_S


def spent_s() -> float:
    """Return the processor time of this process and of those that it has waited for."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def test_a_broken_standard_error_changes_no_exit_code(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    launch.serve("/no/such/model")
    read_end, launch.sink = os.pipe()
    os.close(read_end)
    assert launch.run().code == 3
    os.close(launch.sink)
