"""Times candidate launch parameters of the attention kernels on a GPU: the measurements behind their tables.

    python -m benchmarks.kernels.kernel_tuning --json FILE [--seconds N] [--jobs N]

Child processes compile first, so that the timing finds everything in the kernel cache. The extend kernel is checked in
child processes with a time limit, because a wrong barrier hangs instead of failing.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.kernels.attention_errors import error, extend_error, has_same_bits
from benchmarks.kernels.attention_times import HEADS, PAGE_SIZE, SCALE, copies_of, graph_us, timed_extend
from benchmarks.kernels.random_inputs import BAD_PAGE, BF16, FP16, RandomInputs, poisoned_empty
from benchmarks.report import write_json
from benchmarks.roofline import HEAD_DIM, KV_HEADS, kv_bytes
from kernels import decode_partition, paged_decode, paged_extend, paged_extend_hopper
from kernels.decode_partition import DecodeTile
from kernels.paged_extend import ExtendTile
from kernels.paged_reference import paged_decode_reference

MAKE = RandomInputs(torch.device("cuda"))
DECODE_TILES = [DecodeTile(32, 4, 3, 4), DecodeTile(32, 4, 4, 4), DecodeTile(64, 4, 3, 3), DecodeTile(64, 4, 4, 2)]
# None: chosen by the row's length.
SPLITS = (None, 256, 512)
DECODE_SHAPES = [
    (1, 1024), (8, 1024), (64, 1024), (256, 1024), (1, 4096), (8, 4096), (64, 4096), (1, 16384), (8, 16384),
    (64, 16384), (256, 2048),
]  # fmt: skip
EXTEND_SHAPES = [(1, 4096, 0), (1, 16384, 0), (8, 1024, 0), (1, 512, 8192), (1, 2048, 14336), (1, 128, 0)]
# Keys per tile and stages of the Hopper kernel, then a tile of the plain one.
EXTEND_VARIANTS: list[tuple[int, int] | ExtendTile] = [(128, 2), (64, 4), ExtendTile(128, 64, 8, 2)]
CHECKED_SHAPES = [
    ((32, 8, 128), 16, BF16), ((32, 8, 128), 64, BF16), ((32, 8, 128), 128, BF16),
    ((9, 3, 64), 16, BF16), ((32, 8, 128), 16, FP16),
]  # fmt: skip
EXTEND_SPECS = [
    [(0, 17), (40, 9), (0, 1), (31, 33)], [(0, 700)], [(0, 2048)], [(7, 1)] * 40,
    [(1000, 300), (0, 1), (513, 64), (63, 65), (5, 0), (2000, 1)],
]  # fmt: skip


def use_decode(tile: DecodeTile) -> None:
    """Make paged_decode launch with this tile for head dim 128 and 16-bit types."""
    decode_partition.TILES[HEAD_DIM, 2] = tile


def use_extend(variant: tuple[int, int] | ExtendTile) -> None:
    """Make paged_extend take the Hopper kernel with these keys per tile and stages, or the plain one with this tile."""
    if isinstance(variant, ExtendTile):
        paged_extend.fits_hopper = lambda *shape: False
        paged_extend.LARGE_TILES[HEAD_DIM, 2] = variant
    else:
        paged_extend.fits_hopper = HOPPER
        paged_extend.BLOCK_N, paged_extend_hopper.STAGES = variant


HOPPER = paged_extend.fits_hopper


def compile_jobs() -> list[tuple[str, Any]]:
    """Return everything that the timings need compiled."""
    jobs: list[tuple[str, Any]] = [("decode", variant) for variant in itertools.product(DECODE_TILES, SPLITS)]
    if "--extend" not in sys.argv:
        return jobs
    return jobs + [("extend", (tile, page)) for tile, page in itertools.product(EXTEND_VARIANTS, (16, 64))]


def decode_verdict(tile: DecodeTile, split: int | None) -> str:
    """Compare with float64, and bit for bit between three numbers of programs."""
    lens = [255, 256, 257, 1000, 4097, 0, 3]
    cache, table, context = MAKE.paged(lens, KV_HEADS, HEAD_DIM, PAGE_SIZE, BF16)
    # The page tables of the timed shapes have such widths, and Triton specialises the kernel by the width.
    table = torch.nn.functional.pad(table, (0, -table.shape[1] % 16), value=BAD_PAGE)
    q = MAKE.normal(len(lens), HEADS, HEAD_DIM, dtype=BF16)
    results = []
    plain = decode_partition._resident_programs
    for programs in (plain(MAKE.device, tile.programs_per_sm), 17, 1):
        use_decode(tile)
        decode_partition._resident_programs = lambda device, per_sm, programs=programs: programs
        results.append(paged_decode.paged_decode(q, cache, table, context, SCALE, split_size=split))
    decode_partition._resident_programs = plain
    expected = paged_decode_reference(q.double(), cache.double(), table, context, SCALE)
    same = all(torch.equal(result, results[0]) for result in results)
    return f"error {error(results[0], expected):.2e}, same bits {same}"


def compile_share(share: int, shares: int) -> None:
    """Compile every `shares`-th job by launching it on a small input."""
    for kind, arguments in compile_jobs()[share::shares]:
        try:
            if kind == "decode":
                print(arguments, decode_verdict(*arguments), flush=True)
            else:
                tile, page = arguments
                use_extend(tile)
                timed_extend(MAKE, 1, 2048, 0, page)
        except Exception as problem:
            print(f"{kind} {arguments}: {type(problem).__name__}: {problem}"[:300], flush=True)
    torch.cuda.synchronize()


def check_extend(number: int) -> None:
    """Print one JSON line for each comparison of the chosen extend kernel in one shape."""
    shape, page, dtype = CHECKED_SHAPES[number]
    torch.empty = poisoned_empty(torch.empty)
    for spec in EXTEND_SPECS:
        torch.manual_seed(0)
        worst = extend_error(MAKE, shape, page, dtype, spec)
        print(json.dumps({"shape": [*shape, page], "spec": str(spec)[:60], "error": worst}), flush=True)
    print(json.dumps({"shape": [*shape, page], "same_bits": has_same_bits(MAKE, shape, page, dtype, 1000)}), flush=True)


def prepare(jobs: int, limit_s: float, extend: bool) -> list[dict[str, Any]]:
    """Run the child processes that compile and check; return what the checks found."""
    begin = time.monotonic()
    base = [sys.executable, "-m", "benchmarks.kernels.kernel_tuning"]
    kinds = ["--extend"] if extend else []
    compiles = [subprocess.Popen([*base, *kinds, "--compile", f"{share}/{jobs}"]) for share in range(jobs)]
    checks = [
        subprocess.Popen([*base, "--check", str(number)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for number in range(len(CHECKED_SHAPES) if extend else 0)
    ]
    results: list[dict[str, Any]] = []
    for number, child in enumerate(checks):
        try:
            text = child.communicate(timeout=max(1.0, limit_s - (time.monotonic() - begin)))[0]
        except subprocess.TimeoutExpired:
            child.kill()
            text = f"{child.communicate()[0]}\nhung"
        lines = text.splitlines()
        results += [json.loads(line) for line in lines if line.startswith("{")]
        rest = [line for line in lines if line and not line.startswith("{")]
        if child.returncode:
            results.append({"shape": str(CHECKED_SHAPES[number]), "failed": "\n".join(rest[-25:])})
    for child in compiles:
        child.wait()
    print(f"prepared in {time.monotonic() - begin:.0f} s", flush=True)
    return results


def decode_call(**arguments: Any) -> Callable[[], torch.Tensor]:
    """Return paged_decode with everything bound."""
    return lambda: paged_decode.paged_decode(**arguments)


def decode_rows() -> Iterator[dict[str, Any]]:
    """Time every tile and split over all shapes; the shape is outermost, as its input is large."""
    for batch, context in DECODE_SHAPES:
        cache, tables = MAKE.regions(batch, context, PAGE_SIZE, copies_of(kv_bytes(batch * context)))
        q, lens = MAKE.normal(batch, HEADS, HEAD_DIM, dtype=BF16), MAKE.integers([context] * batch)
        if context == 2048:
            # As in a busy engine: lengths from 100 tokens up.
            lens = (100 + torch.rand(batch, device=MAKE.device) * (context - 100)).int()
        for tile, split in itertools.product(DECODE_TILES, SPLITS):
            use_decode(tile)
            row = {"case": f"{batch} x {context}", "tile": list(tile), "split": split}
            fixed = {"q": q, "kv_cache": cache, "context_lens": lens, "scale": SCALE, "split_size": split}
            try:
                yield {**row, "us": graph_us([decode_call(page_table=table, **fixed) for table in tables])}
            except Exception as problem:
                yield {**row, "failed": f"{type(problem).__name__}: {problem}"[:200]}
        cache, tables, fixed = None, [], {}
        torch.cuda.empty_cache()


def extend_rows() -> Iterator[dict[str, Any]]:
    """Time all variants at two page sizes, over all shapes."""
    for shape, variant, page in itertools.product(EXTEND_SHAPES, EXTEND_VARIANTS, (16, 64)):
        use_extend(variant)
        try:
            yield {**timed_extend(MAKE, *shape, page), "tile": list(variant)}
        except Exception as problem:
            yield {"case": str(shape), "tile": list(variant), "failed": f"{type(problem).__name__}: {problem}"[:200]}
        torch.cuda.empty_cache()


def time_until(deadline: float, with_extend: bool) -> list[dict[str, Any]]:
    """Return the rows that are timed before the deadline."""
    rows: list[dict[str, Any]] = []
    for row in itertools.chain(extend_rows() if with_extend else (), decode_rows()):
        rows.append(row)
        if "TFLOP/s" in row or "failed" in row:
            print(row.get("case"), row["tile"], row.get("TFLOP/s", row.get("failed")), flush=True)
        if time.monotonic() > deadline:
            print("out of time")
            break
    return rows


def print_best(rows: list[dict[str, Any]]) -> None:
    """Print the fastest decode row of each case."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "split" in row and "us" in row and row["us"] < best.get(row["case"], {"us": 1e9})["us"]:
            best[row["case"]] = row
    for row in best.values():
        print(row)


def main() -> int:
    """Prepare, time until the seconds are used up, write the rows so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="", help="file to write the results to")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--jobs", type=int, default=11)
    parser.add_argument("--extend", action="store_true", help="extend as well")
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    parser.add_argument("--check", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile:
        compile_share(*map(int, options.compile.split("/")))
        return 0
    if options.check is not None:
        check_extend(options.check)
        return 0
    begin = time.monotonic()
    checks = prepare(options.jobs, options.seconds / 2, options.extend)
    for row in checks:
        print(row, flush=True)
    is_sound = all("failed" not in row or "128" not in str(row["shape"]) for row in checks)
    rows = time_until(begin + options.seconds, with_extend=options.extend and is_sound)
    print_best(rows)
    report = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "checks": checks, "rows": rows}
    write_json(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
