"""ARCHITECTURE.md follows a token through at most ten files; each thing it names is where it says."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEP = re.compile(r"^\d+\. `([\w/]+\.py): (\w+)`", re.MULTILINE)


def test_the_way_of_a_token_is_at_most_ten_files_and_true() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text().split("## One token's way", 1)[1].split("\n## ", 1)[0]
    steps = STEP.findall(text)
    assert len(steps) == len(re.findall(r"^\d+\. ", text, re.MULTILINE))
    assert 5 <= len({file for file, _ in steps}) <= 10
    for file, name in steps:
        source = (ROOT / file).read_text()
        assert re.search(rf"^\s*(async def|def|class) {name}\b", source, re.MULTILINE), f"{name} is not in {file}"
