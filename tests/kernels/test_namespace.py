"""`kernels` must stay apart from the Hugging Face package of that name, which transformers probes for."""

import sys
import tomllib
from pathlib import Path

import kernels
from quartet.version import __version__

ROOT = Path(__file__).resolve().parents[2]
# Modules of that package in its releases 0.4.4, 0.9.1, 0.11.7 and 0.17.2.
TAKEN = {
    "archs", "backends", "benchmark", "benchmarks", "check", "cli", "compat", "deps", "doc", "hf_hub", "importer",
    "install", "layer", "load", "locking", "lockfile", "python_deps", "resolver", "status", "utils", "validate",
    "variants", "verify", "wheel", "_interval_tree", "_system", "_versions", "_windows",
}  # fmt: skip


def test_is_a_namespace_in_the_checkout():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert getattr(kernels, "__file__", None) is None
    assert str(ROOT / "kernels") in {str(Path(entry).resolve()) for entry in kernels.__path__}


def test_no_module_has_a_name_of_theirs():
    ours = {path.stem for path in (ROOT / "kernels").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert "paged_decode" in ours
    assert not ours & TAKEN


def test_version_is_below_what_transformers_accepts():
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert "version" in tomllib.load(file)["project"]["dynamic"], "one origin: quartet/version.py"
    assert tuple(int(part) for part in __version__.split(".")[:2]) < (0, 10)


def test_kernels_import_torch_and_triton_only():
    """Beside the standard library; those for the CPU are compiled by llvmlite instead of Triton."""
    for path in (ROOT / "kernels").glob("*.py"):
        allowed = {"kernels", "torch", "llvmlite" if path.name.startswith("cpu_") else "triton"}
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] in allowed | sys.stdlib_module_names, f"{path.name}: {line}"
