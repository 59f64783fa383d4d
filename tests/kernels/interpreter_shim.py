"""Repairs of Triton's CPU interpreter for tests: bfloat16, e4m3, and scalars under recent numpy. For tests alone.

The interpreter keeps bfloat16 as raw uint16. Left alone, casts from fp32 truncate, dot products multiply the bit
patterns, and so does arithmetic, all without an error. After install(), casts round to nearest even, dots widen
their operands, and bfloat16 arithmetic raises: kernels must widen right after the load. A mantissa of e4m3 that is
rounded up to the next power of two loses its carry; here torch rounds, to the largest number at most, as the device.
"""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

FLOATS = {tl.float16: np.float16, tl.float32: np.float32, tl.float64: np.float64}
ARITHMETIC = (
    np.add, np.subtract, np.multiply, np.divide, np.fmod, np.minimum, np.maximum,
    np.less, np.less_equal, np.greater, np.greater_equal,
)  # fmt: skip


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns (uint16) as float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 as bfloat16 bit patterns (uint16), to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    up = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), up).astype(np.uint16)


def coded(values: np.ndarray) -> np.ndarray:
    """float32 as e4m3 bit patterns (uint8), to nearest even."""
    limited = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).clamp(-448, 448)
    return limited.to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def decoded(bits: np.ndarray) -> np.ndarray:
    """e4m3 bit patterns (uint8) as float32, exactly."""
    return torch.from_numpy(np.ascontiguousarray(bits, dtype=np.uint8)).view(torch.float8_e4m3fn).float().numpy()


def install() -> None:
    """Patch the interpreter of this process, once; a second call changes nothing."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "bfloat16_repaired", False):
        return
    builder.bfloat16_repaired = True
    _repair_casts(builder)
    _repair_dot(builder)
    _refuse_arithmetic(builder)
    _repair_index()


def _repair_casts(builder: Any) -> None:
    read = {tl.bfloat16: widened, tl.float8e4nv: decoded}
    plain_cast, plain_fp_to_fp = builder.cast_impl, builder.create_fp_to_fp

    def through_float32(src: Any, target: Any) -> Any:
        source = src.dtype.scalar
        values = read[source](src.data) if source in read else src.data.astype(np.float32)
        if target == tl.float8e4nv:
            return interpreter.TensorHandle(coded(values), target)
        if target == tl.bfloat16:
            return interpreter.TensorHandle(rounded(values), target)
        return interpreter.TensorHandle(values.astype(interpreter._get_np_dtype(target)), target)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if set(read) & {src.dtype.scalar, dst_type.scalar} and src.dtype.scalar != dst_type.scalar:
            return through_float32(src, dst_type.scalar)
        return plain_cast(self, src, dst_type)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if set(read) & {source, target} and {source, target} <= {*read, *FLOATS}:
            return through_float32(src, target)
        return plain_fp_to_fp(self, src, dst_type, rounding_mode)

    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp


def _repair_dot(builder: Any) -> None:
    plain_dot = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        a, b = wide(a), wide(b)
        if d.data.dtype != np.float32:
            return plain_dot(self, a, b, d, input_precision, max_num_imprecise_acc)
        # In float64 and rounded once: on some processors the bits of a float32 product depend on the place of its row.
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)).astype(np.float32)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    def wide(operand: Any) -> Any:
        read = {tl.bfloat16: widened, tl.float8e4nv: decoded}.get(operand.dtype.scalar)
        return operand if read is None else interpreter.TensorHandle(read(operand.data), tl.float32)

    builder.create_dot = create_dot


def _refuse_arithmetic(builder: Any) -> None:
    plain_binary = builder.binary_op

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if op in ARITHMETIC and tl.bfloat16 in (lhs.dtype.scalar, rhs.dtype.scalar):
            raise TypeError(f"{op.__name__} on bfloat16 bit patterns: widen to float32 right after the load")
        return plain_binary(self, lhs, rhs, op)

    builder.binary_op = binary_op


def _repair_index() -> None:
    plain_patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        plain_patch(tensor, scope)
        # Scalars are arrays of one element here, which numpy no longer turns into an int by itself.
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))

    interpreter._patch_lang_tensor = patch_lang_tensor
