"""The Dockerfile and the systemd unit name flags, settings, files, ports and routes that exist."""

import argparse
import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quartet.cli import serve
from quartet.cli.main import COMMANDS
from quartet.runtime import installed
from quartet.settings import SECTIONS, fields_of
from quartet.wire.config import ServerConfig
from quartet.wire.errors import ConfigError, ModelError

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
UNIT = ROOT / "deploy" / "quartet.service"
VARIABLES = {f"QUARTET_{field.name.upper()}" for section in SECTIONS.values() for field in fields_of(section)}
VARIABLES |= {"QUARTET_CACHE_DIR"}


def instructions(name: str) -> list[str]:
    """Return the arguments of every instruction of a name, continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.split(None, 1)[1].strip() for line in joined.splitlines() if line.startswith(f"{name} ")]


def check_command(command: list[str]) -> None:
    """Check that the command line takes these arguments."""
    assert command[0] in {one.name for one in COMMANDS}
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    assert parser.parse_args(command[1:]).model


def test_the_image_copies_and_installs_what_there_is() -> None:
    for copied in instructions("COPY"):
        source = copied.split()[0]
        assert (ROOT / source).exists(), source
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    admitted = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    assert all((ROOT / name).exists() for name in admitted)
    packages = {path.name for path in ROOT.glob("*_proc")} | {"quartet", "kernels", "requirements", "pyproject.toml"}
    assert packages | {"README.md"} <= set(admitted)
    for version in (installed.TORCH_CUDA, installed.TORCH_CPU, installed.BUNDLED_MODEL):
        assert version in DOCKERFILE


def test_the_image_serves_unprivileged_on_the_port_that_it_exposes() -> None:
    port = ServerConfig().port
    assert instructions("USER")[-1] not in ("root", "0")
    assert instructions("EXPOSE") == [str(port)] and f"127.0.0.1:{port}/health'" in instructions("HEALTHCHECK")[0]
    assert instructions("ENTRYPOINT") == ['["quartet"]']
    check_command(shlex.split(instructions("CMD")[-1].strip("[]").replace(",", " ")))
    assert set(re.findall(r"QUARTET_[A-Z_]+", DOCKERFILE)) <= VARIABLES


def test_every_instruction_is_one_of_dockers() -> None:
    lines = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    known = r"(FROM|ARG|RUN|COPY|ENV|VOLUME|USER|WORKDIR|EXPOSE|HEALTHCHECK|ENTRYPOINT|CMD) "
    assert lines[0].startswith("FROM ") and all(re.match(known, line) for line in lines)


def test_the_shell_of_the_image_is_well_formed() -> None:
    for line in instructions("RUN"):
        script = re.sub(r"--mount=\S+", "", line)
        subprocess.run(["sh", "-n", "-c", script], check=True, timeout=10)


def test_the_unit_names_what_there_is() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    check_command(shlex.split(service["ExecStart"])[1:])
    assert set(re.findall(r"QUARTET_[A-Z_]+", UNIT.read_text())) <= VARIABLES
    assert service["RestartPreventExitStatus"].split() == [str(ConfigError.exit_code), str(ModelError.exit_code)]
    assert float(service["TimeoutStopSec"]) >= ServerConfig().shutdown_timeout + 20


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    copy = tmp_path / UNIT.name
    # The program must exist.
    copy.write_text(UNIT.read_text().replace("/opt/quartet/bin/quartet", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and UNIT.name not in done.stderr, done.stderr
