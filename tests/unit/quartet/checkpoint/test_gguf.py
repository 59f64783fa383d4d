"""GGUF files: read, refused when damaged, converted once."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from quartet.checkpoint import cache
from quartet.checkpoint.convert import convert
from quartet.checkpoint.gguf_config import hf_config
from quartet.checkpoint.gguf_convert import unpermute
from quartet.checkpoint.gguf_reader import GgufHeader, read_header
from quartet.checkpoint.resolve import resolve_model
from quartet.wire.config import ModelConfig
from quartet.wire.errors import ModelError

pytestmark = pytest.mark.usefixtures("cache_folder")


def test_weights_come_back_under_their_names_and_in_their_order(tmp_path: Path) -> None:
    expected = gguf_models.write_gguf(tmp_path / "tiny.gguf")
    found = load_file(convert(tmp_path / "tiny.gguf") / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_quantised_weights_are_close(tmp_path: Path) -> None:
    expected = gguf_models.write_gguf(tmp_path / "tiny.gguf", quantised=True)
    found = load_file(convert(tmp_path / "tiny.gguf") / "model.safetensors")
    for name, values in expected.items():
        module = name.removesuffix(".weight")
        numbers = found[name] if name in found else found[f"{module}.codes"] * found[f"{module}.scale"].repeat(32, 1)
        np.testing.assert_allclose(numbers, values, atol=0.03, err_msg=name)
    assert "model.layers.0.mlp.up_proj.codes" in found


def test_qwen_rows_are_left_in_place(tmp_path: Path) -> None:
    expected = gguf_models.write_gguf(tmp_path / "tiny.gguf", arch="qwen2")
    folder = convert(tmp_path / "tiny.gguf")
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(load_file(folder / "model.safetensors")[name], expected[name])
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


@given(heads=st.integers(1, 5), pairs=st.integers(1, 6))
def test_unpermute_undoes_permute(heads: int, pairs: int) -> None:
    rows = np.arange(heads * pairs * 2 * 3, dtype=np.float32).reshape(-1, 3)
    np.testing.assert_array_equal(unpermute(gguf_models.permute(rows, heads), heads), rows)


def test_the_converted_folder_resolves(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = resolve_model(ModelConfig(model_path=str(tiny)))
    assert (model.name, model.architecture, model.vocab_size) == ("tiny", "LlamaForCausalLM", 12)
    assert (model.context_length, model.eos_token_ids, model.bos_token_id) == (128, (0,), 0)
    assert model.chat_template == "{{ messages[0].content }}"
    assert "converting" in capfd.readouterr().err
    config = json.loads((Path(model.folder) / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert config["rms_norm_eps"] == 1e-5
    again = resolve_model(ModelConfig(model_path=str(tiny)))
    assert again == model
    assert capfd.readouterr().err == "", "the second start converts nothing"


def test_the_tokenizer_is_rebuilt(tiny: Path) -> None:
    tokenizer = Tokenizer.from_file(str(convert(tiny) / "tokenizer.json"))
    assert tokenizer.encode("ab ab<|end|>").ids == [10, 11, 0]
    assert tokenizer.decode([10, 11]) == "ab ab"


def test_a_sentencepiece_vocabulary_merges_by_score(tmp_path: Path) -> None:
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"abc",
        "ab",
        "bc",
        "\u2581ab",
    ]
    scores = [0.0] * 259 + [-10.0, -11.0, -12.0, -13.0, -2.0, -1.0, -3.0]
    changes: dict[str, Any] = {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": scores,
        "bos": 1,
        "eos": 2,
    }
    changes["types"] = [2, 3, 3, *[6] * 256, *[1] * 7]
    gguf_models.write_gguf(tmp_path / "tiny.gguf", tokenizer=changes)
    tokenizer = Tokenizer.from_file(str(convert(tmp_path / "tiny.gguf") / "tokenizer.json"))
    bos, space, a, bc = 1, 259, 260, 264
    assert tokenizer.encode("abc").ids == [bos, space, a, bc], "bc scores higher than ab"
    assert tokenizer.encode("ab").ids == [bos, 265]
    assert tokenizer.encode("é").ids == [bos, space, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode(tokenizer.encode("ab é").ids) == "ab é"


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    for changes, word in (({"pre": "deepseek-coder"}, "deepseek-coder"), ({"model": "bert"}, "bert")):
        gguf_models.write_gguf(tmp_path / f"{word}.gguf", tokenizer=changes)
        with pytest.raises(ModelError, match=word):
            convert(tmp_path / f"{word}.gguf")
    gguf_models.write_gguf(tmp_path / "mamba.gguf", arch="mamba")
    with pytest.raises(ModelError, match=r"'mamba'; supported: llama"):
        convert(tmp_path / "mamba.gguf")
    gguf_models.write_gguf(tmp_path / "odd.gguf", extra={"blk.0.odd.weight": np.zeros(4, np.float32)})
    with pytest.raises(ModelError, match=r"blk\.0\.odd\.weight"):
        convert(tmp_path / "odd.gguf")


def test_llama3_rope_factors_become_their_scaling(tiny: Path) -> None:
    header = read_header(tiny)
    metadata = {**header.metadata, "llama.rope.freq_base": 500000.0, "llama.attention.key_length": 128}
    wavelengths = [2 * np.pi * 500000.0 ** (2 * index / 128) for index in range(64)]
    factors = []
    for wavelength in wavelengths:
        smooth = min(1.0, max(0.0, (8192 / wavelength - 1) / 3))
        factors.append(1 / ((1 - smooth) / 8 + smooth))
    changed = GgufHeader(metadata, header.tensors)
    assert hf_config(changed, factors)["rope_scaling"]["factor"] == 8
    with pytest.raises(ModelError, match="rotary"):
        hf_config(changed, [*factors[:-1], 3.0])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused_in_one_line(tiny: Path, share: float) -> None:
    data = tiny.read_bytes()
    cut = tiny.with_name("cut.gguf")
    # The last tensor may be followed by padding, which no one misses.
    cut.write_bytes(data[: int((len(data) - 64) * share)])
    with pytest.raises(ModelError) as caught:
        read_header(cut)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 1500), byte=st.integers(0, 255))
def test_a_changed_header_byte_is_read_or_refused(tiny: Path, at: int, byte: int) -> None:
    data = bytearray(tiny.read_bytes())
    data[at] = byte
    changed = tiny.with_name("changed.gguf")
    changed.write_bytes(data)
    try:
        read_header(changed)
    except ModelError as error:
        assert "\n" not in str(error)


def test_a_damaged_cache_is_made_again(tiny: Path) -> None:
    folder = convert(tiny)
    (folder / "model.safetensors").write_bytes(b"half")
    assert not cache.is_complete(folder)
    assert convert(tiny) == folder
    assert cache.is_complete(folder)


def test_a_failed_conversion_leaves_nothing(cache_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ModelError):
        convert(tmp_path / "bad.gguf")
    assert [path.suffix for path in (cache_folder / "models").iterdir()] == [".lock"]


def test_what_a_killed_converter_left_is_removed(tiny: Path, cache_folder: Path) -> None:
    left = cache.entry_path(tiny).with_name(cache.entry_path(tiny).name + ".tmp-dead")
    left.mkdir(parents=True)
    convert(tiny)
    assert not left.exists()


def test_two_converters_do_the_work_once(tiny: Path) -> None:
    made: list[int] = []
    started, go = threading.Event(), threading.Event()
    entry = cache.entry_path(tiny)

    def make(folder: Path) -> None:
        made.append(1)
        started.set()
        go.wait(5)
        (folder / "x").write_text("x")

    threads = [threading.Thread(target=cache.build, args=(entry, make)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert started.wait(5)
    go.set()
    for thread in threads:
        thread.join()
    assert made == [1] and cache.is_complete(entry)


def test_the_command_prints_the_folder_or_the_reason(tiny: Path) -> None:
    command = [sys.executable, "-m", "quartet.checkpoint.convert"]
    done = subprocess.run([*command, str(tiny)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(cache.entry_path(tiny)))
    failed = subprocess.run([*command, "none.gguf"], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (3, "there is no file none.gguf; check the path\n")
