"""A checkpoint of several modalities is read as its text part."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import CONFIG, weights, write_folder, write_json

from quartet.checkpoint.resolve import resolve_model
from quartet.checkpoint.spec import read_spec
from quartet.checkpoint.text_part import text_part
from quartet.checkpoint.weight_files import find_tensors
from quartet.wire.config import ModelConfig
from quartet.wire.errors import ModelError

INNER = {key: value for key, value in CONFIG.items() if key not in ("architectures", "eos_token_id")}
WHOLE: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "eos_token_id": 2,
    "text_config": {**INNER, "model_type": "mistral", "sliding_window": None},
    "vision_config": {"hidden_size": 8},
    "image_token_index": 10,
}


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_fields_and_tensors_are_found_and_the_others_left_out(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = {name.replace("model.", prefix, 1): value for name, value in weights().items()}
    tensors |= {"vision_tower.ln.weight": np.zeros(3, np.int8), "model.visual.x.weight": np.zeros(3, np.float32)}
    tensors["multi_modal_projector.norm.weight"] = np.zeros(3, np.float32)
    folder = write_folder(tmp_path / "model", tensors)
    write_json(folder, "config.json", WHOLE)
    with caplog.at_level(logging.WARNING):
        resolved = resolve_model(ModelConfig(model_path=str(folder)))
    assert (resolved.architecture, resolved.eos_token_ids) == ("MistralForCausalLM", (2,))
    assert "not vision_config" in caplog.text
    assert "image_token_index" not in caplog.text
    spec = read_spec(folder, 64)
    assert (spec.num_layers, spec.hidden_size) == (2, 16)
    found = find_tensors(folder)
    assert set(found) == set(weights())
    assert found["model.norm.weight"].name == prefix + "norm.weight"


def test_what_the_whole_model_says_prevails() -> None:
    inner = {**WHOLE["text_config"], "tie_word_embeddings": True, "dtype": "float32"}
    part = text_part({**WHOLE, "text_config": inner, "tie_word_embeddings": False, "dtype": "bfloat16"})
    assert (part["tie_word_embeddings"], part["dtype"], part["eos_token_id"]) == (False, "bfloat16", 2)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"text_config": {**WHOLE["text_config"], "model_type": "ministral3"}}, "'ministral3'; supported: mistral"),
        ({"text_config": None}, "no text_config"),
        ({"architectures": ["LlavaForConditionalGeneration"]}, "LlavaForConditionalGeneration is not supported"),
    ],
)
def test_other_text_parts_are_refused_by_name(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    write_json(folder, "config.json", {**WHOLE, **changes})
    with pytest.raises(ModelError, match=match):
        resolve_model(ModelConfig(model_path=str(folder)))
