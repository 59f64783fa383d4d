"""Checks every kernel on a GPU against float64 or its torch reference, then times a few shapes beside their floors.

    python -m benchmarks.kernels.kernel_times [--json FILE] [--no-timing] [--jobs N]

Exit code 1 when a check fails. With a cold kernel cache, compiling takes minutes: --jobs spreads the checks over as
many processes. Inputs are random, what must not be read is NaN, outputs start as NaN. Timings are medians of replays of
a CUDA graph whose calls walk over more memory than the L2 cache holds; beside them, where it was measured on an H100 in
the same way (page 16), the time of FlashAttention-3 as vLLM 0.24.0 calls it. With --interpret it runs a few small cases
on Triton's CPU interpreter, which checks this script and no more.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

INTERPRET = "--interpret" in sys.argv
if INTERPRET:
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
import triton  # noqa: E402

from benchmarks.serving.speed_to_beat import FA3_DECODE, FA3_EXTEND, FA3_MIXED  # noqa: E402
from kernels.activation import silu_mul, silu_mul_reference  # noqa: E402
from kernels.decode_plan import plan_decode  # noqa: E402
from kernels.norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference  # noqa: E402
from kernels.paged_decode import paged_decode, paged_decode_reference  # noqa: E402
from kernels.paged_extend import paged_extend, paged_extend_reference  # noqa: E402
from kernels.rope_kv import rope_and_write_kv, rope_and_write_kv_reference  # noqa: E402

DEVICE = torch.device("cpu" if INTERPRET else "cuda")
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
# The interpreter alone computes nonsense in bfloat16; the test suite repairs it, this script does not.
DTYPES = (FP32, FP16) if INTERPRET else (BF16, FP16, FP32)
ATTENTION_TOLERANCE = {FP32: 1e-5, FP16: 3e-3, BF16: 2.5e-2}
ROUNDING_TOLERANCE = {FP32: 5e-6, FP16: 4e-3, BF16: 3.2e-2}
BAD_PAGE = 1 << 30
PEAK_BYTES_PER_S, PEAK_FLOPS = 3.35e12, 989e12  # H100 SXM
ROTATED_BYTES = 200 << 20
# Of one shape: they share kernels, and should share a process.
CHECKS_PER_CASE = 14

Check = Callable[[], float | bool]


def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Values of unit variance, made in place: a cache of many GB has no room for a wider copy."""
    return torch.empty(shape, dtype=dtype, device=DEVICE).normal_()


def norm_weight(width: int, dtype: torch.dtype) -> torch.Tensor:
    """Near one, as trained ones are: large ones would multiply a single flipped rounding."""
    return 1.0 + 0.1 * normal(width, dtype=dtype)


def integers(values: Sequence[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """A tensor of the values on the checked device."""
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference; NaN counts as infinite."""
    worst = (actual.double() - expected.double()).abs().max().item()
    return worst if worst == worst else float("inf")


def paged(lens: Sequence[int], kv_heads: int, dim: int, page: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Cache, page table and lengths: pages shuffled, everything unused NaN or a wild page id."""
    counts = [-(-length // page) for length in lens]
    pages = iter((torch.randperm(sum(counts), device=DEVICE) + 1).split(counts))
    cache = torch.full((sum(counts) + 1, 2, kv_heads, page, dim), float("nan"), dtype=dtype, device=DEVICE)
    table = torch.full((len(lens), max(counts) + 1), BAD_PAGE, dtype=torch.int32, device=DEVICE)
    for seq, (length, count) in enumerate(zip(lens, counts, strict=True)):
        own = next(pages)
        kv = normal(count * page, 2, kv_heads, dim, dtype=dtype)
        kv[length:] = float("nan")
        cache[own] = kv.view(count, page, 2, kv_heads, dim).permute(0, 2, 3, 1, 4)
        table[seq, :count] = own.int()
    return cache, table, integers(lens)


def decode_error(
    shape: tuple[int, int, int], page: int, dtype: torch.dtype, lens: Sequence[int], split: int | None
) -> float:
    """Largest error of decode over the given context lengths."""
    heads, kv_heads, dim = shape
    cache, table, context = paged(lens, kv_heads, dim, page, dtype)
    q = normal(len(lens), heads, dim, dtype=dtype)
    out = paged_decode(q, cache, table, context, dim**-0.5, split_size=split)
    return error(out, paged_decode_reference(q.double(), cache.double(), table, context, dim**-0.5))


def extend_error(shape: tuple[int, int, int], page: int, dtype: torch.dtype, specs: Sequence[tuple[int, int]]) -> float:
    """Largest error of extend over (cached, new) token counts."""
    heads, kv_heads, dim = shape
    news = [new for _, new in specs]
    cache, table, context = paged([cached + new for cached, new in specs], kv_heads, dim, page, dtype)
    cu_q, q = integers([0, *itertools.accumulate(news)]), normal(sum(news), heads, dim, dtype=dtype)
    rest = (table, cu_q, context, dim**-0.5)
    out = paged_extend(q, cache, *rest, max_q_len=max(news))
    return error(out, paged_extend_reference(q.double(), cache.double(), *rest, max_q_len=max(news)))


def rope_error(shape: tuple[int, int, int], page: int, dtype: torch.dtype, tokens: int, norm: bool) -> float:
    """Largest error of q, k and (must be exact) v; a skipped token and untouched slots included."""
    heads, kv_heads, dim = shape
    fused = normal(tokens, heads + 2 * kv_heads, dim, dtype=dtype)
    q, k, v = fused.split((heads, kv_heads, kv_heads), dim=1)
    angles = torch.rand(512, dim // 2, device=DEVICE) * 6.3
    table = torch.cat((angles.cos(), angles.sin()), dim=1)
    cache = normal(-(-tokens // page) + 2, 2, kv_heads, page, dim, dtype=dtype)
    slots = torch.randperm(cache.shape[0] * page, device=DEVICE)[:tokens]
    slots[tokens // 2] = -1
    positions = torch.randint(512, (tokens,), device=DEVICE)
    norms = [norm_weight(dim, dtype) for _ in range(2)] if norm else [None, None]
    expected_cache = cache.clone()
    args = (q, k, v, table, positions, slots)
    out = rope_and_write_kv(*args, cache, q_norm=norms[0], k_norm=norms[1])
    expected = rope_and_write_kv_reference(*args, expected_cache, q_norm=norms[0], k_norm=norms[1])
    if not torch.equal(cache[:, 1], expected_cache[:, 1]):
        return float("inf")
    return max(error(out, expected), error(cache[:, 0], expected_cache[:, 0]))


def norm_error(rows: int, width: int, dtype: torch.dtype) -> float:
    """Largest error of both norms; the stored residual must be exact."""
    x, residual, weight = normal(rows, width, dtype=dtype), normal(rows, width, dtype=dtype), norm_weight(width, dtype)
    y, total = add_rms_norm(x, residual, weight, 1e-5)
    expected, expected_total = add_rms_norm_reference(x, residual, weight, 1e-5)
    if not torch.equal(total, expected_total):
        return float("inf")
    return max(error(y, expected), error(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5)))


def silu_error(rows: int, width: int, dtype: torch.dtype) -> float:
    """Largest error of the gated activation."""
    x = normal(rows, 2 * width, dtype=dtype)
    return error(silu_mul(x), silu_mul_reference(x))


def same_bits(shape: tuple[int, int, int], page: int, dtype: torch.dtype, length: int) -> bool:
    """Chunked = one-shot, a row alone = in a batch, the same twice; the later chunks' pages are NaN at first."""
    heads, kv_heads, dim = shape
    lens = (length, length // 3, 2 * length // 3)
    cache, table, context = paged(lens, kv_heads, dim, page, dtype)
    q = normal(length, heads, dim, dtype=dtype)
    scale, one = dim**-0.5, (table[:1], integers([0, length]))
    whole = paged_extend(q, cache, *one, context[:1], scale, max_q_len=length)
    ok = torch.equal(whole, paged_extend(q, cache, *one, context[:1], scale, max_q_len=length))
    for cut in (1, length // 2 + 1, length - 5):
        early = cache.clone()
        tokens = torch.arange(cut, length, device=DEVICE)
        early[table[0, tokens // page].long(), :, :, tokens % page] = float("nan")
        first = paged_extend(q[:cut], early, table[:1], integers([0, cut]), integers([cut]), scale, max_q_len=cut)
        bounds = integers([0, length - cut])
        rest = paged_extend(q[cut:], cache, table[:1], bounds, context[:1], scale, max_q_len=length - cut)
        ok &= torch.equal(torch.cat((first, rest)), whole)
    rows = paged_decode(q[:3], cache, table, context, scale)
    for seq in range(3):
        own = slice(seq, seq + 1)
        ok &= torch.equal(paged_decode(q[own], cache, table[own], context[own], scale), rows[own])
    return bool(ok)


def far_pages() -> float:
    """Pages beyond 2^31 elements of a real cache, for the write, decode and extend."""
    page_elements = 2 * 2 * 16 * 128
    cache = torch.zeros((2**31 // page_elements + 9, 2, 2, 16, 128), dtype=BF16, device=DEVICE)
    table, last = torch.zeros((1, 1), dtype=torch.int32, device=DEVICE), cache.shape[0] - 1
    table[0, 0] = last
    q, k, v = normal(9, 4, 128, dtype=BF16), normal(9, 2, 128, dtype=BF16), normal(9, 2, 128, dtype=BF16)
    angles = torch.zeros(16, 128, device=DEVICE)
    angles[:, :64] = 1.0
    slots = torch.arange(9, device=DEVICE) + last * 16
    q = rope_and_write_kv(q, k, v, angles, torch.arange(9, device=DEVICE), slots, cache)
    near, near_table = torch.cat((cache[:1], cache[-1:])), integers([1]).view(1, 1)
    wide, lens, bounds = near.double(), integers([9]), integers([0, 9])
    if not torch.equal(near[1, 0, :, :9], k.transpose(0, 1)):
        return float("inf")
    decode = paged_decode(q[:1], cache, table, lens, 0.1)
    extend = paged_extend(q, cache, table, bounds, lens, 0.1, max_q_len=9)
    expected = paged_extend_reference(q.double(), wide, near_table, bounds, lens, 0.1, max_q_len=9)
    decode_expected = paged_decode_reference(q[:1].double(), wide, near_table, lens, 0.1)
    return max(error(decode, decode_expected), error(extend, expected))


def attention_cases() -> list[tuple[torch.dtype, tuple[int, int, int], int]]:
    """(dtype, (query heads, kv heads, head dim), page size)."""
    if INTERPRET:
        return [(dtype, (4, 2, 64), 16) for dtype in DTYPES]
    main, small = (32, 8, 128), (9, 3, 64)
    shapes = [main, small, (16, 8, 128), (8, 8, 80), (16, 1, 64), (16, 2, 256), (8, 4, 96), (4, 2, 32)]
    cases = [(BF16, shape, 16) for shape in shapes]
    cases += [(BF16, shape, page) for shape in (main, small) for page in (32, 64, 128)]
    cases += [(FP16, shape, 16) for shape in (main, small)]
    return [*cases, (FP32, main, 16), (FP32, main, 64), (FP32, small, 16), (FP32, (8, 8, 80), 16)]


def attention_checks() -> Iterator[tuple[str, float, Check]]:
    """(name, tolerance, check) of decode, extend and the bitwise promises."""
    decode_lens, specs = [[1, 17, 64, 129]], [[(0, 17), (40, 9), (0, 1), (31, 33)]]
    if not INTERPRET:
        decode_lens += [[255, 256, 257, 1000, 4097, 0, 3], [20000], [33] * 300]
        specs += [[(0, 700)], [(1000, 300), (0, 1), (513, 64), (63, 65), (5, 0), (2000, 1)], [(0, 2048)], [(7, 1)] * 40]
    for dtype, shape, page in attention_cases():
        tag = f"{shape[0]}/{shape[1]} D{shape[2]} page {page} {str(dtype)[6:]}"
        bound = ATTENTION_TOLERANCE[dtype]
        for lens, split in itertools.product(decode_lens, (64, None)):
            shown = lens if len(lens) < 8 else f"{len(lens)} x {lens[0]}"
            name = f"decode {tag} {shown} split {split}"
            yield name, bound, lambda a=(shape, page, dtype, lens, split): decode_error(*a)
        for spec in specs:
            shown = spec if len(spec) < 8 else f"{len(spec)} x {spec[0]}"
            yield f"extend {tag} {shown}", bound, lambda a=(shape, page, dtype, spec): extend_error(*a)
        length = 40 if INTERPRET else 1000
        yield f"same bits {tag}", 0.0, lambda a=(shape, page, dtype, length): same_bits(*a)
    if not INTERPRET:
        yield "pages beyond 2^31 elements", ATTENTION_TOLERANCE[BF16], far_pages


def small_checks() -> Iterator[tuple[str, float, Check]]:
    """(name, tolerance, check) of rotary, norms and activation."""
    for dtype, tokens in itertools.product(DTYPES, (3,) if INTERPRET else (1, 7, 300)):
        bound, kind = ROUNDING_TOLERANCE[dtype], f"{tokens} tokens {str(dtype)[6:]}"
        for shape, norm in (((9, 3, 64), False), ((16, 8, 128), True), ((32, 8, 128), False), ((8, 8, 80), True)):
            name = f"rope {shape[0]}/{shape[1]} D{shape[2]} norm {norm} {kind}"
            yield name, bound * 2, lambda a=(shape, 16, dtype, tokens, norm): rope_error(*a)
        for width in (576, 1024, 4096, 5000):
            yield f"norm {width} {kind}", bound * 2, lambda a=(tokens, width, dtype): norm_error(*a)
        for width in (1536, 14336):
            yield f"silu_mul {width} {kind}", bound * 2, lambda a=(tokens, width, dtype): silu_error(*a)


def poisoned_empty(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """torch.empty whose floating results are NaN, so that an element left out shows."""

    def empty(*shape: Any, **options: Any) -> torch.Tensor:
        out = plain(*shape, **options)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    return empty


def spread_checks(jobs: int) -> list[dict[str, Any]]:
    """Run the checks in `jobs` processes, so that their compilers work side by side; a process that dies has failed."""
    results: list[dict[str, Any]] = []
    base = [sys.executable, __file__, "--no-timing", *(["--interpret"] if INTERPRET else [])]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(share)) for share in range(jobs)]
        children = [
            subprocess.Popen(
                [*base, "--json", str(file), "--share", f"{share}/{jobs}"],
                stdout=subprocess.DEVNULL,
            )
            for share, file in enumerate(files)
        ]
        for share, (child, file) in enumerate(zip(children, files, strict=True)):
            code = child.wait()
            if file.exists():
                results += json.loads(file.read_text())["checks"]
            else:
                results.append({"check": f"process {share}", "tolerance": 0.0, "error": f"exit {code}", "ok": False})
    for result in results:
        if not result["ok"]:
            print(f"FAIL {result['check']}: {result['error']}")
    return results


def run_checks(share: int, shares: int) -> list[dict[str, Any]]:
    """Run one of `shares` equal shares, print one line a check; an exception counts as a failure."""
    results = []
    plain, torch.empty = torch.empty, poisoned_empty(torch.empty)
    try:
        every = itertools.chain(attention_checks(), small_checks())
        mine = (case for number, case in enumerate(every) if number // CHECKS_PER_CASE % shares == share)
        for name, tolerance, check in mine:
            torch.manual_seed(0)
            result: dict[str, Any] = {"check": name, "tolerance": tolerance}
            try:
                value = check()
                measured = (0.0 if value else float("inf")) if isinstance(value, bool) else value
                result |= {"error": measured, "ok": measured <= tolerance}
            except Exception as problem:  # a failed compile or launch is a result of this script
                result |= {"error": f"{type(problem).__name__}: {problem}"[:300], "ok": False}
            results.append(result)
            shown = result["error"] if isinstance(result["error"], str) else f"{result['error']:.2e}"
            print(f"{'ok  ' if result['ok'] else 'FAIL'} {name}: {shown} (tolerance {tolerance:.1e})", flush=True)
    finally:
        torch.empty = plain
    return results


def graph_us(calls: Sequence[Callable[[], Any]]) -> float:
    """Median time of one call, in microseconds, inside a captured graph of all of them."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times[2:])


def regions(batch: int, context: int, page: int, copies: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One cache (8 kv heads, D 128, bf16) and `copies` page tables over disjoint random pages of it."""
    width = -(-context // page)
    cache = normal(copies * batch * width + 1, 2, 8, page, 128, dtype=BF16)
    pages = torch.randperm(copies * batch * width, device=DEVICE).int() + 1
    return cache, list(pages.view(copies, batch, width))


def decode_us(contexts: Sequence[int], page: int, heads: int, plan: torch.Tensor | None = None) -> tuple[float, int]:
    """Decode, launched as the worker does, by `plan` or its own, 8 kv heads: microseconds, and bytes of KV."""
    batch, kv_bytes = len(contexts), sum(contexts) * 8 * 128 * 2 * 2
    copies = max(2, min(24, -(-ROTATED_BYTES // kv_bytes)))
    cache, tables = regions(batch, max(contexts), page, copies)
    q, lens = normal(batch, heads, 128, dtype=BF16), integers(contexts)
    if plan is None:
        plan = plan_decode(lens, 8, heads // 8, 128, BF16)
    us = graph_us([
        lambda t=table: paged_decode(q, cache, t, lens, 128**-0.5, plan=plan, settled=True) for table in tables
    ])  # fmt: skip
    return us, kv_bytes


def timed_decode(batch: int, context: int, page: int, heads: int = 32) -> dict[str, Any]:
    """Decode of rows that are alike, against the time to read the KV once."""
    us, kv_bytes = decode_us([context] * batch, page, heads)
    floor = kv_bytes / PEAK_BYTES_PER_S * 1e6
    return {"case": f"decode {batch} x {context} {heads}/8 page {page}", "us": us, "floor_us": floor,
            "GB/s": kv_bytes / us / 1e3, "fa3_us": FA3_DECODE.get((batch, context))}  # fmt: skip


def timed_mixed(heads: int, page: int = 16) -> dict[str, Any]:
    """One step of 63 decodes at 1,024 tokens and a chunk of 512 on 1,024, one launch after the other."""
    chunk, rows, context = 512, 63, 1024
    kv_bytes = ((rows + 1) * context + chunk) * 8 * 128 * 2 * 2
    cache, tables = regions(rows + 2, context, page, 2)
    q = normal(chunk + rows, heads, 128, dtype=BF16)
    lens, chunk_lens = integers([context] * rows), integers([context + chunk])
    cu_q, scale, plan = integers([0, chunk]), 128**-0.5, plan_decode(lens, 8, heads // 8, 128, BF16)
    calls = []
    for table in tables:
        own = table[rows:].reshape(1, -1)

        def call(table: torch.Tensor = table[:rows], own: torch.Tensor = own) -> None:
            paged_extend(q[:chunk], cache, own, cu_q, chunk_lens, scale, max_q_len=chunk)
            paged_decode(q[chunk:], cache, table, lens, scale, plan=plan, settled=True)

        calls.append(call)
    return {"case": f"mixed 63 decodes, 512 on 1024 {heads}/8 page {page}", "us": graph_us(calls),
            "floor_us": kv_bytes / PEAK_BYTES_PER_S * 1e6, "fa3_us": FA3_MIXED[heads]}  # fmt: skip


def timed_extend(batch: int, new: int, cached: int, page: int, heads: int = 32) -> dict[str, Any]:
    """Extend against the time of its multiplications at the tensor cores' peak."""
    kv_bytes = batch * (new + cached) * 8 * 128 * 2 * 2
    cache, tables = regions(batch, new + cached, page, max(2, min(12, -(-ROTATED_BYTES // kv_bytes))))
    q, lens = normal(batch * new, heads, 128, dtype=BF16), integers([new + cached] * batch)
    cu_q = integers(range(0, batch * new + 1, new))
    us = graph_us([
        lambda t=table: paged_extend(q, cache, t, cu_q, lens, 128**-0.5, max_q_len=new) for table in tables
    ])  # fmt: skip
    flops = 4 * heads * 128 * batch * (new * new / 2 + new * cached)
    return {"case": f"extend {batch} x {new} on {cached} {heads}/8 page {page}", "us": us,
            "floor_us": flops / PEAK_FLOPS * 1e6, "TFLOP/s": flops / us / 1e6,
            "fa3_us": FA3_EXTEND.get((batch, new, cached, heads))}  # fmt: skip


def timed_small(tokens: int) -> Iterator[dict[str, Any]]:
    """The memory-bound kernels at an 8B model's width; the inputs rotate, outputs are fresh."""
    copies = max(2, min(24, ROTATED_BYTES // (tokens * 28672 * 2)))
    weight, scale = normal(4096, dtype=BF16), 1e6 / PEAK_BYTES_PER_S
    wide = [normal(tokens, 28672, dtype=BF16) for _ in range(copies)]
    us = graph_us([lambda x=x: silu_mul(x) for x in wide])
    yield {"case": f"silu_mul {tokens} x 14336", "us": us, "floor_us": tokens * 14336 * 6 * scale}
    us = graph_us([lambda x=x: add_rms_norm(x[:, :4096], x[:, 4096:8192], weight, 1e-5) for x in wide])
    yield {"case": f"add_rms_norm {tokens} x 4096", "us": us, "floor_us": tokens * 4096 * 8 * scale}
    cache = normal(tokens // 16 + 2, 2, 8, 16, 128, dtype=BF16)
    table, slots = torch.zeros(tokens, 128, device=DEVICE), torch.arange(tokens, device=DEVICE)
    heads = [x[:, : 48 * 128].unflatten(1, (48, 128)).split((32, 8, 8), dim=1) for x in wide]
    us = graph_us([lambda h=h: rope_and_write_kv(*h, table, slots, slots, cache) for h in heads])
    yield {"case": f"rope_and_write_kv {tokens}, 32/8 D128", "us": us, "floor_us": tokens * 48 * 128 * 4 * scale}


def timing_cases() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """One call per group of rows; the shapes are those measured for other engines."""
    decode = [(batch, context, 16) for context in (1024, 4096, 16384) for batch in (1, 8, 64, 256)]
    decode += [(64, 1024, 64), (64, 4096, 64), (1, 32768, 16)]
    decode += [(batch, 1024, 16, 16) for batch in (1, 8, 64, 256)] + [(1, 16384, 16, 16)]
    extend = [(1, 4096, 0), (1, 16384, 0), (8, 1024, 0), (1, 512, 8192), (1, 2048, 14336), (1, 128, 0)]
    for case in decode:
        yield lambda c=case: [timed_decode(*c)]
    for case, page in itertools.product(extend, (16, 64)):
        yield lambda c=case, p=page: [timed_extend(*c, p)]
    for case in extend[:4]:
        yield lambda c=case: [timed_extend(*c, 16, 16)]
    for heads in (32, 16):
        yield lambda h=heads: [timed_mixed(h)]
    for tokens in (1, 64, 256, 8192):
        yield lambda t=tokens: list(timed_small(t))


def run_timings() -> list[dict[str, Any]]:
    """Time all cases and print a table; a case that fails is reported and skipped."""
    results: list[dict[str, Any]] = []
    print(f"\n{'case':44} {'us':>10} {'floor us':>10} {'share':>7} {'/ FA3':>6}  rate")
    for case in timing_cases():
        try:
            rows = case()
        except Exception as problem:  # out of memory on a smaller card must not lose the other rows
            print(f"skipped: {type(problem).__name__}: {problem}"[:200])
            rows = []
        for row in rows:
            row["share"] = row["floor_us"] / row["us"]
            rate = next((f"{row[unit]:.0f} {unit}" for unit in ("GB/s", "TFLOP/s") if unit in row), "")
            beside = f"{row['us'] / row['fa3_us']:6.2f}" if row.get("fa3_us") else " " * 6
            shown = f"{row['case']:44} {row['us']:10.1f} {row['floor_us']:10.1f} {row['share']:7.0%}"
            print(f"{shown} {beside}  {rate}", flush=True)
        results += rows
        torch.cuda.empty_cache()
    return results


def main() -> int:
    """Run checks, then timings; write JSON where asked; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--no-timing", action="store_true", help="checks only")
    parser.add_argument("--no-checks", action="store_true", help="timings only")
    parser.add_argument("--interpret", action="store_true", help="small cases on the CPU interpreter")
    parser.add_argument("--jobs", type=int, default=1, help="processes for the checks")
    parser.add_argument("--share", default="0/1", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not INTERPRET and not torch.cuda.is_available():
        print("no CUDA device: use --interpret for a trial of this script")
        return 1
    name = "interpreter" if INTERPRET else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, triton {triton.__version__}")
    share, shares = map(int, options.share.split("/"))
    checks = []
    if not options.no_checks:
        checks = spread_checks(options.jobs) if options.jobs > 1 else run_checks(share, shares)
    failed = [check["check"] for check in checks if not check["ok"]]
    print(f"\n{len(checks)} checks, {len(failed)} failed")
    timings = [] if INTERPRET or options.no_timing else run_timings()
    if options.json:
        report = {"device": name, "torch": torch.__version__, "triton": triton.__version__}
        options.json.write_text(json.dumps({**report, "checks": checks, "timings": timings}, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
