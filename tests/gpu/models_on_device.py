"""Whole models on a device: batches, graphs, chunks, pages and the prefix tree must not change a token in fp32.

    python -m tests.gpu.models_on_device [--json FILE] [--device cuda|cpu] [--quick] [--only NAMES] [--jobs N]

Runs the folders of tests/golden/models, and two with random weights whose heads are as wide as real ones, in the ways
of tests.gpu.model_ways. The reference is the engine without graphs that runs one prompt at a time; it must agree with
the committed oracle where there is one, and every way must agree with it. Where a row differs, plain torch on the CPU
computes by how much the expected token was better than the one found: less than NEAR_TIE is rounding, as cuBLAS may add
up in another order for another batch size. bfloat16 with graphs is compared with bfloat16 without, and only reported.
Exit code 1 for any other difference.

With a cold kernel cache, compiling takes minutes: --jobs spreads the folders over processes. --quick runs few short
prompts on two folders, one of them with smaller dimensions, which Triton's interpreter can run on the CPU
(--device cpu).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

QUICK_FOLDERS = ("qwen3", "wide_llama")
QUICK_SIZES = {"vocab_size": 300, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1}


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: Triton's interpreter")
    parser.add_argument("--quick", action="store_true", help="few short prompts, two folders")
    parser.add_argument("--only", default="", help="comma-separated names of folders")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the folders")
    parser.add_argument("--no-table", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def every_folder() -> list[str]:
    """Return the names of all folders: those with random weights, then those with an oracle."""
    from tests.gpu.model_folder import GOLDEN
    from tests.support.random_folder import CONFIGS

    return [*CONFIGS, *sorted(path.parent.name for path in GOLDEN.glob("*/oracle.json"))]


def folder_names(options: argparse.Namespace) -> list[str]:
    """Return the names of the folders to run."""
    every = every_folder()
    wanted = options.only.split(",") if options.only else QUICK_FOLDERS if options.quick else every
    unknown = set(wanted) - set(every)
    if unknown:
        sys.exit(f"no such folder: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    return list(wanted)


def run_folder(name: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run one folder in this process, and write it first if its weights are random; {} if it fails."""
    from tests.gpu.model_folder import GOLDEN, FolderRun
    from tests.support.random_folder import CONFIGS, make_folder

    with tempfile.TemporaryDirectory() as made:
        path = GOLDEN / name
        if name in CONFIGS:
            path = Path(made, name)
            make_folder(path, {**CONFIGS[name], **(QUICK_SIZES if options.quick else {})})
        try:
            return {name: FolderRun(name, path, options.device, options.quick).run()}
        except Exception:  # a failure must not lose the other folders
            traceback.print_exc()
            return {}


def run_spread(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run the folders in parallel processes; the folders of a process that dies have no result."""
    base = [sys.executable, "-m", "tests.gpu.models_on_device", "--no-table", "--device", options.device]
    base += ["--quick"] if options.quick else []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        files = [Path(made, str(job)) for job in range(min(options.jobs, len(names)))]
        children = [
            subprocess.Popen([*base, "--json", str(file), "--only", ",".join(names[job :: len(files)])])
            for job, file in enumerate(files)
        ]
        for child, file in zip(children, files, strict=True):
            child.wait()
            if file.exists():
                results |= json.loads(file.read_text())["folders"]
    return {name: results[name] for name in names if name in results}


def print_table(results: dict[str, Any]) -> None:
    """Print the equal rows of each way and folder; ~ marks near-ties, ! errors."""
    print(f"\n{'rows as the reference':36}" + "".join(f"{name:>12}" for name in results))
    for way in next(iter(results.values()))["cells"] if results else ():
        print(f"{way:36}" + "".join(f"{result['cells'].get(way, '?'):>12}" for result in results.values()))
    shares = [f"{one['bfloat16']['equal_tokens']}/{one['bfloat16']['tokens']}" for one in results.values()]
    print(f"{'bfloat16: tokens as without graphs':36}" + "".join(f"{share:>12}" for share in shares))


def main() -> int:
    """Run everything, print a table, write JSON where asked; return the exit code."""
    options = parse_options()
    if options.device == "cpu":
        from tests.support.interpreted import interpret_kernels

        interpret_kernels()
    # Some containers set it, which makes fp32 products TF32 ones.
    os.environ.pop("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", None)
    import torch
    import triton

    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: use --device cpu --quick for a trial of this script")
        return 1
    device = torch.cuda.get_device_name() if options.device == "cuda" else "interpreter"
    report = {"device": device, "torch": torch.__version__, "triton": triton.__version__}
    report |= {"tf32": torch.backends.cuda.matmul.allow_tf32, "quick": options.quick}
    print(", ".join(f"{key} {value}" for key, value in report.items()), flush=True)
    names = folder_names(options)
    results: dict[str, Any] = run_spread(names, options) if options.jobs > 1 else {}
    for name in names if options.jobs <= 1 else ():
        results |= run_folder(name, options)
    if options.json:
        options.json.write_text(json.dumps({**report, "folders": results}, indent=1) + "\n")
    if options.no_table:
        return 0
    print_table(results)
    wrong = [f"{name}: {way}" for name, result in results.items() for way in result["wrong"]]
    wrong += [f"{name}: no result" for name in names if name not in results]
    print("\n".join(["", *(f"WRONG {one}" for one in wrong), f"{len(names)} folders, {len(wrong)} wrong"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
