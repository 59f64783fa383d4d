"""What the compiler makes of every launch configuration for sm_90: no GPU needed, but the real compiler and ptxas."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.decode_partition import decode_tile

SCRIPT = Path(__file__).with_name("cross_compile.py")
SHARED_LIMIT_BYTES = 227 * 1024
SM_SHARED_BYTES = 228 * 1024
# What the driver keeps of an SM's shared memory for each resident program.
RESERVED_BYTES = 1024
SM_REGISTERS = 65536

LIMIT_S = 900

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]


@pytest.fixture(scope="module")
def compiled():
    """Processes without the interpreter, whose mode is fixed at import; each compiles a part of the calls."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    count = min(4, os.cpu_count() or 1)
    parts = [[sys.executable, str(SCRIPT), "", f"{part}/{count}"] for part in range(count)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(part, env=environment, **pipes) for part in parts]
    found = []
    for process in running:
        out, err = process.communicate(timeout=LIMIT_S - 20)
        assert process.returncode == 0, err[-2000:]
        found += json.loads(out)
    return found


def of(compiled, call, kernel):
    found = [entry for entry in compiled if entry["call"].startswith(call) and entry["kernel"] == kernel]
    assert found
    return found


def half(entries):
    return [entry for entry in entries if "float32" not in entry["call"].split()]


def head_dim(entry):
    return int(entry["call"].split(" D")[1].split()[0])


def test_nothing_spills_and_shared_memory_fits(compiled):
    assert len(compiled) > 30
    for entry in compiled:
        assert entry["spill_stores"] == 0 and entry["spill_loads"] == 0, entry
        assert entry["shared_bytes"] <= SHARED_LIMIT_BYTES, entry


def test_extend_uses_the_wide_tensor_core_instruction(compiled):
    for entry in half(of(compiled, "extend", "_extend_kernel") + of(compiled, "extend", "_extend_hopper_kernel")):
        assert entry["wgmma"] > 0 and entry["mma_sync"] == 0, entry


def test_extend_takes_the_hopper_kernel_where_it_can(compiled):
    entries = of(compiled, "extend", "_extend_hopper_kernel")
    assert {head_dim(entry) for entry in entries} == {64, 128} and entries == half(entries)


def test_attention_loads_keys_and_values_ahead(compiled):
    """At least two K and V tiles in shared memory, filled by asynchronous copies, though pages are looked up."""
    for call, kernel, tile_tokens in (
        ("decode", "_split_kernel", {64: 64, 80: 32, 128: 32, 256: 32, 512: 16}),
        ("extend<=1024", "_extend_kernel", {64: 64, 80: 64, 128: 64, 256: 32, 512: 16}),
        ("extend", "_extend_hopper_kernel", {64: 128, 128: 128}),
    ):
        for entry in half(of(compiled, call, kernel)):
            padded = 1 << (head_dim(entry) - 1).bit_length()
            one_pair = 2 * tile_tokens[head_dim(entry)] * padded * 2
            assert entry["cp_async"] + entry["tma"] > 0 and entry["shared_bytes"] >= 2 * one_pair, entry


def test_decode_programs_fit_a_multiprocessor(compiled):
    """As many as the launch counts on: a program that has to wait for another's end would double the time."""
    for entry in of(compiled, "decode", "_split_kernel"):
        dtype = torch.float32 if "float32" in entry["call"] else torch.bfloat16
        window = re.search(r"window(\d+)", entry["call"])
        tile = decode_tile(head_dim(entry), dtype, torch.device("meta"), int(window[1]) if window else 0)
        programs = tile.programs_per_sm
        assert programs >= 2
        assert programs * (entry["shared_bytes"] + RESERVED_BYTES) <= SM_SHARED_BYTES, entry
        assert programs * entry["registers"] * 32 * entry["warps"] <= SM_REGISTERS, entry


def test_products_over_experts_multiply_on_the_wide_unit_and_load_ahead(compiled):
    entries = of(compiled, "experts hidden", "_hidden_kernel") + of(compiled, "experts down", "_down_kernel")
    assert len(entries) > 12
    for entry in entries:
        assert entry["wgmma"] > 0 and entry["mma_sync"] == 0 and entry["cp_async"] > 0, entry


def test_linears_of_few_rows_multiply_on_the_wide_unit_from_tma_copies(compiled):
    entries = of(compiled, "linear", "_skinny_hopper_kernel")
    assert len(entries) > 15
    for entry in entries + of(compiled, "fp8 linear", "_skinny_fp8_hopper_kernel"):
        assert entry["wgmma"] > 0 and entry["mma_sync"] == 0 and entry["tma"] > 0, entry
    for entry in of(compiled, "integer linear", "_integer_linear_kernel"):
        # Groups of 16 columns have the shallowest product there is.
        assert entry["wgmma"] > 0 and entry["mma_sync"] == 0 and entry["cp_async"] > 0, entry
    for entry in of(compiled, "fp8 product", "_gemm_fp8_blocks_kernel") + of(
        compiled, "fp8 portable", "_skinny_fp8_kernel"
    ):
        assert entry["wgmma"] > 0 and entry["mma_sync"] == 0 and entry["cp_async"] > 0, entry


def test_linears_of_any_number_of_rows_multiply_on_the_wide_unit_and_load_ahead(compiled):
    entries = half(of(compiled, "invariant", "_linear_kernel"))
    assert len(entries) > 6
    for entry in entries:
        assert entry["wgmma"] > 0 and entry["mma_sync"] == 0 and entry["cp_async"] > 0, entry
