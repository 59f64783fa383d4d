"""What README.md says: its links lead somewhere, its snippet is a program, its sizes are about right."""

import ast
import collections
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SNIPPET = re.compile(r"<!-- snippet: (\w+) -->\n```python\n(.*?)```", re.DOTALL)


def snippet(name: str) -> str:
    """Return a program of the README by the name in the comment above it."""
    snippets: dict[str, str] = dict(SNIPPET.findall(README))
    return snippets[name]


def lines_of_python(folder: str) -> int:
    return sum(len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py"))


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


GUIDES = [f"docs/guides/from-{name}.md" for name in ("ollama", "sglang", "vllm")]


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "examples/README.md", *GUIDES])
def test_links_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert links
    assert not [link for link in links if not ((ROOT / page).parent / link).exists()]


def test_pictures_can_be_parsed() -> None:
    pictures = [ROOT / name for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)]
    assert collections.Counter(picture.suffix for picture in pictures) == {".svg": 2, ".png": 2}
    for picture in pictures:
        assert picture.stat().st_size < 200_000
        if picture.suffix == ".png":
            assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        else:
            assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_offline_snippet_is_a_program_that_needs_quartet_alone() -> None:
    tree = ast.parse(snippet("offline"))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [node.module for node in imported if isinstance(node, ast.ImportFrom)] == ["quartet"]
    assert len(imported) == 1


def test_sizes_are_true_within_a_tenth() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([\d,]+) \|", README, re.MULTILINE)
    assert len(rows) >= 8
    for folders, about in rows:
        counted = sum(lines_of_python(folder) for folder in re.findall(r"`(\w+)`", folders))
        assert abs(counted - int(about.replace(",", ""))) <= counted / 10, f"{folders}: {counted} lines"
