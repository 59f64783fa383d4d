"""RMS norm, rotation of q and k with the write of k and v, and the gate of an MLP, on the CPU in float32: one call
each for all tokens.

Written in LLVM IR as kernels/cpu_grouped_linear.py is. A decode step of a small model is bound by the number of calls.
"""

from ctypes import Structure, c_float, c_int64, c_void_p
from typing import Any

from llvmlite import ir

from kernels.cpu_ir import (
    F32,
    F32X8,
    I64,
    LANES,
    Loop,
    at,
    constant,
    exponential,
    floats,
    fma,
    function_of,
    splat,
    square_root,
    store_vector,
    sum_of,
    vector,
)


class NormArguments(Structure):
    """y [tokens, size] = x / sqrt(mean(x^2) + eps) * weight [size]; size is a multiple of LANES."""

    _fields_ = (
        ("x", c_void_p),
        ("weight", c_void_p),
        ("y", c_void_p),
        ("tokens", c_int64),
        ("size", c_int64),
        ("eps", c_float),
    )


class RotateArguments(Structure):
    """Each token's qkv is `width` numbers, `stride` after the last token's: `rotated` heads of `head_dim`, turned in
    place by `angles` [tokens, head_dim], cosines, then sines; then v. Numbers from `first_kv` on are copied to the slot
    of kv that `slots` [tokens] int64 names. Half of head_dim is a multiple of LANES."""

    _fields_ = (
        ("qkv", c_void_p),
        ("angles", c_void_p),
        ("kv", c_void_p),
        ("slots", c_void_p),
        ("tokens", c_int64),
        ("angle_stride", c_int64),
        ("width", c_int64),
        ("stride", c_int64),
        ("rotated", c_int64),
        ("head_dim", c_int64),
        ("first_kv", c_int64),
    )


class GatedArguments(Structure):
    """y [tokens, size] = silu(x[:, :size]) * x[:, size:]; size is a multiple of LANES."""

    _fields_ = (("x", c_void_p), ("y", c_void_p), ("tokens", c_int64), ("size", c_int64))


def norm_module() -> ir.Module:
    """Return a module whose function rms_norm(NormArguments *) fills y."""
    b, fields = function_of("rms_norm", NormArguments)
    size = fields.load("size")
    x, weight, y = (floats(b, fields.load(name)) for name in ("x", "weight", "y"))
    inverse_size = b.fdiv(ir.Constant(F32, 1.0), b.sitofp(size, F32))
    with Loop(b, I64(0), fields.load("tokens"), 1) as tokens:
        start = b.mul(tokens.index, size)
        x_row, y_row = b.gep(x, [start]), b.gep(y, [start])
        with Loop(b, I64(0), size, LANES, [constant(F32X8, 0.0)]) as columns:
            numbers = vector(b, b.gep(x_row, [columns.index]), F32X8)
            columns.carried = [fma(b, numbers, numbers, columns.carried[0])]
        mean = b.fmul(sum_of(b, columns.carried[0]), inverse_size)
        root = square_root(b, b.fadd(mean, fields.load("eps")))
        inverse = splat(b, b.fdiv(ir.Constant(F32, 1.0), root))
        with Loop(b, I64(0), size, LANES) as columns:
            numbers = b.fmul(vector(b, b.gep(x_row, [columns.index]), F32X8), inverse)
            scaled = b.fmul(numbers, vector(b, b.gep(weight, [columns.index]), F32X8))
            store_vector(b, scaled, b.gep(y_row, [columns.index]))
    b.ret_void()
    return b.module


def rotate_module() -> ir.Module:
    """Return a module whose function rotate(RotateArguments *) turns q and k and writes k and v."""
    b, fields = function_of("rotate", RotateArguments)
    qkv, kv, angles = (floats(b, fields.load(name)) for name in ("qkv", "kv", "angles"))
    slots = b.bitcast(fields.load("slots"), I64.as_pointer())
    width, head_dim, first_kv = (fields.load(name) for name in ("width", "head_dim", "first_kv"))
    kv_width, half = b.sub(width, first_kv), b.sdiv(head_dim, I64(2))
    with Loop(b, I64(0), fields.load("tokens"), 1) as tokens:
        row = b.gep(qkv, [b.mul(tokens.index, fields.load("stride"))])
        angle = b.mul(tokens.index, fields.load("angle_stride"))
        with Loop(b, I64(0), fields.load("rotated"), 1) as heads:
            _rotate_head(b, b.gep(row, [b.mul(heads.index, head_dim)]), b.gep(angles, [angle]), half)
        source = b.gep(row, [first_kv])
        target = b.gep(kv, [b.mul(at(b, slots, tokens.index), kv_width)])
        with Loop(b, I64(0), kv_width, LANES) as columns:
            store_vector(b, vector(b, b.gep(source, [columns.index]), F32X8), b.gep(target, [columns.index]))
    b.ret_void()
    return b.module


def _rotate_head(b: ir.IRBuilder, head: Any, angles: Any, half: Any) -> None:
    with Loop(b, I64(0), half, LANES) as columns:
        lower, upper = columns.index, b.add(columns.index, half)
        first, second = (vector(b, b.gep(head, [place]), F32X8) for place in (lower, upper))
        cosine, sine = (vector(b, b.gep(angles, [place]), F32X8) for place in (lower, upper))
        minus = b.fneg(b.fmul(second, sine))
        store_vector(b, fma(b, first, cosine, minus), b.gep(head, [lower]))
        store_vector(b, fma(b, second, cosine, b.fmul(first, sine)), b.gep(head, [upper]))


def gated_module() -> ir.Module:
    """Return a module whose function gated(GatedArguments *) fills y."""
    b, fields = function_of("gated", GatedArguments)
    x, y, size, one = (
        floats(b, fields.load("x")),
        floats(b, fields.load("y")),
        fields.load("size"),
        constant(F32X8, 1.0),
    )
    with Loop(b, I64(0), fields.load("tokens"), 1) as tokens:
        y_row = b.gep(y, [b.mul(tokens.index, size)])
        gate_row = b.gep(x, [b.mul(b.mul(tokens.index, I64(2)), size)])
        up_row = b.gep(gate_row, [size])
        with Loop(b, I64(0), size, LANES) as columns:
            gate, up = (vector(b, b.gep(row, [columns.index]), F32X8) for row in (gate_row, up_row))
            is_positive = b.fcmp_ordered(">", gate, constant(F32X8, 0.0))
            # Of e^-|x|, which does not overflow: sigmoid(x) = 1 / (1 + e^-x) = e^x / (1 + e^x).
            small = exponential(b, b.select(is_positive, b.fneg(gate), gate))
            sigmoid = b.fdiv(b.select(is_positive, one, small), b.fadd(one, small))
            store_vector(b, b.fmul(b.fmul(gate, sigmoid), up), b.gep(y_row, [columns.index]))
    b.ret_void()
    return b.module
