"""The built wheel, installed outside the checkout into an environment of its own: it is complete, and it serves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from quartet import __version__

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("api_proc", "detok_proc", "kernels", "quartet", "scheduler_proc", "tokenizer_proc", "worker_proc")
NOT_SOURCE = (".*", "__pycache__", "build", "dist", "*.egg-info")
READY = re.compile(r"ready at (http://\S+)/v1")


class Installation:
    """A wheel in an environment that has nothing else; the dependencies come from the environment of the tests."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.wheel, self.folder = wheel, folder
        self.bin = folder / "env" / "bin"
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        venv.create(folder / "env", symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True, timeout=60)
        # The .pth files of these folders, by which an editable installation would lead to the checkout, have no effect.
        dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dependencies)}
        bare = folder / "without-torch"
        bare.mkdir()
        for path in (path for dependency in dependencies for path in Path(dependency).iterdir()):
            if path.name != "torch" and not (bare / path.name).exists():
                (bare / path.name).symlink_to(path)
        self.without_torch = {**os.environ, "PYTHONPATH": str(bare)}

    def start(self, *command: str, environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
        """Start a program of the environment's bin folder, outside the checkout."""
        return subprocess.Popen(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.elsewhere,
            env=environment or self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str) -> str:
        """Run a program to its end; return what it wrote."""
        process = self.start(*command)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        return output


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Build from a copy, since setuptools leaves its build folder in the tree, and would pack what is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE, "docs", "results", "golden"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [*build, "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")], check=True, timeout=100
    )
    (wheel,) = folder.glob("*.whl")
    yield Installation(wheel, folder)
    shutil.rmtree(folder)


def test_the_wheel_holds_every_file_of_the_packages_and_no_other_name(installation: Installation) -> None:
    with zipfile.ZipFile(installation.wheel) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert {name.partition("/")[0] for name in names} == set(PACKAGES)
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    source = {str(path.relative_to(ROOT)) for path in files if path.parent.name != "__pycache__"}
    assert set(names) == source
    # A folder without __init__.py is easily left out.
    assert "kernels/paged_decode.py" in source and "kernels/__init__.py" not in source


def test_every_package_is_imported_from_the_installation(installation: Installation) -> None:
    program = f"import importlib; print(*(importlib.import_module(name).__path__[0] for name in {PACKAGES}))"
    found = installation.run("python", "-c", program).split()
    assert len(found) == len(PACKAGES)
    assert all(Path(path).is_relative_to(installation.folder / "env") for path in found)
    assert installation.run("quartet", "--version").split() == ["quartet", __version__]


def test_without_torch_one_line_has_the_command_that_installs_it(installation: Installation) -> None:
    began_s = time.monotonic()
    server = installation.start("quartet", "serve", "smollm2", environment=installation.without_torch)
    output, _ = server.communicate(timeout=30)
    assert server.returncode == 2, output
    assert output.count("\n") == 1 and f"{installation.bin}/python -m pip install torch==" in output
    assert time.monotonic() - began_s < 5


def test_a_simulated_worker_needs_no_torch(installation: Installation) -> None:
    with serving(installation, "--simulated-worker", environment=installation.without_torch) as url:
        assert complete(url)["usage"]["completion_tokens"] == 8


def test_it_serves(installation: Installation) -> None:
    with serving(installation, "--device", "cpu", "--max-total-tokens", "4096") as url:
        assert "Paris" in complete(url)["choices"][0]["text"]


def complete(url: str) -> Any:
    """Return the answer of the completions route to a question with one answer."""
    body = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@contextmanager
def serving(installation: Installation, *flags: str, environment: dict[str, str] | None = None) -> Iterator[str]:
    """Serve, yield the URL, and drain to exit code 0."""
    place = ("--port", "0", "--run-dir", str(installation.folder))
    server = installation.start("quartet", "serve", "smollm2", *place, *flags, environment=environment)
    try:
        assert server.stdout is not None
        lines = list[str]()
        for line in server.stdout:
            lines.append(line)
            if found := READY.search(line):
                break
        else:
            raise AssertionError("the server did not start:\n" + "".join(lines))
        yield found[1]
        server.send_signal(signal.SIGTERM)
        rest, _ = server.communicate(timeout=30)
        assert server.returncode == 0, rest
    finally:
        if server.poll() is None:
            server.kill()
            server.communicate()
