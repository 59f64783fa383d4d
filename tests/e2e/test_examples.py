"""The programs in examples/ as a newcomer runs them, against a server that answers from a script."""

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.server import Server
from tests.support.thinking_template import TEMPLATE

pytestmark = [
    pytest.mark.e2e,
    # The end of a program closes its connections.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MOST_LINES = 60
CALL = {"name": "weather", "arguments": {"city": "Paris"}}
SCRIPT = [
    {"contains": "sky blue", "reply": "Because of the air."},
    {"contains": "weather in Paris", "reply": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"},
    {"contains": "14 degrees and rain in Paris", "reply": "It rains."},
    {"contains": "as JSON", "reply": '{"name": "Paris", "country": "France", "inhabitants": 2000000}'},
    {"contains": "positive, negative", "reply": "positive"},
    {"contains": "walk on the moon", "reply": "1969-07-20"},
    {"contains": "lamp in room 3", "reply": "21 years."},
    {"contains": "Tell me a story", "reply": " ".join(f"word{number}" for number in range(200))},
    {"contains": "a colour", "reply": " Red."},
    {"contains": "", "reply": "Something else."},
]
# What each says, in order; examples/offline.py has a server of its own inside.
EXPECTED = {
    "chat": r"Because of the air\.\n\n\d+ tokens in \d+ ms, the first after \d+ ms",
    "tools": r"the model calls weather\({'city': 'Paris'}\)\nIt rains\.",
    "structured_output": r"Paris in France has 2,000,000 inhabitants\npositive\n1969-07-20",
    "shared_prefix": r"21 years\.\n  0 of \d+ prompt .*\n.*\n  (\d{3,}) of \d+ prompt tokens were cached",
    "resume": r"word0 .*--- the connection is lost after event \d+; /v1/streams/\w+ has the rest:\n.*word\d+",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("examples")
    (folder / "script.json").write_text(json.dumps(SCRIPT))
    (folder / "template.jinja").write_text(TEMPLATE)
    flags = ("--simulated-worker", "--simulated-script", str(folder / "script.json"), "--simulated-step-ms", "4")
    template = ("--chat-template", str(folder / "template.jinja"))
    with Server(*flags, *template, "--enable-priority-scheduling", "--max-running-requests", "4") as running:
        yield running


@pytest.fixture
def said(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an example in this process, which has loaded openai; returns what it prints."""

    def run(name: str, *arguments: str) -> str:
        path = str(EXAMPLES / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        monkeypatch.setenv("QUARTET_URL", server.url)
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_short_and_run() -> None:
    programs = {path.stem: path.read_text().count("\n") for path in EXAMPLES.glob("*.py")}
    assert programs.keys() == {*EXPECTED, "priorities", "batch", "offline"}
    assert max(programs.values()) <= MOST_LINES
    listed = re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(programs)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_says_what_it_should(said: Callable[..., str], name: str) -> None:
    output = said(name)
    assert re.search(EXPECTED[name], output, re.DOTALL if name == "resume" else 0), output


def test_the_urgent_request_does_not_wait_for_the_others(said: Callable[..., str]) -> None:
    output = said("priorities")
    urgent_s, others_s = (float(found) for found in re.findall(r"after ([\d.]+) s", output))
    assert urgent_s < others_s and "by the deadline of the first token" in output


def test_a_batch_has_an_answer_for_each_line(said: Callable[..., str], tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"Name a colour: {n}", "n": n}) + "\n" for n in range(100)))
    said("batch", str(source), str(target))
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert [one["n"] for one in answers] == list(range(100)) and all(one["answer"] == " Red." for one in answers)


@pytest.mark.slow
def test_the_offline_engine() -> None:
    command = [sys.executable, str(EXAMPLES / "offline.py")]
    assert "Paris" in subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
