"""What cannot be read is refused before any process starts: one line that names it, exit code 3."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden.oracles import FOLDER
from tests.support.server import Server
from tests.support.unprivileged import heed_file_modes, homeless
from tests.unit.quartet.checkpoint.gguf_models import write_gguf

pytestmark = pytest.mark.e2e
TINY = FOLDER / "models" / "qwen3"
SHARDED = FOLDER / "models" / "mistral"


def serve(*arguments: str, environment: dict[str, str] | None = None, cwd: Path | None = None) -> "tuple[int, str]":
    """Run `quartet serve` to its end, with file modes heeded; returns exit code and standard error."""
    command = [sys.executable, "-m", "quartet.cli.main", "serve", "--port", "0", "--device", "cpu", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HF_HUB_OFFLINE": "1"} if environment is None else environment,
        preexec_fn=heed_file_modes,
        cwd=cwd,
        check=False,
    )
    return done.returncode, done.stderr


def check_refused(outcome: tuple[int, str], *words: str) -> None:
    code, shown = outcome
    assert code == 3 and shown.count("\n") == 1 and "Traceback" not in shown, outcome
    for word in words:
        assert word in shown, outcome


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with every file that may be read."""
    made = tmp_path / "model"
    shutil.copytree(TINY, made)
    for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if not (made / name).exists():
            (made / name).write_text("{}")
    (made / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return made


READ = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors",
]


def forbid(path: Path) -> None:
    path.chmod(0)


def break_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("missing")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", READ)
def test_a_forbidden_file(folder: Path, name: str) -> None:
    forbid(folder / name)
    check_refused(serve(str(folder)), str(folder / name), "Permission denied")


@pytest.mark.parametrize("spoil", [break_link, loop, make_fifo, make_folder])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_is_none(folder: Path, name: str, spoil: Callable[[Path], None]) -> None:
    spoil(folder / name)
    check_refused(serve(str(folder)), name)


def test_a_forbidden_shard(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SHARDED, folder)
    shutil.copy(TINY / "tokenizer.json", folder)
    forbid(folder / "model-00002-of-00002.safetensors")
    check_refused(serve(str(folder)), "model-00002-of-00002.safetensors", "Permission denied")


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o300])
def test_a_forbidden_folder(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    check_refused(serve(str(folder)), str(folder), "Permission denied")
    folder.chmod(0o700)


def test_a_folder_below_a_forbidden_one(folder: Path) -> None:
    folder.parent.chmod(0)
    check_refused(serve(str(folder)), str(folder), "Permission denied")
    folder.parent.chmod(0o700)


def test_a_forbidden_tokenizer_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(folder / "tokenizer.json", tmp_path / "other")
    forbid(tmp_path / "other" / "tokenizer.json")
    outcome = serve(str(folder), "--tokenizer-path", str(tmp_path / "other"))
    check_refused(outcome, str(tmp_path / "other" / "tokenizer.json"), "Permission denied")


def test_a_template_that_is_no_text(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"caf\xe9")
    check_refused(serve(str(folder)), "chat_template.jinja", "UTF-8")


def test_a_path_that_is_too_long() -> None:
    check_refused(serve("/" + "x" * 5000), "xxx")


@pytest.mark.parametrize("spoil", [forbid, break_link, loop, make_fifo, make_folder])
def test_a_gguf_file(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    write_gguf(tmp_path / "toy.gguf")
    spoil(tmp_path / "toy.gguf")
    environment = {**os.environ, "QUARTET_CACHE_DIR": str(tmp_path / "cache")}
    check_refused(serve(str(tmp_path / "toy.gguf"), environment=environment), "toy.gguf")
    assert not (tmp_path / "cache").exists()


def test_a_gguf_file_whose_cache_is_forbidden(tmp_path: Path) -> None:
    write_gguf(tmp_path / "toy.gguf")
    (tmp_path / "cache").mkdir(mode=0)
    environment = {**os.environ, "QUARTET_CACHE_DIR": str(tmp_path / "cache")}
    outcome = serve(str(tmp_path / "toy.gguf"), environment=environment)
    check_refused(outcome, "QUARTET_CACHE_DIR", "Permission denied", str(tmp_path / "cache"))


def test_a_forbidden_hub_cache(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir(mode=0)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    check_refused(serve("some/model", environment=environment), str(tmp_path / "hub"), "Permission denied")


def test_a_file_that_goes_while_it_runs_is_fatal_to_the_next_worker(folder: Path) -> None:
    with Server(str(folder), "--device", "cpu") as server:
        make_folder(folder / "model.safetensors")
        server.kill("worker-0")
        assert server.process.wait(30) == 3
    assert "model.safetensors: it is no file" in server.output[-1]
    assert sum("ended by" in line for line in server.output) == 1


# No home directory


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("smollm2", ["HOME", "QUARTET_CACHE_DIR"]),
        ("toy.gguf", ["HOME", "QUARTET_CACHE_DIR"]),
        ("~/x", ["HOME", "~/x"]),
        ("~/x.gguf", ["HOME", "~/x.gguf"]),
        ("some/model", ["HOME", "HF_HOME"]),
        ("~no-such-user/x", ["~no-such-user/x", "neither"]),
    ],
)
def test_what_needs_a_home(model: str, words: list[str], tmp_path: Path) -> None:
    write_gguf(tmp_path / "toy.gguf")
    check_refused(serve(model, environment=homeless(tmp_path), cwd=tmp_path), *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sitecustomize.py", "toy.gguf"], "no folder called ~"


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"])
def test_a_hub_folder_below_a_missing_home(variable: str, tmp_path: Path) -> None:
    environment = {**homeless(tmp_path), variable: "~/hub"}
    check_refused(serve("some/model", environment=environment, cwd=tmp_path), "HOME", variable)


def test_what_needs_a_home_elsewhere(folder: Path, tmp_path: Path) -> None:
    home = homeless(tmp_path)
    check_refused(serve(str(folder), "--tokenizer-path", "~/t", environment=home), "HOME", "~/t")
    for flag in ("--run-dir", "--chat-template", "--record-trace"):
        code, shown = serve(str(folder), flag, "~/t", environment=home)
        assert code == 2 and shown.count("\n") == 1 and "HOME" in shown and "~/t" in shown, shown


def test_a_folder_is_served_without_a_home(folder: Path, tmp_path: Path) -> None:
    with Server(str(folder), "--device", "cpu", env=homeless(tmp_path), only_env=True) as server:
        assert server.get("/health")[0] == 200


@pytest.mark.parametrize(
    ("variable", "below"), [("QUARTET_CACHE_DIR", ""), ("XDG_CACHE_HOME", "quartet"), ("HOME", "")]
)
def test_a_cache_that_is_named_is_used(variable: str, below: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "toy.gguf")
    environment = {**homeless(tmp_path), variable: str(tmp_path / "cache")}
    with Server(str(tmp_path / "toy.gguf"), "--simulated-worker", env=environment, only_env=True):
        assert list((tmp_path / "cache").glob("**/toy-*/config.json"))


def test_a_tilde_in_a_variable_is_the_home(tmp_path: Path) -> None:
    write_gguf(tmp_path / "toy.gguf")
    environment = {"HOME": str(tmp_path), "QUARTET_CACHE_DIR": "~/cache", "QUARTET_RECORD_TRACE": "~/trace"}
    with Server("~/toy.gguf", "--simulated-worker", env=environment) as server:
        assert list((tmp_path / "cache").glob("models/toy-*/config.json")) and (tmp_path / "trace").exists()
        assert server.get("/v1/models")[1]["data"][0]["id"] == "toy"
