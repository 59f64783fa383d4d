"""Reads the committed oracles, and compares with them."""

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
LONGROPE_TOKENS = {"phi3_longrope": 128}
"""Where transformers changes the frequencies of a sequence that has become longer; Quartet chooses by the context."""
NEAR_TIE = 0.25
"""In bf16 a row may leave the oracle only where the oracle's two best logits lie within this."""


@dataclass(frozen=True)
class Oracle:
    """One prompt with what transformers said greedily, and by how much each token was the best."""

    name: str
    prompt_ids: list[int]
    output_ids: list[int]
    margins: list[float]


def load(path: Path) -> list[Oracle]:
    """Return the oracles of one file."""
    prompts = json.loads(path.read_text())["prompts"]
    return [
        Oracle(row.get("name", str(number)), row["prompt_ids"], row["output_ids"], row["margins"])
        for number, row in enumerate(prompts)
    ]


def load_for_launch(folder: Path) -> tuple[list[Oracle], int]:
    """Return the oracles of a model's folder that one launch gives, and its context length, 0 for the model's own."""
    oracles, limit = load(folder / "oracle.json"), LONGROPE_TOKENS.get(folder.name, 0)
    return [one for one in oracles if not limit or len(one.prompt_ids) <= limit], limit


def check_equal(oracles: list[Oracle], outputs: list[list[int]]) -> None:
    """Assert token for token equality, as far as the outputs go."""
    for oracle, output in zip(oracles, outputs, strict=True):
        assert output == oracle.output_ids[: len(output)], oracle.name
        assert output, oracle.name


def check_near(oracles: list[Oracle], outputs: list[list[int]]) -> int:
    """Assert that each row first leaves the oracle at a near-tie, if at all; returns how many rows left it."""
    left = 0
    for oracle, output in zip(oracles, outputs, strict=True):
        for at, (token_id, wanted) in enumerate(zip(output, oracle.output_ids, strict=False)):
            if token_id != wanted:
                assert oracle.margins[at] <= NEAR_TIE, f"{oracle.name} at {at}: margin {oracle.margins[at]}"
                left += 1
                break
    return left
