"""Measured steps as files; scheduler_proc.core.step_cost fits them."""

from pathlib import Path

import msgspec

from scheduler_proc.core.step_cost import CostError, MeasuredStep


def read_steps(path: Path) -> list[MeasuredStep]:
    """Return the steps of a JSONL file of measurements; raises CostError, which names file and line."""
    decoder = msgspec.json.Decoder(MeasuredStep)
    steps = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            step = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise CostError(f"{path}, line {number}: {error}") from error
        if not step.seconds > 0:
            raise CostError(f"{path}, line {number}: seconds {step.seconds} must be more than 0")
        steps.append(step)
    return steps
