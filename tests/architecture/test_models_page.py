"""The tables of supported families: what README.md and docs/models.md say is what the code has."""

import re
from pathlib import Path

from quartet.checkpoint.families import FAMILIES
from quartet.checkpoint.quantization_config import METHODS
from quartet.checkpoint.rotary import KINDS, OTHER_NAMES
from quartet.checkpoint.text_part import TEXT_PARTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text()


def test_the_page_has_the_families_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", PAGE.partition("\n## ")[0], re.MULTILINE)
    assert rows == [(name, family.models) for name, family in FAMILIES.items()]


def test_the_page_has_the_text_parts_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\w+)` \|$", PAGE, re.MULTILINE)
    assert rows == [(whole, kind, family) for (whole, kind), family in TEXT_PARTS.items()]


def test_the_page_has_the_kinds_of_rotary_scaling() -> None:
    table = PAGE.partition("## Rotary scaling")[2]
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)))
    assert set(named) == (set(KINDS) | set(OTHER_NAMES)) - {"default"}


def test_the_page_has_the_methods_of_quantised_checkpoints() -> None:
    table = PAGE.partition("## Quantised weights")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)[1:] == list(METHODS)


def test_the_readme_names_every_architecture() -> None:
    assert set(re.findall(r"`(\w+ForCausalLM)`", (ROOT / "README.md").read_text())) == set(FAMILIES)
