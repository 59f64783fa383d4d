"""The requests of the gpu_*.py workloads: lengths of prompts and outputs, and random token ids.

Ids stay below WORDS, so that every model has them in its vocabulary.
"""

import random

NANO_SEQUENCES, NANO_SHORTEST, NANO_LONGEST = 256, 100, 1024
NANO_TEMPERATURE = 0.6
SHARED_REQUESTS, SHARED_PREFIX, SHARED_OWN, SHARED_OUTPUT = 100, 2048, 128, 128
WORDS = 10000


def nano_lengths() -> list[tuple[int, int]]:
    """Return (prompt, output) lengths of nano-vllm's benchmark: 142,827 tokens in, 133,966 out."""
    draw = random.Random(0)
    prompts = []
    for _ in range(NANO_SEQUENCES):
        prompts.append(draw.randint(NANO_SHORTEST, NANO_LONGEST))
        for _ in range(prompts[-1]):
            draw.randint(0, WORDS)
    return [(prompt, draw.randint(NANO_SHORTEST, NANO_LONGEST)) for prompt in prompts]


def draw_ids(draw: random.Random, count: int) -> list[int]:
    """Return `count` token ids."""
    return [draw.randrange(WORDS) for _ in range(count)]


def shared_prompts(draw: random.Random, groups: int) -> list[list[int]]:
    """Return SHARED_REQUESTS prompts, alternating between the groups; the prompts of a group share a prefix."""
    prefixes = [draw_ids(draw, SHARED_PREFIX) for _ in range(groups)]
    return [prefixes[number % groups] + draw_ids(draw, SHARED_OWN) for number in range(SHARED_REQUESTS)]
