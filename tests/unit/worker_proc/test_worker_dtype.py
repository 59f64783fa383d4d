"""The dtype that --dtype auto takes: bfloat16 on the CPU only for a model that is stored in it."""

import pytest
import torch
from tiny_models import CONTEXT, TINY

from quartet.checkpoint.spec import parse_spec
from quartet.wire.config import ModelConfig
from worker_proc import loading
from worker_proc.loading import choose_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("fields", "has_bf16", "expected"),
    [
        ({"dtype": "float32"}, True, torch.float32),
        ({"torch_dtype": "float16"}, True, torch.float32),
        ({}, True, torch.float32),
        ({"torch_dtype": "bfloat16"}, True, torch.bfloat16),
        ({"dtype": "torch.bfloat16"}, True, torch.bfloat16),
        ({"dtype": "bfloat16"}, False, torch.float32),
    ],
)
def test_auto_on_the_cpu(
    fields: dict[str, str], has_bf16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(loading, "can_prepack", lambda dtype: True)
    spec = parse_spec({**TINY, **fields}, CONTEXT)
    assert choose_dtype(ModelConfig(), spec, CPU) == expected
    assert choose_dtype(ModelConfig(dtype="bfloat16"), spec, CPU) == torch.bfloat16
