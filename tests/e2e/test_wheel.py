"""The built wheel, installed outside the checkout into an environment of its own: it is complete, and it serves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

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

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start a program of the environment's bin folder, outside the checkout."""
        return subprocess.Popen(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.elsewhere,
            env=self.environment,
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


def test_the_wheel_holds_every_module_and_no_other_name(installation: Installation) -> None:
    with zipfile.ZipFile(installation.wheel) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert {name.partition("/")[0] for name in names} == set(PACKAGES)
    source = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert set(names) == source
    # A folder without __init__.py is easily left out.
    assert "kernels/paged_decode.py" in source and "kernels/__init__.py" not in source


def test_every_package_is_imported_from_the_installation(installation: Installation) -> None:
    program = f"import importlib; print(*(importlib.import_module(name).__path__[0] for name in {PACKAGES}))"
    found = installation.run("python", "-c", program).split()
    assert len(found) == len(PACKAGES)
    assert all(Path(path).is_relative_to(installation.folder / "env") for path in found)
    assert installation.run("quartet", "--version").split() == ["quartet", __version__]


def test_it_serves(installation: Installation) -> None:
    flags = ("--port", "0", "--device", "cpu", "--max-total-tokens", "4096", "--run-dir", str(installation.folder))
    server = installation.start("quartet", "serve", "smollm2", *flags)
    try:
        assert server.stdout is not None
        lines = list[str]()
        for line in server.stdout:
            lines.append(line)
            if found := READY.search(line):
                break
        else:
            raise AssertionError("the server did not start:\n" + "".join(lines))
        body = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
        request = urllib.request.Request(
            found[1] + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "Paris" in answer["choices"][0]["text"]
        server.send_signal(signal.SIGTERM)
        rest, _ = server.communicate(timeout=30)
        assert server.returncode == 0, rest
    finally:
        if server.poll() is None:
            server.kill()
            server.communicate()
