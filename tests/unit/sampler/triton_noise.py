"""Prints the words and uniforms of Triton's own Philox under the interpreter, as JSON, for test_sampler_philox."""

import json
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def _noise(words, uniforms, seed, position, COUNT: tl.constexpr):
    groups = tl.arange(0, COUNT)
    zero = tl.zeros((COUNT,), dtype=tl.int32)
    r0, r1, r2, r3 = tl.philox(tl.load(seed), groups, zero + position, zero, zero)
    tl.store(words + groups * 4 + 0, r0.to(tl.int32, bitcast=True))
    tl.store(words + groups * 4 + 1, r1.to(tl.int32, bitcast=True))
    tl.store(words + groups * 4 + 2, r2.to(tl.int32, bitcast=True))
    tl.store(words + groups * 4 + 3, r3.to(tl.int32, bitcast=True))
    tl.store(uniforms + groups * 4 + 0, tl.uint_to_uniform_float(r0))
    tl.store(uniforms + groups * 4 + 1, tl.uint_to_uniform_float(r1))
    tl.store(uniforms + groups * 4 + 2, tl.uint_to_uniform_float(r2))
    tl.store(uniforms + groups * 4 + 3, tl.uint_to_uniform_float(r3))


def main() -> None:
    answers = []
    for key, position in json.loads(sys.argv[1]):
        words, uniforms = torch.zeros(64, dtype=torch.int32), torch.zeros(64)
        signed = key - 2**64 if key >= 2**63 else key
        _noise[(1,)](words, uniforms, torch.tensor([signed]), position, COUNT=16)
        answers.append([[word & 0xFFFFFFFF for word in words.tolist()], uniforms.tolist()])
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
