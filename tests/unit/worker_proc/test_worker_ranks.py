"""A model that is divided among ranks says what it says on one: greedy ids in fp32, through every kind of step."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from step_feeder import StepFeeder
from tiny_models import TINY, make_weights, resolved, write_folder

from quartet.checkpoint.ranks import check_ranks
from quartet.checkpoint.spec import read_spec
from quartet.settings import build_config
from quartet.wire.config import Config, ModelConfig, SchedulerConfig, WorkerConfig
from quartet.wire.errors import ConfigError
from quartet.wire.frames import Chunk, Enter, SamplingParams, Step, pack_ids
from tests.golden.oracles import FOLDER, check_equal, load_for_launch
from tests.support.local_engine import LocalEngine, make_config
from tests.support.rank_threads import RankThreads
from worker_proc import loading
from worker_proc.contract import DeviceLostError, Start, StepError
from worker_proc.follower import LostStepError
from worker_proc.leading_runner import LeadingRunner

GOLDEN = FOLDER / "models"
TOKENIZER = GOLDEN / "qwen3"


def is_divided(folder: Path) -> bool:
    try:
        check_ranks(read_spec(folder, 64), 2)
    except ConfigError:
        return False
    return True


DIVIDED = [path.parent.name for path in sorted(GOLDEN.glob("*/oracle.json")) if is_divided(path.parent)]
QUICK = ("llama_tied", "qwen2")
"""One with tied embeddings, one with biases on q, k and v."""
PROMPTS = [[3 + (7 * i + k) % 90 for i in range(5 + 9 * k)] for k in range(6)]

MakeRanks = Callable[..., RankThreads]


@pytest.fixture
def make_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRanks]:
    made: list[RankThreads] = []

    def make(config: Config, *starts: Start) -> RankThreads:
        made.append(RankThreads(config, monkeypatch, starts))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def make_engine(make_ranks: MakeRanks) -> Callable[[Config], LocalEngine]:
    """Return a function to an engine with as many ranks as the configuration asks for."""

    def make(config: Config) -> LocalEngine:
        runner = make_ranks(config).runner if config.worker.tp_size > 1 else None
        return LocalEngine(config, max_in_flight=2, runner=runner)

    return make


@pytest.mark.parametrize(
    "name", [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in DIVIDED]
)
def test_two_ranks_give_the_ids_of_transformers(name: str, make_engine: Callable[[Config], LocalEngine]) -> None:
    folder = GOLDEN / name
    oracles, context_length = load_for_launch(folder)
    limits = {"context_length": context_length, "max_total_tokens": 4096}
    engine = make_engine(make_config(folder, tokenizer=TOKENIZER, tp_size=2, **limits))
    prompts = [oracle.prompt_ids for oracle in oracles]
    check_equal(oracles, engine.generate(prompts, 24))
    check_equal(oracles, engine.generate(prompts, 24))
    assert engine.cached_tokens() > 0
    engine.restart(chunked_prefill_size=16, test_retract=True)
    check_equal(oracles, engine.generate(prompts, 24))
    engine.restart()
    check_equal(oracles, engine.generate(prompts, 24, worker_lives=(40,)))


def settings(folder: Path, config: dict[str, Any], ranks: int) -> Config:
    return Config(
        model=ModelConfig(dtype="float32"),
        worker=WorkerConfig(device="cpu", max_total_tokens=1024, page_size=16, tp_size=ranks),
        scheduler=SchedulerConfig(max_running_requests=8),
        resolved=resolved(folder, config),
    )


WIDE = {**TINY, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64, "head_dim": 8}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("family", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
def test_ranks_give_the_ids_of_one(
    ranks: int, family: str, tmp_path: Path, make_engine: Callable[[Config], LocalEngine]
) -> None:
    config = {**WIDE, "architectures": [family], "tie_word_embeddings": family.startswith("Llama")}
    folder = write_folder(tmp_path, config, make_weights(config))
    expected = make_engine(settings(folder, config, 1)).generate(PROMPTS, 20)
    assert make_engine(settings(folder, config, ranks)).generate(PROMPTS, 20) == expected


def test_sampling_is_that_of_rank_0(tmp_path: Path, make_engine: Callable[[Config], LocalEngine]) -> None:
    """Seeds, penalties and log-probabilities are unknown to the other ranks."""
    config = {**WIDE, "architectures": ["Qwen2ForCausalLM"]}
    folder = write_folder(tmp_path, config, make_weights(config))
    params = [
        {"max_new_tokens": 16, "temperature": 0.9, "seed": 5 + k, "top_p": 0.9, "presence_penalty": 0.5, "logprobs": 2}
        for k in range(len(PROMPTS))
    ]
    alone, divided = (make_engine(settings(folder, config, ranks)).run(PROMPTS, params) for ranks in (1, 2))
    assert [one.outputs for one in alone] == [one.outputs for one in divided]
    scored = [{"max_new_tokens": 4, "prompt_logprobs": 1}] * len(PROMPTS)
    alone, divided = (make_engine(settings(folder, config, ranks)).run(PROMPTS, scored) for ranks in (1, 2))
    assert [one.outputs for one in alone] == [one.outputs for one in divided]


def test_drafted_rows_are_rows_of_every_rank(make_engine: Callable[[Config], LocalEngine]) -> None:
    engine = make_engine(make_config(GOLDEN / "qwen3", max_total_tokens=2048, tp_size=2))
    loop = {"logit_bias": ((7, 30.0), (9, 30.0), (11, 29.0)), "temperature": 0.4, "seed": 3}
    prompts = [[5 + (7 * row + at) % 80 for at in range(3 + 11 * row)] for row in range(3)]
    plain = engine.generate(prompts, 40, **loop)
    engine.restart(speculative_tokens=6)
    assert engine.generate(prompts, 40, **loop) == plain
    assert engine.counters()["accepted_tokens"] > 0


def test_pages_with_numbers_that_are_not_finite_are_cleared_on_every_rank(
    tmp_path: Path, make_ranks: MakeRanks
) -> None:
    weights = make_weights(WIDE)
    weights["model.embed_tokens.weight"][50] = float("nan")
    ranks = make_ranks(settings(write_folder(tmp_path, WIDE, weights), WIDE, 2))
    ranks.runner.reset()
    ranks.runner.allocate(3)
    feeder = StepFeeder(ranks.runner)
    prompt = [5, 6, 7, 8, 9]
    expected = feeder.generate(0, prompt, 4)
    feeder.free_pages = [1, 2, 3]
    assert feeder.step([feeder.enter(0, [50] * 40, 1)], [Chunk(0, 40, True)]).bad_rows == [0]
    feeder.step(release=[0], decode=False)
    feeder.free_pages = [1, 2, 3]
    feeder.step()
    assert feeder.generate(0, prompt, 4) == expected


def test_two_collective_operations_a_layer_and_one_for_the_ids(tmp_path: Path, make_ranks: MakeRanks) -> None:
    folder = write_folder(tmp_path, WIDE, make_weights(WIDE))
    ranks = make_ranks(settings(folder, WIDE, 2))
    ranks.runner.reset()
    ranks.runner.allocate(64)
    feeder = StepFeeder(ranks.runner)
    feeder.generate(0, [5, 6, 7], 3)
    before = ranks.meeting.exchanges
    feeder.step([feeder.enter(0, [5, 6, 7], 2)], [Chunk(0, 3, True)])
    assert ranks.meeting.exchanges - before == 2 * WIDE["num_hidden_layers"] + 1


def test_the_capacity_is_that_of_the_rank_that_holds_least(
    tmp_path: Path, make_ranks: MakeRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path, WIDE, make_weights(WIDE))
    counts = iter((50, 30))
    monkeypatch.setattr(loading, "count_pages", lambda *_, **__: next(counts))
    assert make_ranks(settings(folder, WIDE, 2)).runner.capacity.page_count == 30


def test_ranks_that_start_differently_start_as_for_the_first_time(tmp_path: Path, make_ranks: MakeRanks) -> None:
    """One was ready before the worker died, the other was not: both make the same warm-up."""
    folder = write_folder(tmp_path, WIDE, make_weights(WIDE))
    ranks = make_ranks(settings(folder, WIDE, 2), Start.RECOVERY, Start.FIRST)
    ranks.runner.reset()
    ranks.runner.allocate(64)
    assert StepFeeder(ranks.runner).generate(0, [5, 6, 7], 3)


@pytest.mark.parametrize(
    ("name", "quantization", "words"),
    [
        ("qwen3_moe", "auto", "experts"),
        ("qwen3_5", "auto", "linear attention"),
        ("olmo2", "auto", "a norm over all heads"),
        ("qwen3", "fp8", "quantised weights"),
    ],
)
def test_what_is_not_divided_yet_is_refused_by_name(name: str, quantization: str, words: str) -> None:
    spec = read_spec(GOLDEN / name, 64, quantization)
    check_ranks(spec, 1)
    with pytest.raises(ConfigError, match=f"a model with {words} cannot be .*: drop --tp-size 2"):
        check_ranks(spec, 2)


@pytest.mark.parametrize("flag", ["--standby", "--simulated-worker"])
def test_settings_that_need_one_rank_are_refused_beside_several(flag: str) -> None:
    field = flag[2:].replace("-", "_")
    given = {f"{'server' if field == 'standby' else 'worker'}.{field}": "true"}
    build_config(given, {})
    with pytest.raises(ConfigError, match=f"--tp-size 2 does not work with {flag}"):
        build_config({**given, "worker.tp_size": "2"}, {})


def test_one_process_refuses_to_be_several_ranks(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, WIDE, make_weights(WIDE))
    with pytest.raises(ConfigError, match="--tp-size 2 takes a process for each rank"):
        loading.load_runner(settings(folder, WIDE, 2), lambda: None)


def test_a_step_that_is_wrong_on_all_ranks_ends_none(tmp_path: Path, make_ranks: MakeRanks) -> None:
    folder = write_folder(tmp_path, WIDE, make_weights(WIDE))
    ranks = make_ranks(settings(folder, WIDE, 2))
    ranks.runner.reset()
    ranks.runner.allocate(64)
    feeder = StepFeeder(ranks.runner)
    expected = feeder.generate(0, [5, 6, 7], 4)
    with pytest.raises(StepError):
        feeder.step(chunks=[Chunk(3, 5, True)])
    assert feeder.generate(0, [5, 6, 7], 4) == expected


class BrokenRunner:
    """A runner whose steps raise."""

    def launch(self, step: Step, scheduler_epoch: int) -> None:
        raise torch.OutOfMemoryError("no memory")


def test_any_other_error_of_a_step_ends_the_worker() -> None:
    sent: list[Any] = []
    runner = LeadingRunner(BrokenRunner(), ["worker-1"], lambda name, frame: sent.append((name, frame)))  # type: ignore[arg-type]
    step = Step(1, 1, b"", [], b"", [], True)  # type: ignore[arg-type]
    with pytest.raises(DeviceLostError, match="OutOfMemoryError"):
        runner.launch(step, 1)  # type: ignore[arg-type]
    assert sent == [("worker-1", step)]


def test_a_step_that_is_lost_on_its_way_ends_the_rank(tmp_path: Path, make_ranks: MakeRanks) -> None:
    folder = write_folder(tmp_path, WIDE, make_weights(WIDE))
    ranks = make_ranks(settings(folder, WIDE, 2))
    ranks.runner.reset()
    ranks.runner.allocate(64)
    feeder = StepFeeder(ranks.runner)
    feeder.generate(0, [5, 6, 7], 2)
    feeder.next_step += 1
    with pytest.raises(DeviceLostError):
        feeder.generate(0, [5, 6, 7], 2)
    ranks.meeting.end()
    with pytest.raises(LostStepError, match="follows"):
        ranks.close()
    ranks.errors.clear()


def test_parameters_that_only_sampling_needs_stay_with_rank_0() -> None:
    class Quiet:
        def launch(self, step: Step, scheduler_epoch: int) -> str:
            return "launched"

    sent: list[Any] = []
    runner = LeadingRunner(Quiet(), ["worker-1", "worker-2"], lambda name, frame: sent.append((name, frame)))  # type: ignore[arg-type]
    params = SamplingParams(temperature=0.7, stop=("secret",), prompt_logprobs=2, logprobs=3)
    enter = Enter(0, 100, pack_ids([5, 6]), 2, 0, pack_ids([1]), params, 0)
    assert runner.launch(Step(1, 1, b"", [enter], b"", [], True), 1) == "launched"  # type: ignore[arg-type]
    assert [name for name, _ in sent] == ["worker-1", "worker-2"]
    assert sent[0][1].enter[0].params == SamplingParams(temperature=0.0, prompt_logprobs=2)
