"""The files that are made from the table of metrics are the committed ones."""

from pathlib import Path

import pytest

from scripts.observability import files

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", files())
def test_the_committed_file_is_what_the_script_makes(name: str) -> None:
    assert (ROOT / name).read_text() == files()[name], "run `python -m scripts.observability`"
