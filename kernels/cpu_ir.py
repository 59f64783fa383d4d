"""The few patterns of LLVM IR that the kernels for the CPU are made of: counted loops, and vectors of eight numbers."""

import math
from ctypes import Structure, c_float, c_int64, c_void_p
from types import TracebackType
from typing import Any

from llvmlite import ir

LANES = 8
I8, I16, I32, I64, F32 = (*(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType())
I8X8, I16X8, I32X8, F32X8 = (ir.VectorType(kind, 8) for kind in (I8, I16, I32, F32))


class Fields:
    """The fields of the structure `kind` that `pointer` points to, read by name."""

    def __init__(self, b: ir.IRBuilder, pointer: Any, kind: type[Structure]) -> None:
        self._b, self._pointer = b, pointer
        self._indices = {name: index for index, (name, _) in enumerate(kind._fields_)}

    def place(self, name: str) -> Any:
        """Emit a pointer to a field."""
        return self._b.gep(self._pointer, [I32(0), I32(self._indices[name])])

    def load(self, name: str) -> Any:
        """Emit the value of a field."""
        return self._b.load(self.place(name))


def pointer_to(kind: type[Structure]) -> ir.Type:
    """Return the type of a pointer to a structure."""
    types = {c_int64: I64, c_void_p: I8.as_pointer(), c_float: F32}
    return ir.LiteralStructType([types[field] for _, field in kind._fields_]).as_pointer()


def function_of(name: str, kind: type[Structure]) -> tuple[ir.IRBuilder, Fields]:
    """Return a builder at the start of a function(kind *) in a module of its own, and its argument's fields."""
    signature = ir.FunctionType(ir.VoidType(), [pointer_to(kind)])
    function = ir.Function(ir.Module(name), signature, name)
    b = ir.IRBuilder(function.append_basic_block("start"))
    return b, Fields(b, function.args[0], kind)


class Loop:
    """A loop of `index` from `first` to before `end`, whose body is what is emitted inside `with`.

    `carried` are values that go from one turn to the next: inside, those at the beginning of a turn, to be replaced by
    those at its end; after the loop, the last ones, or those given if there was no turn.
    """

    def __init__(self, b: ir.IRBuilder, first: Any, end: Any, step: int, carried: list[Any] | None = None) -> None:
        self._b, self._first, self._end, self._step = b, first, end, step
        self.carried = carried or []

    def __enter__(self) -> "Loop":
        b = self._b
        self._before = b.block
        self._body, self._after = b.append_basic_block("body"), b.append_basic_block("after")
        b.cbranch(b.icmp_signed("<", self._first, self._end), self._body, self._after)
        b.position_at_end(self._body)
        self.index = b.phi(I64)
        self.index.add_incoming(self._first, self._before)
        self._initial, self._phis = self.carried, []
        for value in self._initial:
            phi = b.phi(value.type)
            phi.add_incoming(value, self._before)
            self._phis.append(phi)
        self.carried = list(self._phis)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        b, last = self._b, self._b.block
        following = b.add(self.index, I64(self._step))
        self.index.add_incoming(following, last)
        for phi, value in zip(self._phis, self.carried, strict=True):
            phi.add_incoming(value, last)
        b.cbranch(b.icmp_signed("<", following, self._end), self._body, self._after)
        b.position_at_end(self._after)
        results = []
        for initial, value in zip(self._initial, self.carried, strict=True):
            phi = b.phi(value.type)
            phi.add_incoming(initial, self._before)
            phi.add_incoming(value, last)
            results.append(phi)
        self.carried = results


def constant(kind: ir.VectorType, value: float) -> ir.Constant:
    """Return a vector with the same number in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def splat(b: ir.IRBuilder, value: Any) -> Any:
    """Emit a vector of eight times the float `value`."""
    undefined = ir.Constant(F32X8, ir.Undefined)
    lane = b.insert_element(undefined, value, I32(0))
    return b.shuffle_vector(lane, undefined, constant(I32X8, 0))


def at(b: ir.IRBuilder, start: Any, index: Any) -> Any:
    """Emit a load of start[index]."""
    return b.load(b.gep(start, [index]))


def vector(b: ir.IRBuilder, start: Any, kind: ir.VectorType) -> Any:
    """Emit a load of eight numbers from `start`, which need not be aligned."""
    loaded = b.load(b.bitcast(start, kind.as_pointer()))
    loaded.align = min(4, kind.element.width // 8) if isinstance(kind.element, ir.IntType) else 4
    return loaded


def floats(b: ir.IRBuilder, pointer: Any) -> Any:
    """Emit a pointer to floats of one to bytes."""
    return b.bitcast(pointer, F32.as_pointer())


def numbers(b: ir.IRBuilder, pointer: Any, bits: int) -> Any:
    """Emit a pointer to numbers of so many bits, float32 or bfloat16, of one to bytes."""
    return b.bitcast(pointer, (F32 if bits == 32 else I16).as_pointer())


def widened(b: ir.IRBuilder, start: Any, bits: int) -> Any:
    """Emit a load of eight numbers as floats, from where `numbers` points to."""
    if bits == 32:
        return vector(b, start, F32X8)
    return b.bitcast(b.shl(b.zext(vector(b, start, I16X8), I32X8), constant(I32X8, 16)), F32X8)


def store_vector(b: ir.IRBuilder, value: Any, start: Any) -> None:
    """Emit a store of eight floats, which need not be aligned."""
    b.store(value, b.bitcast(start, F32X8.as_pointer())).align = 4


def square_root(b: ir.IRBuilder, value: Any) -> Any:
    """Emit the square root of a float."""
    return b.call(_intrinsic(b, "llvm.sqrt.f32", F32, [F32]), [value])


def fma(b: ir.IRBuilder, x: Any, y: Any, z: Any) -> Any:
    """Emit x * y + z, rounded once."""
    return b.call(_intrinsic(b, "llvm.fma.v8f32", F32X8, [F32X8] * 3), [x, y, z])


def prefetch(b: ir.IRBuilder, place: Any) -> None:
    """Emit a hint that the bytes at `place`, which need not exist, are read soon."""
    function = _intrinsic(b, "llvm.prefetch.p0", ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    b.call(function, [place, I32(0), I32(3), I32(1)])


def sum_of(b: ir.IRBuilder, value: Any) -> Any:
    """Emit the sum of a vector's lanes, in an order that the compiler chooses once for all callers."""
    function = _intrinsic(b, "llvm.vector.reduce.fadd.v8f32", F32, [F32, F32X8])
    return b.call(function, [ir.Constant(F32, 0.0), value], fastmath=("reassoc",))


def _intrinsic(b: ir.IRBuilder, name: str, result: Any, parameters: list[Any]) -> Any:
    return b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(result, parameters), name)


def array(b: ir.IRBuilder, kind: ir.Type, size: int) -> Any:
    """Emit an array on the stack, whose contents are undefined; at the start of a function."""
    return b.alloca(kind, I64(size))


def greater(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    """Emit the greater of two floats."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def exponential(b: ir.IRBuilder, x: Any) -> Any:
    """Emit e^x of a vector whose numbers are not positive, to about two units of the last place.

    x = n ln 2 + r with the nearest integer n; e^r is its series up to r^7 (|r| < 0.35), and 2^n the bits of a float."""
    x = b.select(b.fcmp_ordered(">", x, constant(F32X8, -87.0)), x, constant(F32X8, -87.0))
    quotient = b.fmul(x, constant(F32X8, math.log2(math.e)))
    whole = b.call(_intrinsic(b, "llvm.nearbyint.v8f32", F32X8, [F32X8]), [quotient])
    # ln 2 in two parts, of which the first is exact in few bits.
    rest = fma(b, whole, constant(F32X8, -0.693359375), x)
    rest = fma(b, whole, constant(F32X8, 0.693359375 - math.log(2)), rest)
    series = constant(F32X8, 1 / math.factorial(7))
    for power in range(6, -1, -1):
        series = fma(b, series, rest, constant(F32X8, 1 / math.factorial(power)))
    exponent = b.shl(b.add(b.fptosi(whole, I32X8), constant(I32X8, 127)), constant(I32X8, 23))
    return b.fmul(series, b.bitcast(exponent, F32X8))
