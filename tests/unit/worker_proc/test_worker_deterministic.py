"""--deterministic on the CPU: the same bytes whatever else runs; and what it refuses, by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from quartet.sizing.device import find_device
from quartet.sizing.plan import plan_memory
from quartet.wire.errors import ConfigError
from tests.golden.oracles import FOLDER, check_equal, load
from tests.support.local_engine import LocalEngine, make_config
from tests.support.random_folder import CONFIGS, make_folder
from tests.support.same_bytes import alone, make_requests, ways
from worker_proc.loading import load_runner
from worker_proc.ops.grouped import GroupedLinear

TOKENIZER = FOLDER / "models" / "qwen3"


@pytest.mark.parametrize(
    ("model", "dtype", "count"), [("wide_llama", "bfloat16", 64), ("mistral_window", "float32", 12)]
)
def test_a_request_has_the_same_bytes_in_whatever_company(tmp_path: Path, model: str, dtype: str, count: int) -> None:
    folder, vocab_size = FOLDER / "models" / model, 500
    if model in CONFIGS:
        folder, vocab_size = tmp_path / model, CONFIGS[model]["vocab_size"]
        make_folder(folder, CONFIGS[model])
    settings: dict[str, Any] = {"max_total_tokens": 8192, "deterministic": True}
    engine = LocalEngine(make_config(folder, dtype, tokenizer=TOKENIZER, **settings), max_in_flight=2)
    requests = make_requests(count, 72, 8, vocab_size)
    expected = alone(engine, requests)
    for name, run in ways(engine, requests, (30, 25)).items():
        found = run()
        wrong = [at for at, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other]
        assert not wrong, f"{name}: {len(wrong)} of {len(found)} requests differ"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [64, 1024, 84])
def test_a_linear_of_numbers(dtype: torch.dtype, columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    weight, x, bias = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((27, columns), (15, columns), 27)
    )
    linear = GroupedLinear(weight, bias, None)
    found = linear(x)
    expected = (x.double() @ weight.double().T + bias.double()).to(dtype)
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 0.01, atol=1e-4)
    assert torch.equal(found, torch.cat([linear(row) for row in x.split(1)]))
    residual = torch.randn(15, 27, generator=generator).to(dtype)
    assert torch.equal(linear.add(x, residual)[7:9], linear.add(x[7:9], residual[7:9]))


@pytest.mark.parametrize(
    ("model", "settings", "what"),
    [("qwen3_5", {}, "Qwen3"), ("qwen3_moe", {}, "Qwen3"), ("llama", {"tp_size": 2}, "--tp")],
)
def test_what_depends_on_the_batch_is_refused_before_the_launch(
    model: str, settings: dict[str, Any], what: str
) -> None:
    config = make_config(FOLDER / "models" / model, tokenizer=TOKENIZER, deterministic=True, **settings)
    device = find_device(config)
    assert device is not None
    with pytest.raises(ConfigError, match=f"--deterministic does not work with {what}"):
        plan_memory(config, device)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("gemma2", {}, "softcaps"),
        ("qwen3", {"kv_cache_dtype": "fp8_e4m3"}, "--kv-cache-dtype"),
        ("qwen3", {"dtype": "float16"}, "float16"),
    ],
)
def test_what_the_cpu_does_not_compute_is_refused(model: str, settings: dict[str, Any], words: str) -> None:
    config = make_config(FOLDER / "models" / model, tokenizer=TOKENIZER, deterministic=True, **settings)
    with pytest.raises(ConfigError, match=f"^--deterministic on a CPU .*{words}"):
        load_runner(config, lambda: None)


def test_layers_with_a_window_read_the_pages_of_their_own_group() -> None:
    """The pool is so small that pages of the window are given back and used again."""
    folder = FOLDER / "models" / "qwen2_window"
    settings = {"scheduler": {"chunked_prefill_size": 32}, "max_total_tokens": 640, "deterministic": True}
    engine = LocalEngine(make_config(folder, tokenizer=TOKENIZER, **settings))
    oracles = load(folder / "oracle.json")
    check_equal(oracles, engine.generate([one.prompt_ids for one in oracles], 24))
