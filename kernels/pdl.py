"""Programmatic dependent launch (PDL) on Hopper: a kernel starts while its predecessor in the stream still runs.

A kernel of a few microseconds is mostly start-up: launch, address arithmetic, first loads. With PDL it does that while
its predecessor runs, prefetches the data it will stream into the L2 cache, and waits in `wait_for_prior_kernel` until
the prior kernel has ended and its writes are visible. A short kernel lets its dependent start as soon as all its own
programs run; a kernel that streams for long does so only after its main loop. Several kernels may therefore wait at
once, but past wait_for_prior_kernel they run in stream order. Three rules keep this correct:

    1. before wait_for_prior_kernel a kernel writes nothing; it reads only weights, and metadata that its caller marks
       as *ready*: written before the last launch without PDL, which starts when all kernels before it have ended
    2. every program reaches wait_for_prior_kernel before any return
    3. no program waits for a program that has not started, so it does not matter whether all programs of a kernel fit
       on the device beside those already running
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Return whether kernels on tensors of this device are compiled for Hopper; CPU tensors run interpreted."""
    return device.type != "cpu" and triton.runtime.driver.active.get_current_target().arch == 90


def pdl_options(device: torch.device) -> dict[str, Any]:
    """Return the launch options of a kernel that calls wait_for_prior_kernel: PDL and its USE_PDL constant."""
    return {"USE_PDL": True, "launch_pdl": True} if is_hopper(device) else {"USE_PDL": False}


@triton.jit
def wait_for_prior_kernel(USE_PDL: tl.constexpr, HOLD_DEPENDENTS: tl.constexpr = False):
    """Wait for the prior kernel; allow the dependent one to start, unless HOLD_DEPENDENTS leaves that for later."""
    if USE_PDL:
        if not HOLD_DEPENDENTS:
            gdc_launch_dependents()
        gdc_wait()


@triton.jit
def launch_dependents(USE_PDL: tl.constexpr):
    """Allow the dependent kernel to start once every program has called this or ended."""
    if USE_PDL:
        gdc_launch_dependents()


@triton.jit
def prefetch_to_l2(pointers, num_bytes):
    """Prefetch `num_bytes`, a multiple of 16, at each aligned pointer into the L2 cache; does not wait.

    Each pointer is one thread's instruction: pass as many pointers as the program has threads.
    """
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0;",
        "=r,l,r",
        [pointers.to(tl.int64), num_bytes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
