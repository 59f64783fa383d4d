"""A uniform shuffle that is the same on every machine: a function of the seed, the pass and the waiting requests."""

from scheduler_proc.core.policies.context import PolicyContext
from scheduler_proc.core.request import Request

MASK = (1 << 64) - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def shuffle(waiting: list[Request], context: PolicyContext) -> None:
    """random: Fisher and Yates's shuffle, keyed by random_seed and the number of the pass."""
    state = mix64((mix64(context.config.random_seed & MASK) + context.pass_number) & MASK)
    for last in range(len(waiting) - 1, 0, -1):
        state = (state + GOLDEN_GAMMA) & MASK
        # Scales 64 random bits to 0..last; the bias is below last / 2^64.
        other = mix64(state) * (last + 1) >> 64
        waiting[last], waiting[other] = waiting[other], waiting[last]


def mix64(value: int) -> int:
    """Return the finaliser of SplitMix64 (Steele, Lea, Flood 2014): 64 bits in, 64 well mixed bits out."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)
