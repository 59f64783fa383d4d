"""`python -m tests.fuzz.model_files --seconds N [--seed S]`: whatever a model's files contain, a launch serves the
model or refuses it in one line, within 2 s of processor time and 1 GB.

A case does in one process what the processes of a launch do with the files, up to the point where they are ready.
"""

import argparse
import itertools
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from detok_proc.incremental import DecoderFactory
from quartet.checkpoint.convert import convert
from quartet.checkpoint.resolve import resolve_model
from quartet.checkpoint.tokenizer_files import tokenizer_folder
from quartet.runtime.clock import MonotonicClock
from quartet.wire.config import Config, ModelConfig, WorkerConfig
from quartet.wire.errors import ConfigError, ModelError
from tests.fuzz.guarded import Finding, print_kinds, run_guarded, until
from tests.fuzz.hostile_models import write_folder, write_gguf
from tokenizer_proc.process import load_core
from worker_proc.simulated import SimulatedRunner

LONGEST_LINE = 1000
_GGUF_SHARE = 4
"""One case in so many is a GGUF file."""


def run_case(case: int, seed: int = 0) -> str:
    """Do what a launch does with the files of this case; returns what is wrong, nothing if all is well."""
    folder = Path(tempfile.mkdtemp(prefix="qfuzz", dir="/dev/shm"))
    try:
        load(make(folder, case, seed), is_dummy=case % 7 == 0)
    except (ModelError, ConfigError) as error:
        line = str(error)
        return (
            "" if line.isprintable() and 0 < len(line) < LONGEST_LINE else f"a message that is no line: {line!r:.150}"
        )
    except BaseException as error:
        where = [frame for frame in traceback.extract_tb(error.__traceback__) if ".venv" not in frame.filename]
        at = next(
            (f"{Path(f.filename).name}:{f.lineno}" for f in reversed(where) if "importlib" not in f.filename), "?"
        )
        return f"{type(error).__name__} at {at}: {str(error)!r:.100}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""


def make(folder: Path, case: int, seed: int = 0) -> Path:
    """Write the model of this case into `folder`; returns its path."""
    if case % _GGUF_SHARE:
        write_folder(folder / "model", case, seed)
        return folder / "model"
    os.environ["QUARTET_CACHE_DIR"] = str(folder / "cache")
    write_gguf(folder / "model.gguf", case, seed)
    return folder / "model.gguf"


def load(path: Path, is_dummy: bool) -> None:
    """Load a model as far as a launch does before it is ready."""
    import torch

    from worker_proc.loading import load_runner

    if path.suffix == ".gguf":
        path = convert(path)
    model = ModelConfig(model_path=str(path), load_format="dummy" if is_dummy else "auto")
    resolved = resolve_model(model)
    worker = WorkerConfig(device="cpu", max_total_tokens=4096)
    config = Config(model=model, worker=worker, resolved=resolved)
    load_core(config)
    DecoderFactory(tokenizer_folder(config))
    SimulatedRunner(config, MonotonicClock())
    with torch.inference_mode():
        load_runner(config, lambda: None)


def fuzz(seconds: float, seed: int = 0, count: int | None = None) -> tuple[int, list[Finding]]:
    """Run cases for `seconds`, or the first `count`; returns how many and what was found."""
    import torch

    import worker_proc.loading  # noqa: F401

    torch.set_num_threads(1)
    numbers = until(seconds) if count is None else itertools.islice(until(seconds), count)
    return run_guarded(lambda case: run_case(case, seed), numbers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    count, findings = fuzz(arguments.seconds, arguments.seed)
    kinds = print_kinds(findings)
    print(f"{count} models with seed {arguments.seed}: {len(findings)} findings of {kinds} kinds")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
