"""Programmatic dependent launch on Hopper: a kernel begins while its predecessor in the stream still runs.

A kernel of a few microseconds is mostly start-up: launch, address arithmetic, first loads. Launched `early`, it does
that beside its predecessors, fetches what it will stream into the L2 cache, and waits in `take_turn` until the kernel
before it has ended and its writes are visible. A short kernel lets its successor begin as soon as all its own programs
have, one that streams for long only when it is done with that. So several may wait in a row, but past take_turn they
follow one another as always. Three rules keep it right:

    1. ahead of take_turn a kernel writes nothing, and reads only weights and what it is told is *settled*: written
       ahead of the last launch in the ordinary way, which begins when all before it has ended
    2. every program of it comes to take_turn, ahead of every return
    3. all its programs fit on the device with those that run, or they start when these are done: none waits for one
       that has not started
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@functools.cache
def on_hopper(device: torch.device) -> bool:
    """Whether launches for tensors of this device are compiled for Hopper; CPU tensors reach the interpreter."""
    return device.type != "cpu" and triton.runtime.driver.active.get_current_target().arch == 90


def early(device: torch.device) -> dict[str, Any]:
    """Launch options of a kernel that calls take_turn; its OVERLAP says whether it is launched early."""
    return {"OVERLAP": True, "launch_pdl": True} if on_hopper(device) else {"OVERLAP": False}


@triton.jit
def take_turn(OVERLAP: tl.constexpr, HOLD: tl.constexpr = False):
    """Wait for the kernel before this one, and let the one after it begin, unless let_next_begin does so later."""
    if OVERLAP:
        if not HOLD:
            gdc_launch_dependents()
        gdc_wait()


@triton.jit
def let_next_begin(OVERLAP: tl.constexpr):
    """Let the kernel after this one begin, once every program has come here or ended."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def fetch_into_cache(pointers, num_bytes):
    """Have `num_bytes`, a multiple of 16, at each of the aligned pointers brought into the L2 cache; waits for nothing.

    One thread's instruction a pointer: give as many pointers as the program has threads.
    """
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0;",
        "=r,l,r",
        [pointers.to(tl.int64), num_bytes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
