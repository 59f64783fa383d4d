"""`python -m quartet.checkpoint.convert SOURCE`: make a model a local folder in Hugging Face layout.

SOURCE is a GGUF file or `smollm2`, which are converted into the cache once, or a hub id, which is downloaded. It is a
process of its own so that its parent imports neither numpy, tokenizers nor the hub's client. The one line on
stdout is the folder (exit code 0) or why there is none (exit code 3); progress goes to stderr.
"""

import argparse
import sys
from pathlib import Path

from quartet.checkpoint.cache import build, entry_path
from quartet.checkpoint.source import locate_gguf
from quartet.runtime.lifetime import depend_on_parent
from quartet.runtime.output import STDERR, lossy_output
from quartet.wire.errors import ModelError

EXIT_MODEL_ERROR = 3
_EXIT_INTERRUPTED = 130


def make_local(source: str, revision: str = "") -> Path:
    """Return the folder for `source`, converting or downloading it if necessary.

    Raises ModelError with one line of instructions.
    """
    path = locate_gguf(source)
    if path is not None:
        return convert(path)
    from quartet.checkpoint.hub import download

    return download(source, revision)


def convert(path: Path) -> Path:
    """Return the folder with the converted form of the GGUF file at `path`, made if it is not in the cache."""

    def make(folder: Path) -> None:
        from quartet.checkpoint.gguf_convert import convert_gguf

        convert_gguf(path, folder, _report)

    try:
        entry = entry_path(path)
        build(entry, make, path)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ModelError(
            f"cannot convert {path.name}: {error.strerror}{where}; QUARTET_CACHE_DIR can name another cache folder"
        ) from error
    return entry


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m quartet.checkpoint.convert", description="Make a model local.")
    parser.add_argument("source", help=".gguf file, smollm2 or hub id")
    parser.add_argument("--revision", default="", help="branch, tag or commit of a hub id")
    parser.add_argument("--parent-pid", type=int, help="process to end with, and to leave signals to")
    chosen = parser.parse_args(arguments)
    if chosen.parent_pid is not None:
        depend_on_parent(chosen.parent_pid)
    try:
        with lossy_output(STDERR):
            folder = make_local(chosen.source, chosen.revision)
        print(folder)
    except ModelError as error:
        print(error)
        return EXIT_MODEL_ERROR
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
