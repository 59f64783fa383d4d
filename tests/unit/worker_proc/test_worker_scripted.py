"""The simulated worker's script: which reply holds, its ids one after the other, and after a death."""

import json
from pathlib import Path

import msgspec
import pytest
from step_feeder import StepFeeder

from quartet import LLM
from quartet.checkpoint.resolve import resolve_model
from quartet.checkpoint.script_file import read_script
from quartet.checkpoint.tokenizer_loading import load_tokenizer
from quartet.runtime.clock import ManualClock
from quartet.settings import keyword_config
from quartet.wire.errors import ConfigError
from quartet.wire.frames import Chunk
from tests.golden.oracles import FOLDER
from worker_proc.simulated import SimulatedRunner

QWEN3 = str(FOLDER / "models" / "qwen3")
WEATHER = [
    {"contains": "", "reply": "no entry"},
    {"contains": "weather", "reply": '{"city": "Zürich"}'},
    {"contains": "the weather", "reply": "longer"},
    {"contains": "14 degrees", "reply": "It is 14 degrees."},
]


@pytest.fixture(scope="module")
def script_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("script") / "script.json"
    path.write_text(json.dumps(WEATHER), encoding="utf-8")
    return str(path)


def make_runner(path: str) -> SimulatedRunner:
    config = keyword_config({"model_path": QWEN3, "simulated_worker": True, "max_total_tokens": 1024, "page_size": 4})
    config = msgspec.structs.replace(config, resolved=resolve_model(config.model), script=read_script(path))
    clock = ManualClock()
    runner = SimulatedRunner(config, clock, clock.advance)
    runner.allocate(runner.capacity.page_count)
    return runner


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ("How is weather?", '{"city": "Zürich"}'),
        ("How is the weather?", "longer"),
        ("How is the weather? It has 14 degrees. And then?", "It is 14 degrees."),
        ("It has 14 degrees. And weather?", '{"city": "Zürich"}'),
        ("Hello", "no entry"),
    ],
)
def test_the_entry_whose_text_ends_last_holds_and_of_those_the_longest(
    prompt: str, reply: str, script_path: str
) -> None:
    llm = LLM(QWEN3, simulated_worker=True, max_total_tokens=1024, simulated_script=script_path)
    (answer,) = llm.generate([prompt])
    assert (answer.text, answer.finish_reason) == (reply, "stop")


def test_a_resumed_sequence_continues_its_reply_and_goes_on_behind_it(script_path: str) -> None:
    tokenizer = load_tokenizer(Path(QWEN3))
    runner = make_runner(script_path)
    prompt = tokenizer.encode("How is weather?").ids
    end = resolve_model(keyword_config({"model_path": QWEN3}).model).eos_token_ids[0]
    reply = [*tokenizer.encode(WEATHER[1]["reply"]).ids, end]
    for out in (0, 3, len(reply)):
        feeder = StepFeeder(make_runner(script_path))
        known = [*prompt, *reply[:out]]
        feeder.step([feeder.enter(0, known, 20, prompt_length=len(prompt))], [Chunk(0, len(known), True)])
        while len(feeder.outputs[0]) < len(reply) - out + 2:
            feeder.step()
        assert feeder.outputs[0][: len(reply) - out] == reply[out:]
        assert feeder.outputs[0][len(reply) - out :] == runner.model.continuation([*prompt, *reply], 2)


def test_without_an_entry_that_holds_the_hash_answers(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text('[{"contains": "weather", "reply": "x"}]')
    feeder = StepFeeder(make_runner(str(path)))
    prompt = load_tokenizer(Path(QWEN3)).encode("Hello").ids
    assert feeder.generate(0, prompt, 4) == feeder.runner.model.continuation(prompt, 4)  # type: ignore[attr-defined]


@pytest.mark.parametrize("content", ["", "{}", '[{"contains": "a"}]', '[{"contains": "a", "reply": "b", "c": 1}]'])
def test_a_script_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"simulated_script is .*script\.json', which cannot be read"):
        read_script(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_script(str(tmp_path / "missing.json"))


def test_a_script_without_the_simulated_worker_is_refused() -> None:
    with pytest.raises(ConfigError, match="--simulated-script needs --simulated-worker"):
        keyword_config({"simulated_script": "script.json"})
