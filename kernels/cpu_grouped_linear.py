"""Linears on the CPU from codes of 4 or 8 bits in groups, dequantised in registers, or from float32 or bfloat16:
multiplied and added in float32.

A module of LLVM IR is generated for a format and compiled for the processor at hand (kernels/cpu_jit.py). It knows
vectors of eight numbers and no instruction by name, so the compiler chooses them.

Codes are [N, K * bits / 8]: signed bytes, or of 4 bits 32 in 16 bytes, of which byte i holds code i in its lower half
and code i + 16 in its upper one. A number is its code times the group's scale, plus its minimum if the form has one;
both are [N, K / group] float32. Codes of 32 and 16 bits are float32 and bfloat16 themselves, in no groups.

A tile is so many tokens by so many rows of the weight, whose sums stay in registers: one token takes four rows at
once, because a sum waits for its predecessor; eight tokens take one, so that a dequantised number is used eight times.
Each sum runs over K in the same order whatever the tile, so a token's result does not depend on the other tokens.
"""

from ctypes import Structure, c_int64, c_void_p
from typing import Any, NamedTuple

from llvmlite import ir

from kernels.cpu_ir import (
    F32,
    F32X8,
    I8,
    I8X8,
    I32X8,
    I64,
    LANES,
    Fields,
    Loop,
    at,
    constant,
    floats,
    fma,
    function_of,
    numbers,
    pointer_to,
    prefetch,
    splat,
    sum_of,
    vector,
    widened,
)

BLOCK = 32
"""Columns of K that are computed at once; a group is as large, or with 8 bits the half."""
_TILES = ((8, 1), (4, 2), (2, 4), (1, 4))
"""Tokens and rows of a tile. Tokens beyond a multiple take the next smaller one."""
# Eight tokens of more blocks do not stay in a first-level cache of 32 KiB; four do longer.
_MOST_BLOCKS_OF_EIGHT = 28
# Rows of a tile are apart, which hides from the processor that memory is read in order; codes are prefetched.
_ROWS_AHEAD = 8


class Form(NamedTuple):
    """What the codes are, see above; `group` is 0 if they are numbers."""

    bits: int
    group: int = 0
    has_minimum: bool = False


class Arguments(Structure):
    """What one call reads. `next_part` is counted up by the threads, which share `parts`; `added` [tokens,
    added_stride] is added to the result if it is not null; strides count numbers."""

    _fields_ = (
        ("next_part", c_int64),
        ("parts", c_int64),
        ("codes", c_void_p),
        ("scale", c_void_p),
        ("minimum", c_void_p),
        ("x", c_void_p),
        ("y", c_void_p),
        ("added", c_void_p),
        ("rows", c_int64),
        ("blocks", c_int64),
        ("tokens", c_int64),
        ("y_stride", c_int64),
        ("added_stride", c_int64),
    )


def grouped_linear_module(form: Form) -> ir.Module:
    """Return a module whose function grouped_linear(Arguments *) fills y [tokens, y_stride] with x W^T."""
    b, fields = function_of("grouped_linear", Arguments)
    tiles = {size: _tile(b.module, form, *size) for size in _TILES}
    again, work, end = (b.append_basic_block(name) for name in ("again", "work", "end"))
    b.branch(again)
    b.position_at_end(again)
    part = b.atomic_rmw("add", fields.place("next_part"), I64(1), "monotonic")
    parts = fields.load("parts")
    b.cbranch(b.icmp_signed("<", part, parts), work, end)
    b.position_at_end(work)
    _all_tokens(b, tiles, fields, *_span(b, fields.load("rows"), part, parts))
    b.branch(again)
    b.position_at_end(end)
    b.ret_void()
    return b.module


def _span(b: ir.IRBuilder, rows: Any, part: Any, parts: Any) -> tuple[Any, Any]:
    """Return first and one past the last row of a part, which are multiples of four but for the last."""
    fours = b.sdiv(b.add(rows, I64(3)), I64(4))
    ends = [b.mul(b.sdiv(b.mul(fours, one), parts), I64(4)) for one in (part, b.add(part, I64(1)))]
    return ends[0], b.select(b.icmp_signed("<", ends[1], rows), ends[1], rows)


def _all_tokens(b: ir.IRBuilder, tiles: dict[tuple[int, int], Any], fields: Fields, first: Any, last: Any) -> None:
    """Emit the calls of tiles for all tokens and the rows `first` to `last`."""
    tokens = fields.load("tokens")
    is_short = b.icmp_signed("<=", fields.load("blocks"), I64(_MOST_BLOCKS_OF_EIGHT))
    token: Any = I64(0)
    for tile_tokens, tile_rows in _TILES:
        left = b.sub(tokens, token)
        count = b.mul(b.sdiv(left, I64(tile_tokens)), I64(tile_tokens))
        if tile_tokens == _TILES[0][0]:
            count = b.select(is_short, count, I64(0))
        end = b.add(token, count)
        with Loop(b, token, end, tile_tokens) as loop:
            b.call(tiles[tile_tokens, tile_rows], [b.function.args[0], loop.index, first, last])
        token = end


def _tile(module: ir.Module, form: Form, tokens: int, rows: int) -> ir.Function:
    """Return tile(arguments, token, first, last): `tokens` tokens from `token` on, and the rows `first` to `last`. The
    last tile begins earlier if rows would be missing in it: they are computed twice, with the same result."""
    signature = ir.FunctionType(ir.VoidType(), [pointer_to(Arguments), I64, I64, I64])
    function = ir.Function(module, signature, f"tile_{tokens}_{rows}")
    function.linkage = "internal"
    pointer, token, first, last = function.args
    b = ir.IRBuilder(function.append_basic_block("start"))
    fields = Fields(b, pointer, Arguments)
    blocks = fields.load("blocks")
    depth = b.mul(blocks, I64(BLOCK))
    x = floats(b, fields.load("x"))
    x_rows = [b.gep(x, [b.mul(b.add(token, I64(m)), depth)]) for m in range(tokens)]
    with Loop(b, first, last, rows) as loop:
        latest = b.sub(last, I64(rows))
        start = b.select(b.icmp_signed("<", loop.index, latest), loop.index, latest)
        row_numbers = [b.add(start, I64(r)) for r in range(rows)]
        weights = [_Row(b, form, fields, number, blocks, _ROWS_AHEAD) for number in row_numbers]
        with Loop(b, I64(0), blocks, 1, [constant(F32X8, 0.0)] * (tokens * rows)) as inner:
            sums = list(inner.carried)
            dequantised = [weight.block(inner.index) for weight in weights]
            for m in range(tokens):
                for j in range(BLOCK // LANES):
                    column = b.add(b.mul(inner.index, I64(BLOCK)), I64(j * LANES))
                    numbers_of_x = vector(b, b.gep(x_rows[m], [column]), F32X8)
                    for r in range(rows):
                        sums[m * rows + r] = fma(b, dequantised[r][j], numbers_of_x, sums[m * rows + r])
            inner.carried = sums
        for m in range(tokens):
            for r in range(rows):
                _store(b, fields, b.add(token, I64(m)), row_numbers[r], sum_of(b, inner.carried[m * rows + r]))
    b.ret_void()
    return function


class _Row:
    """One row of the weight: emits its numbers, a block at a time."""

    def __init__(self, b: ir.IRBuilder, form: Form, fields: Fields, number: Any, blocks: Any, ahead_rows: int) -> None:
        self._b, self._form = b, form
        self._block_bytes = BLOCK * form.bits // 8
        self._groups = BLOCK // form.group if form.group else 0
        self._codes = b.gep(fields.load("codes"), [b.mul(number, b.mul(blocks, I64(self._block_bytes)))])
        self._ahead = b.mul(blocks, I64(self._block_bytes * ahead_rows))
        offset = b.mul(number, b.mul(blocks, I64(self._groups)))
        names = ("scale", "minimum")[: 0 if not form.group else 1 + form.has_minimum]
        self._scales = [b.gep(floats(b, fields.load(name)), [offset]) for name in names]

    def block(self, index: Any) -> list[Any]:
        """Emit and return the numbers of a block, as four vectors."""
        b = self._b
        start = b.gep(self._codes, [b.mul(index, I64(self._block_bytes))])
        prefetch(b, b.gep(start, [self._ahead]))
        if not self._form.group:
            first = numbers(b, start, self._form.bits)
            return [widened(b, b.gep(first, [I64(column)]), self._form.bits) for column in range(0, BLOCK, LANES)]
        codes = self._codes_of(start)
        first = b.mul(index, I64(self._groups))
        found = [
            [splat(b, at(b, one, b.add(first, I64(group)))) for one in self._scales] for group in range(self._groups)
        ]
        dequantised = []
        for j, code in enumerate(codes):
            scale, *minimum = found[j * LANES // self._form.group]
            number = b.sitofp(code, F32X8)
            dequantised.append(fma(b, number, scale, minimum[0]) if minimum else b.fmul(number, scale))
        return dequantised

    def _codes_of(self, start: Any) -> list[Any]:
        """Emit and return the codes of a block, as four vectors of integers in the order of K."""
        b = self._b
        if self._form.bits == 8:
            return [b.sext(vector(b, b.gep(start, [I64(j * LANES)]), I8X8), I32X8) for j in range(BLOCK // LANES)]
        pairs = [b.zext(vector(b, b.gep(start, [I64(j * LANES)]), I8X8), I32X8) for j in range(2)]
        lower = [b.and_(pair, constant(I32X8, 15)) for pair in pairs]
        return lower + [b.lshr(pair, constant(I32X8, 4)) for pair in pairs]


def _store(b: ir.IRBuilder, fields: Fields, token: Any, row: Any, value: Any) -> None:
    """Emit y[token, row] = value + added[token, row]."""
    added = fields.load("added")
    with b.if_else(b.icmp_unsigned("==", added, ir.Constant(I8.as_pointer(), None))) as (is_null, otherwise):
        with is_null:
            without = b.block
        with otherwise:
            place = b.add(b.mul(token, fields.load("added_stride")), row)
            more = b.fadd(value, at(b, floats(b, added), place))
            with_added = b.block
    result = b.phi(F32)
    result.add_incoming(value, without)
    result.add_incoming(more, with_added)
    place = b.add(b.mul(token, fields.load("y_stride")), row)
    b.store(result, b.gep(floats(b, fields.load("y")), [place]))
