"""Start-up that cannot work ends at once: one line on standard error, a non-zero exit code, nothing left behind."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.oracles import FOLDER
from tests.support.server import Server

pytestmark = pytest.mark.e2e
TINY = FOLDER / "models" / "qwen3"


def serve(*arguments: str, run_dir: Path) -> "subprocess.CompletedProcess[str]":
    """Run `quartet serve` to its end."""
    command = [sys.executable, "-m", "quartet.cli.main", "serve", "--run-dir", str(run_dir), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "QUARTET_CACHE_DIR": str(run_dir / "cache")}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


def check_one_line(finished: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert finished.returncode not in (0, None)
    last = finished.stderr.strip().splitlines()[-1]
    assert "Traceback" not in finished.stderr
    for word in words:
        assert word in last, finished.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--schedule-policy", "magic"], ["--schedule-policy", "'magic'", "fcfs"]),
        (["--port", "99999"], ["--port", "99999", "65535"]),
        (["--port", "many"], ["--port", "'many'", "integer"]),
        (["--scheduler-set", "new_token_ratio_decay_steps=0"], ["new_token_ratio_decay_steps", "0", "1"]),
        (["--mem-fraction-static", "nan"], ["--mem-fraction-static", "finite"]),
        (["--chunked-prefill-size", "100"], ["--chunked-prefill-size", "100", "16"]),
        (["--shedule-policy", "fcfs"], ["--shedule-policy", "--schedule-policy"]),
        (["--host", "0.0.0.0"], ["--host", "--api-key"]),
        (["/no/such/model"], ["/no/such/model"]),
        (["/no/such/file.gguf"], ["/no/such/file.gguf"]),
        (["nobody/no-such-model"], ["nobody/no-such-model"]),
    ],
)
def test_wrong_arguments(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    check_one_line(serve(*arguments, run_dir=tmp_path), *words)
    assert not list(tmp_path.glob("quartet-*"))


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        check_one_line(serve(str(TINY), "--simulated-worker", "--port", port, run_dir=tmp_path), port, "in use")
    assert not list(tmp_path.glob("quartet-*"))


def test_a_truncated_weights_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    check_one_line(serve(str(folder), "--device", "cpu", "--port", "0", run_dir=tmp_path), weights.name)


def test_a_missing_tensor(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": config["num_hidden_layers"] + 1}))
    check_one_line(serve(str(folder), "--device", "cpu", "--port", "0", run_dir=tmp_path), "layers.")


def test_damaged_json_and_gguf(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    (folder / "config.json").write_text("{")
    check_one_line(serve(str(folder), run_dir=tmp_path), "config.json")
    gguf = tmp_path / "damaged.gguf"
    gguf.write_bytes(b"GGUF" + bytes(40))
    check_one_line(serve(str(gguf), run_dir=tmp_path), "damaged.gguf")


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("no-such-host.invalid", ["no-such-host.invalid:0", "not known"]),
        (".." + "a" * 70, ["no host name"]),
        ("[2001:db8::1]", ["[2001:db8::1]:0"]),
    ],
)
def test_a_host_that_cannot_be_listened_on(host: str, words: list[str], tmp_path: Path) -> None:
    finished = serve(str(TINY), "--simulated-worker", "--port", "0", "--insecure", "--host", host, run_dir=tmp_path)
    check_one_line(finished, *words)
    assert finished.returncode == 2


def test_it_listens_on_ipv6_in_brackets() -> None:
    with Server("--simulated-worker", "--host", "[::1]") as server:
        assert server.url.startswith("http://[::1]:") and server.get("/health")[0] == 200


def test_it_starts_with_an_unusable_runtime_folder() -> None:
    with Server("--simulated-worker", "--run-dir", "", env={"XDG_RUNTIME_DIR": "/no/such/folder"}) as server:
        assert server.get("/health")[0] == 200
        assert "XDG_RUNTIME_DIR /no/such/folder cannot be used" in server.output[0]
