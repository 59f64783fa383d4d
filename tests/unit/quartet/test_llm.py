"""The offline engine on the simulated worker: results, choices, errors, settings. The real model is in tests/e2e."""

import subprocess
import sys
from typing import Any

import pytest

from quartet import LLM, SamplingParams
from quartet.wire.errors import ConfigError, RequestError
from tests.golden.oracles import FOLDER
from worker_proc.simulated import HashModel

QWEN3 = str(FOLDER / "models" / "qwen3")


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(QWEN3, simulated_worker=True, max_total_tokens=4096, page_size=4)


def expected(llm: LLM, prompt: list[int], count: int) -> list[int]:
    model = llm.config.require_model()
    return HashModel(model.vocab_size, model.eos_token_ids, model.context_length).continuation(prompt, count)


def greedy(count: int, **params: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=count, temperature=0.0, **params)


def test_answers_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = [[10 + number, *range(20, 20 + 7 * number)] for number in range(12)]
    answers = llm.generate(prompts, [greedy(1 + number) for number in range(12)])
    assert [answer.prompt_ids for answer in answers] == prompts
    assert [answer.ids for answer in answers] == [expected(llm, one, 1 + at) for at, one in enumerate(prompts)]
    assert {answer.finish_reason for answer in answers} == {"length"}
    assert all(answer.text for answer in answers)


def test_a_prompt_seen_before_comes_from_the_cache(llm: LLM) -> None:
    prompt = list(range(100, 150))
    first, second = (llm.generate([prompt], greedy(4))[0] for _ in range(2))
    assert (first.cached_tokens, second.cached_tokens) == (0, 48) and first.ids == second.ids


def test_a_single_prompt_needs_no_list(llm: LLM) -> None:
    assert [answer.prompt_ids for answer in llm.generate([7, 8, 9], greedy(2))] == [[7, 8, 9]]
    (answer,) = llm.generate("hello", greedy(2))
    assert answer.prompt_ids and len(answer.ids) == 2
    assert llm.generate([], greedy(2)) == []


def test_choices_and_logprobs(llm: LLM) -> None:
    (answer,) = llm.generate([[5, 6, 7]], greedy(3, logprobs=0), n=2)
    assert [choice.ids for choice in answer.choices] == [answer.ids] * 2
    assert [len(choice.logprobs) for choice in answer.choices] == [3, 3]


def test_what_is_refused_is_the_error_of_its_answer(llm: LLM) -> None:
    bad, good = llm.generate([[10**6], [5, 6]], greedy(2))
    assert bad.error is not None and bad.error.param == "prompt"
    with pytest.raises(RequestError, match="vocabulary"):
        _ = bad.text
    assert good.error is None and len(good.ids) == 2


def test_an_interrupt_leaves_no_request_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llm._pump, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[5, 6, 7]] * 3, greedy(50))
    assert llm.generate([[5, 6, 8]], greedy(3))[0].ids == expected(llm, [5, 6, 8], 3)
    assert llm.scheduler.is_idle()


def test_as_many_parameters_as_prompts(llm: LLM) -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        llm.generate([[5], [6]], [greedy(1)])
    assert llm.generate([[5, 6]], greedy(2))[0].ids == expected(llm, [5, 6], 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"page_sise": 4}, "page_sise is not a setting; did you mean page_size"),
        ({"port": 80}, "port is not a setting"),
        ({"page_size": 0}, "--page-size: 0 is not allowed"),
        ({"retract_decode_steps": -1}, "retract_decode_steps: -1 is not allowed"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(QWEN3, simulated_worker=True, **settings)


def test_importing_the_package_loads_neither_torch_nor_the_engine() -> None:
    program = "import sys, quartet; assert not {'torch', 'quartet.llm', 'zmq'} & set(sys.modules); quartet.LLM"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
