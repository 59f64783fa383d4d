"""The offline engine on SmolLM2: the same greedy output as the server's, and the README's snippet as it stands."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from quartet import LLM, SamplingParams
from tests.support.server import Server

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [
    "The capital of France is",
    "Once upon a time, a lighthouse keeper",
    "def fibonacci(n):",
    "Water boils at",
    "Wer reitet so spät durch Nacht und Wind?",
]
QUESTION = [{"role": "user", "content": "Name three colours."}]
TOKENS = 24


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("smollm2", dtype="float32", max_total_tokens=16384)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--max-total-tokens", "16384", "--dtype", "float32") as running:
        yield running


def post(server: Server, path: str, body: dict[str, object]) -> dict[str, object]:
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, object] = json.load(response)
        return found


def test_greedy_output_equals_the_servers(llm: LLM, server: Server) -> None:
    body = {"prompt": PROMPTS, "max_tokens": TOKENS, "temperature": 0, "logprobs": 0}
    served = post(server, "/v1/completions", body)["choices"]
    params = SamplingParams(max_new_tokens=TOKENS, temperature=0.0, logprobs=0)
    answers = llm.generate(PROMPTS, params)
    assert [answer.text for answer in answers] == [choice["text"] for choice in served]  # type: ignore[attr-defined,index]
    tokens = [[one.token for one in answer.logprobs] for answer in answers]
    assert tokens == [choice["logprobs"]["tokens"] for choice in served]  # type: ignore[attr-defined,index]


def test_a_chat_equals_the_servers(llm: LLM, server: Server) -> None:
    body = {"messages": QUESTION, "max_tokens": TOKENS, "temperature": 0}
    served = post(server, "/v1/chat/completions", body)["choices"][0]["message"]["content"]  # type: ignore[index]
    (answer,) = llm.chat(QUESTION, SamplingParams(max_new_tokens=TOKENS, temperature=0.0))
    assert answer.text == served


def test_the_readmes_snippet_runs() -> None:
    page = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- snippet: offline -->\s*```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    finished = subprocess.run(
        [sys.executable, "-c", found[1]], capture_output=True, text=True, timeout=100, cwd="/tmp", check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip()
