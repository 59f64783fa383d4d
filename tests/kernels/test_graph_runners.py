"""Decode with step descriptors and output buffers gives the tokens of decode without, for all sampling parameters."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from quartet.checkpoint.attention_kinds import Heads
from scheduler_proc.core import speculation, text_match
from tests.golden.oracles import FOLDER
from tests.support.grammars import regex, tiny_tokenizer
from tests.support.local_engine import LocalEngine, make_config
from worker_proc.decode_graph_runner import DecodeGraphRunner, capture_sizes, grouped_sizes
from worker_proc.ops.interface import AttentionShape, LayerKind
from worker_proc.ops.triton_ops import TritonOps
from worker_proc.prefill_graph_runner import TOKEN_SIZES, PrefillGraphRunner, row_sizes, step_sizes

PROMPTS = [[9, 8, 7], [5 + at % 60 for at in range(18)]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def outputs(folder: Path, **worker: object) -> list[list[list[int]]]:
    tokenizer = FOLDER / "models" / "qwen3"
    settings = {"device": DEVICE, "attention_backend": "triton", "max_total_tokens": 512, **worker}
    engine = LocalEngine(make_config(folder, tokenizer=tokenizer, **settings))
    assert (engine.runner._decode_graphs is None) == ("disable_cuda_graph" in worker)
    sampling = (
        {"temperature": 0.8, "seed": 5},
        {"temperature": 0.8, "seed": 5, "top_p": 0.6, "frequency_penalty": 0.5},
    )
    return [engine.generate(PROMPTS, 3, **params) for params in sampling]


def test_graph_runners_change_no_token() -> None:
    folder = FOLDER / "models" / "llama"
    assert outputs(folder, cuda_graph_max_bs=8) == outputs(folder, disable_cuda_graph=True)


def test_constrained_rows_are_those_of_steps_without_graphs() -> None:
    folder, tokenizer = FOLDER / "models" / "llama", FOLDER / "models" / "qwen3"
    grammar = regex("[a-c]{9}").grammar
    # The fused sampler takes the first, the full sampler the last.
    params = [{"grammar": grammar}, {}, {"grammar": grammar, "frequency_penalty": 0.5}]
    params = [{"max_new_tokens": 3, **one} for one in params]

    def ids(in_flight: int, backend: str) -> list[list[int]]:
        settings = {"device": DEVICE, "attention_backend": backend, "max_total_tokens": 512, "cuda_graph_max_bs": 8}
        engine = LocalEngine(make_config(folder, tokenizer=tokenizer, **settings), in_flight)
        return [stream.outputs for stream in engine.run([*PROMPTS, [3, 4]], params)]

    with_graphs = ids(2, "triton")
    assert with_graphs == ids(1, "torch")
    for one in (with_graphs[0], with_graphs[2]):
        text = tiny_tokenizer().decode_str(one)
        assert text and set(text) <= set("abc")


def test_decode_rows_beside_prompts_have_the_tokens_they_have_without_graphs(monkeypatch) -> None:
    """Prompts of several chunks, which more and more rows join."""
    sizes = []
    launch = PrefillGraphRunner._size_for
    monkeypatch.setattr(PrefillGraphRunner, "_size_for", lambda *args: sizes.append(launch(*args)) or sizes[-1])

    def ids(**worker: object) -> list[list[int]]:
        settings = {"device": DEVICE, "attention_backend": "triton", "max_total_tokens": 512, **worker}
        engine = LocalEngine(
            make_config(FOLDER / "models" / "llama", tokenizer=FOLDER / "models" / "qwen3", **settings)
        )
        engine.restart(chunked_prefill_size=32, enable_mixed_chunk=True)
        return engine.generate([[3, 4], *PROMPTS, [5 + at % 50 for at in range(40)]], 4, temperature=0.8, seed=5)

    with_graphs = ids(cuda_graph_max_bs=8)
    assert (128, 8) in sizes and None not in sizes
    assert with_graphs == ids(disable_cuda_graph=True)


def test_rows_that_share_prefixes_have_the_tokens_they_have_without_graphs(monkeypatch) -> None:
    """Three prompts that share a page, which end one after another."""
    monkeypatch.setattr(TritonOps, "prefix_costs", lambda self: (0, 0))
    steps = []
    write = DecodeGraphRunner._write_groups
    monkeypatch.setattr(
        DecodeGraphRunner, "_write_groups", lambda self, at, groups: steps.append(groups) or write(self, at, groups)
    )
    shared = [9 + at % 7 for at in range(17)]
    prompts = [[*shared, 3], [*shared, 6, 8], [*shared, 5]]

    def ids(backend: str) -> list[list[int]]:
        settings = {"device": DEVICE, "attention_backend": backend, "max_total_tokens": 512, "cuda_graph_max_bs": 4}
        config = make_config(FOLDER / "models" / "llama", tokenizer=FOLDER / "models" / "qwen3", **settings)
        engine = LocalEngine(config, max_in_flight=2)
        streams = engine.run(
            prompts, [{"max_new_tokens": 2 + at // 2, "temperature": 0.8, "seed": 5} for at in range(3)]
        )
        return [stream.outputs for stream in streams]

    with_groups = ids("triton")
    assert steps and all(groups.lengths.tolist() == [16] for groups in steps)
    assert with_groups == ids("torch")


def test_a_step_takes_the_smallest_graph_that_holds_it() -> None:
    sizes = step_sizes(2048, 512)
    assert row_sizes(512) == [0, 112, 256] and row_sizes(8) == [0, 8]
    assert [tokens for tokens, rows in sizes if rows == 0][:6] == [16, 32, 64, 128, 192, 256]
    assert {tokens for tokens, rows in sizes if rows} <= set(TOKEN_SIZES) and max(sizes) == (2048, 256)
    assert [min(tokens for tokens, rows in sizes if rows == most) for most in (112, 256)] == [128, 128]


def test_capture_sizes_are_dense_at_first_and_end_with_the_largest() -> None:
    assert grouped_sizes(8) == [4, 8] and grouped_sizes(2) == [2]
    assert grouped_sizes(512)[:8] == [4, 8, 16, 32, 48, 64, 80, 96] and grouped_sizes(512)[-2:] == [448, 512]
    assert capture_sizes(1) == [1]
    assert capture_sizes(12) == [1, 2, 4, 8, 12]
    sizes = capture_sizes(512)
    assert sizes[:12] == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80] and sizes[-3:] == [448, 480, 512]


def test_a_failed_step_leaves_the_device_in_sync(monkeypatch, caplog) -> None:
    folder = FOLDER / "models" / "llama"
    settings = {"device": DEVICE, "attention_backend": "triton", "max_total_tokens": 512, "cuda_graph_max_bs": 4}
    engine = LocalEngine(make_config(folder, tokenizer=FOLDER / "models" / "qwen3", **settings))
    expected = engine.generate([PROMPTS[0]], 3)
    runner = engine.runner._decode_graphs
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_padded_rows", None)
        patch.setattr(runner, "can_run", lambda rows: True)
        # Every decode step fails, so that each token comes from a prefill of what there is.
        assert engine.generate([PROMPTS[0]], 3) == expected
    assert "failed: error: TypeError" in caplog.text
    assert engine.generate([PROMPTS[0]], 3) == expected


def test_a_runner_that_is_dropped_frees_its_memory_at_once() -> None:
    folder = FOLDER / "models" / "llama"
    settings = {"device": DEVICE, "attention_backend": "triton", "max_total_tokens": 512, "cuda_graph_max_bs": 4}
    engine = LocalEngine(make_config(folder, tokenizer=FOLDER / "models" / "qwen3", **settings))
    warm_up_runner = engine.runner._warm_up_runner()
    gc.collect()
    gc.disable()
    try:
        warm_up_runner._prepare()
        graphs = weakref.ref(warm_up_runner._decode_graphs)
        del warm_up_runner
        assert graphs() is None, "the warm-up runner's memory waits for the garbage collector"
    finally:
        gc.enable()


def test_drafted_rows_have_the_tokens_they_have_alone(monkeypatch) -> None:
    """Rows of one slot at following positions, with ids that the step gives; one token is enough for a match."""
    for name in ("START_RATE", "STOP_RATE", "LEAST_RATE"):
        monkeypatch.setattr(speculation, name, 0.0)
    monkeypatch.setattr(text_match, "_GRAM_BYTES", 4)
    settings = {"device": DEVICE, "attention_backend": "triton", "max_total_tokens": 512, "cuda_graph_max_bs": 8}
    engine = LocalEngine(
        make_config(FOLDER / "models" / "llama", tokenizer=FOLDER / "models" / "qwen3", **settings), max_in_flight=2
    )
    found = []
    for most in (0, 3):
        engine.restart(speculative_tokens=most)
        found.append(engine.generate([[5, 7, 9, 7, 9, 9, 7]], 6, logit_bias=((7, 30.0), (9, 30.0))))
    assert found[0] == found[1]
    assert engine.counters()["drafted_tokens"] > 0


@pytest.mark.parametrize(
    ("own", "kv_dtype"),
    [({"softcap": 30.0}, None), ({"has_sinks": True}, None), ({"window": 4}, None), ({}, torch.float8_e4m3fn)],
)
def test_only_plain_attention_reads_shared_prefixes(own: dict[str, Any], kv_dtype: torch.dtype | None) -> None:
    """Graphs of such steps are captured before any step, and the prefix kernel knows none of these."""

    def costs(window: int = 0, kv_dtype: torch.dtype | None = None, **more: Any) -> tuple[int, int] | None:
        kind = LayerKind(Heads(4, 2, 16), torch.zeros(8, 16, device=DEVICE), window)
        return TritonOps(AttentionShape(16, 0.25, (kind,), **more), torch.bfloat16, None, kv_dtype).prefix_costs()

    assert costs() is not None and costs(kv_dtype=kv_dtype, **own) is None
