"""Attention of one query token a row to the pages of its context, on the CPU in float32, of float32 or bfloat16 pages.

Written in LLVM IR as kernels/cpu_grouped_linear.py is. Keys are read where they are, a block of tokens at a time, and
the softmax is kept up to date from block to block (Dao et al., FlashAttention), so nothing is gathered or masked.
"""

import math
from ctypes import Structure, c_float, c_int64, c_void_p
from typing import Any, NamedTuple

from llvmlite import ir

from kernels.cpu_ir import (
    F32,
    F32X8,
    I32,
    I64,
    LANES,
    Fields,
    Loop,
    array,
    at,
    constant,
    exponential,
    floats,
    fma,
    function_of,
    greater,
    numbers,
    splat,
    store_vector,
    sum_of,
    vector,
    widened,
)

BLOCK = 64
"""Tokens whose scores are kept at once."""
# Vectors of a head whose sums stay in registers at once.
_VECTORS = 8
_MINUS_INFINITY = ir.Constant(F32, -math.inf)


class DecodeShape(NamedTuple):
    """`head_dim` is a multiple of LANES; keys and values have `kv_bits`: float32, or of 16 bfloat16."""

    head_dim: int
    num_kv_heads: int
    heads_per_kv: int
    page_size: int
    kv_bits: int = 32


class DecodeArguments(Structure):
    """`query` is [rows, query_stride], `out` [rows, heads * head_dim]; `kv` [pages, page_size, 2, KV heads, head_dim];
    row i attends to the last `window` of the first `lengths` [rows] int64 tokens of the pages in `table` [rows,
    table_stride] int64. The threads count `next_part` up to rows times KV heads."""

    _fields_ = (
        ("next_part", c_int64),
        ("query", c_void_p),
        ("kv", c_void_p),
        ("out", c_void_p),
        ("table", c_void_p),
        ("lengths", c_void_p),
        ("rows", c_int64),
        ("query_stride", c_int64),
        ("table_stride", c_int64),
        ("window", c_int64),
        ("scale", c_float),
    )


def decode_module(shape: DecodeShape) -> ir.Module:
    """Return a module whose function decode(DecodeArguments *) fills `out`."""
    b, fields = function_of("decode", DecodeArguments)
    scratch = _Scratch(b, shape)
    again, work, end = (b.append_basic_block(name) for name in ("again", "work", "end"))
    b.branch(again)
    b.position_at_end(again)
    part = b.atomic_rmw("add", fields.place("next_part"), I64(1), "monotonic")
    parts = b.mul(fields.load("rows"), I64(shape.num_kv_heads))
    b.cbranch(b.icmp_signed("<", part, parts), work, end)
    b.position_at_end(work)
    row, kv_head = b.sdiv(part, I64(shape.num_kv_heads)), b.srem(part, I64(shape.num_kv_heads))
    _KvHead(b, shape, fields, scratch, row, kv_head).attend()
    b.branch(again)
    b.position_at_end(end)
    b.ret_void()
    return b.module


class _Scratch:
    """Arrays on the stack: scores of a block, where its tokens are in kv, and each head's maximum and sum."""

    def __init__(self, b: ir.IRBuilder, shape: DecodeShape) -> None:
        self.scores = array(b, F32, BLOCK)
        self.places = array(b, I64, BLOCK)
        self.maxima = array(b, F32, shape.heads_per_kv)
        self.sums = array(b, F32, shape.heads_per_kv)


class _KvHead:
    """Emits the attention of the query heads that share a KV head, for one row."""

    def __init__(
        self, b: ir.IRBuilder, shape: DecodeShape, fields: Fields, scratch: _Scratch, row: Any, kv_head: Any
    ) -> None:
        self._b, self._shape, self._scratch = b, shape, scratch
        first = b.mul(kv_head, I64(shape.heads_per_kv * shape.head_dim))
        query, out = (floats(b, fields.load(name)) for name in ("query", "out"))
        width = shape.num_kv_heads * shape.heads_per_kv * shape.head_dim
        self._query = b.gep(query, [b.add(b.mul(row, fields.load("query_stride")), first)])
        self._out = b.gep(out, [b.add(b.mul(row, I64(width)), first)])
        kv = numbers(b, fields.load("kv"), shape.kv_bits)
        self._keys = b.gep(kv, [b.mul(kv_head, I64(shape.head_dim))])
        table, lengths = (b.bitcast(fields.load(name), I64.as_pointer()) for name in ("table", "lengths"))
        self._table = b.gep(table, [b.mul(row, fields.load("table_stride"))])
        self._length, self._scale = at(b, lengths, row), fields.load("scale")
        hidden = b.sub(self._length, fields.load("window"))
        self._first = b.select(b.icmp_signed(">", hidden, I64(0)), hidden, I64(0))

    def attend(self) -> None:
        b, heads = self._b, I64(self._shape.heads_per_kv)
        with Loop(b, I64(0), heads, 1) as head:
            b.store(_MINUS_INFINITY, b.gep(self._scratch.maxima, [head.index]))
            b.store(ir.Constant(F32, 0.0), b.gep(self._scratch.sums, [head.index]))
        with Loop(b, I64(0), b.mul(heads, I64(self._shape.head_dim)), LANES) as column:
            store_vector(b, constant(F32X8, 0.0), b.gep(self._out, [column.index]))
        with Loop(b, self._first, self._length, BLOCK) as block:
            left = b.sub(self._length, block.index)
            count = b.select(b.icmp_signed("<", left, I64(BLOCK)), left, I64(BLOCK))
            self._find(block.index, count)
            with Loop(b, I64(0), heads, 1) as head:
                self._block(head.index, count)
        with Loop(b, I64(0), heads, 1) as head:
            inverse = b.fdiv(ir.Constant(F32, 1.0), at(b, self._scratch.sums, head.index))
            self._scale_out(self._head_of(self._out, head.index), inverse)

    def _head_of(self, start: Any, head: Any) -> Any:
        return self._b.gep(start, [self._b.mul(head, I64(self._shape.head_dim))])

    def _find(self, first: Any, count: Any) -> None:
        """Write where the keys of `count` tokens from `first` on are."""
        b, size = self._b, I64(self._shape.page_size)
        token_width = I64(2 * self._shape.num_kv_heads * self._shape.head_dim)
        with Loop(b, I64(0), count, 1) as token:
            position = b.add(first, token.index)
            page = at(b, self._table, b.sdiv(position, size))
            place = b.add(b.mul(page, size), b.srem(position, size))
            b.store(b.mul(place, token_width), b.gep(self._scratch.places, [token.index]))

    def _block(self, head: Any, count: Any) -> None:
        """Add the block's tokens to a head's output."""
        b, scratch = self._b, self._scratch
        last = b.gep(scratch.maxima, [head])
        total = b.gep(scratch.sums, [head])
        maximum = self._scores(self._head_of(self._query, head), count, b.load(last))
        shrink = b.extract_element(exponential(b, splat(b, b.fsub(b.load(last), maximum))), I32(0))
        b.store(maximum, last)
        with Loop(b, I64(0), count, LANES, [constant(F32X8, 0.0)]) as tokens:
            place = b.gep(scratch.scores, [tokens.index])
            weights = exponential(b, b.fsub(vector(b, place, F32X8), splat(b, maximum)))
            store_vector(b, weights, place)
            tokens.carried = [b.fadd(tokens.carried[0], weights)]
        b.store(b.fadd(b.fmul(b.load(total), shrink), sum_of(b, tokens.carried[0])), total)
        out = self._head_of(self._out, head)
        self._scale_out(out, shrink)
        self._add_values(out, count)

    def _scores(self, query: Any, count: Any, maximum: Any) -> Any:
        """Write the scores of `count` tokens, those that fill up the last vector as never seen; return the largest."""
        b, scratch, size = self._b, self._scratch, self._shape.head_dim
        with Loop(b, I64(0), I64(BLOCK), LANES) as tokens:
            store_vector(b, constant(F32X8, -math.inf), b.gep(scratch.scores, [tokens.index]))
        own = [vector(b, b.gep(query, [I64(column)]), F32X8) for column in range(0, size, LANES)]
        with Loop(b, I64(0), count, 1, [maximum]) as token:
            key, total = b.gep(self._keys, [at(b, scratch.places, token.index)]), constant(F32X8, 0.0)
            for index, number in enumerate(own):
                total = fma(b, number, self._widened(key, index * LANES), total)
            score = b.fmul(sum_of(b, total), self._scale)
            b.store(score, b.gep(scratch.scores, [token.index]))
            token.carried = [greater(b, token.carried[0], score)]
        return token.carried[0]

    def _widened(self, start: Any, column: int) -> Any:
        """Eight numbers of a key or value from a column on."""
        return widened(self._b, self._b.gep(start, [I64(column)]), self._shape.kv_bits)

    def _scale_out(self, out: Any, factor: Any) -> None:
        b = self._b
        with Loop(b, I64(0), I64(self._shape.head_dim), LANES) as column:
            place = b.gep(out, [column.index])
            store_vector(b, b.fmul(vector(b, place, F32X8), splat(b, factor)), place)

    def _add_values(self, out: Any, count: Any) -> None:
        """Add the values of `count` tokens, each times its weight."""
        b, scratch, shape = self._b, self._scratch, self._shape
        for first in range(0, shape.head_dim, _VECTORS * LANES):
            columns = range(first, min(first + _VECTORS * LANES, shape.head_dim), LANES)
            sums = [vector(b, b.gep(out, [I64(column)]), F32X8) for column in columns]
            with Loop(b, I64(0), count, 1, sums) as token:
                place = b.add(at(b, scratch.places, token.index), I64(shape.num_kv_heads * shape.head_dim))
                value, weight = b.gep(self._keys, [place]), splat(b, at(b, scratch.scores, token.index))
                token.carried = [
                    fma(b, weight, self._widened(value, column), total)
                    for column, total in zip(columns, token.carried, strict=True)
                ]
            for column, total in zip(columns, token.carried, strict=True):
                store_vector(b, total, b.gep(out, [I64(column)]))
