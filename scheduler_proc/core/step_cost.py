"""What a step costs, as five coefficients, and their fit to measured steps.

    seconds = base + prefill_token * prefill tokens + attention_pair * (query, key) pairs of prefill
                   + decode_row * decode rows + context_token * tokens in the KV of decode rows

The scheduler decides on counts of tokens, so the model is in counts of tokens; a device is described well
where its time is about linear in each of them.
"""

import itertools
from collections.abc import Iterable, Sequence

import msgspec

from quartet.wire.errors import QuartetError

NUM_TERMS = 5
TOO_SMALL = 1e-12


class CostError(QuartetError):
    """Measured steps that cannot be fitted."""


class StepLoad(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one step computes.

    `prefill_pairs`: for each prefill token the tokens that it attends to, itself included, added up.
    `context_tokens`: KV tokens that the decode rows read, those of this step included. All may be means.
    """

    prefill_tokens: float = 0
    prefill_pairs: float = 0
    decode_rows: float = 0
    context_tokens: float = 0

    def terms(self) -> tuple[float, ...]:
        """Return what the five coefficients are multiplied with."""
        return (
            1.0,
            float(self.prefill_tokens),
            float(self.prefill_pairs),
            float(self.decode_rows),
            float(self.context_tokens),
        )


class MeasuredStep(StepLoad, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A step that was measured, and for people what it is. One line of a file of measurements."""

    seconds: float
    note: str = ""


class StepCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Coefficients in seconds; see the module."""

    base_s: float
    prefill_token_s: float
    attention_pair_s: float
    decode_row_s: float
    context_token_s: float

    def seconds(self, work: StepLoad) -> float:
        """Return how long a step takes."""
        return self.of(work.prefill_tokens, work.prefill_pairs, work.decode_rows, work.context_tokens)

    def of(self, prefill_tokens: float, prefill_pairs: float, decode_rows: float, context_tokens: float) -> float:
        """Return how long a step with these counts takes; `seconds` without the record."""
        return (
            self.base_s
            + self.prefill_token_s * prefill_tokens
            + self.attention_pair_s * prefill_pairs
            + self.decode_row_s * decode_rows
            + self.context_token_s * context_tokens
        )

    def alone_s(self, input_tokens: int, output_tokens: int, chunk_tokens: int) -> float:
        """Return how long a request takes on an idle engine without any cached prefix."""
        chunks = -(-input_tokens // chunk_tokens) if chunk_tokens > 0 else 1
        prefill = self.of(input_tokens, pairs(0, input_tokens), 0, 0) + (chunks - 1) * self.base_s
        rows = output_tokens - 1
        context = rows * input_tokens + rows * (rows + 1) // 2
        return prefill + rows * (self.base_s + self.decode_row_s) + context * self.context_token_s


def pairs(start: int, length: int) -> int:
    """Return the (query, key) pairs of `length` prefill tokens from position `start` on."""
    return length * start + length * (length + 1) // 2


def fit_steps(steps: Sequence[MeasuredStep]) -> StepCost:
    """Return the non-negative coefficients with the least sum of squared *relative* errors.

    Relative, because a step of 5 ms matters as much as one of 500 ms when there are a hundred times as many of it.
    The optimum under non-negativity is the free optimum over its own non-zero terms; with five terms all 31 sets of
    them are tried, which is exact and needs no solver. Raises CostError if no set of terms is independent.
    """
    rows = [[term / step.seconds for term in step.terms()] for step in steps]
    scale = [max((abs(row[i]) for row in rows), default=0.0) or 1.0 for i in range(NUM_TERMS)]
    rows = [[row[i] / scale[i] for i in range(NUM_TERMS)] for row in rows]
    # The error of a solution x is n - 2 b.x + x.A.x, so the rows are gone through once.
    products = [[sum(row[i] * row[j] for row in rows) for j in range(NUM_TERMS)] for i in range(NUM_TERMS)]
    sums = [sum(row[i] for row in rows) for i in range(NUM_TERMS)]
    best: tuple[float, list[float]] | None = None
    for size in range(1, NUM_TERMS + 1):
        for chosen in itertools.combinations(range(NUM_TERMS), size):
            found = _solved(products, sums, chosen)
            if found is None or min(found) < 0:
                continue
            error = -2.0 * sum(value * sums[i] for i, value in zip(chosen, found, strict=True))
            for i, value in zip(chosen, found, strict=True):
                error += value * sum(other * products[i][j] for j, other in zip(chosen, found, strict=True))
            if best is None or error < best[0]:
                values = [0.0] * NUM_TERMS
                for i, value in zip(chosen, found, strict=True):
                    values[i] = value
                best = (error, values)
    if best is None:
        raise CostError(f"{len(steps)} measured steps do not determine a cost")
    return StepCost(*(value / factor for value, factor in zip(best[1], scale, strict=True)))


def _solved(products: Sequence[Sequence[float]], sums: Sequence[float], chosen: Sequence[int]) -> list[float] | None:
    """Solve the normal equations of the chosen columns; None if these are not independent."""
    normal = [[products[i][j] for j in chosen] + [sums[i]] for i in chosen]
    size = len(chosen)
    for at in range(size):
        pivot = max(range(at, size), key=lambda i: abs(normal[i][at]))
        if abs(normal[pivot][at]) < TOO_SMALL:
            return None
        normal[at], normal[pivot] = normal[pivot], normal[at]
        for i in range(size):
            if i != at:
                factor = normal[i][at] / normal[at][at]
                normal[i] = [a - factor * b for a, b in zip(normal[i], normal[at], strict=True)]
    return [normal[i][size] / normal[i][i] for i in range(size)]


def residuals(cost: StepCost, steps: Iterable[MeasuredStep]) -> list[tuple[MeasuredStep, float]]:
    """Return each measured step with the relative error of the model: 0.1 is 10 % too long."""
    return [(step, cost.seconds(step) / step.seconds - 1.0) for step in steps]
