"""Runs the few instructions of PTX that kernels write themselves, on words of 32 bits: the interpreter knows none."""

import re

import torch

_OPERAND = re.compile(r"0[xX][0-9a-fA-F]+|\$?\w+")


def run(asm: str, inputs: dict[str, int]) -> dict[str, int]:
    """Return all registers after the instructions of a block in braces; raises KeyError for one that is not known."""
    words = dict(inputs)
    for line in asm.split(";"):
        text = line.strip().lstrip("{").strip()
        if not text or text.startswith((".reg", "}")):
            continue
        name, _, rest = text.partition(" ")
        target, *operands = _OPERAND.findall(rest)
        values = [words[one] if one in words else int(one, 0) for one in operands]
        words[target] = _INSTRUCTIONS[name](*values) & 0xFFFFFFFF
    return words


def halves(word: int) -> torch.Tensor:
    """Return the two bfloat16 of a word, the lower half first, as float64."""
    bits = torch.tensor([word & 0xFFFF, word >> 16], dtype=torch.int32).to(torch.uint16)
    return bits.view(torch.bfloat16).double()


def word(numbers: torch.Tensor) -> int:
    """Return two bfloat16 as a word."""
    low, high = numbers.to(torch.bfloat16).view(torch.uint16).tolist()
    return low | high << 16


def _permuted(a: int, b: int, selector: int) -> int:
    data = (a | b << 32).to_bytes(8, "little")
    return int.from_bytes(bytes(data[selector >> 4 * place & 7] for place in range(4)), "little")


def _looked_up(a: int, b: int, c: int, table: int) -> int:
    bits = (table >> ((a >> at & 1) << 2 | (b >> at & 1) << 1 | c >> at & 1) & 1 for at in range(32))
    return sum(bit << at for at, bit in enumerate(bits))


_INSTRUCTIONS = {
    "mov.b32": lambda a: a,
    "prmt.b32": _permuted,
    "shl.b32": lambda a, by: a << by,
    "shr.u32": lambda a, by: a >> by,
    "and.b32": lambda a, b: a & b,
    "lop3.b32": _looked_up,
    "fma.rn.bf16x2": lambda a, b, c: word(halves(a) * halves(b) + halves(c)),
}
