"""Which files of a folder are its weights, and which tensors are refused before anything starts."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import Weights, weights, write_folder, write_json
from safetensors.numpy import save_file

from quartet.checkpoint.resolve import resolve_model
from quartet.wire.config import ModelConfig
from quartet.wire.errors import ModelError

NAME = "model.layers.1.mlp.down_proj.weight"


def resolve(folder: Path) -> Any:
    return resolve_model(ModelConfig(model_path=str(folder)))


def retyped(path: Path, name: str, dtype: str, item_bytes: int) -> None:
    """Store tensor `name` of a file of float32 in another type, with data of zeros."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    end = 0
    for key, info in header.items():
        if key != "__metadata__":
            size = (info["data_offsets"][1] - info["data_offsets"][0]) // 4 * (item_bytes if key == name else 4)
            info |= {"dtype": dtype if key == name else "F32", "data_offsets": [end, end + size]}
            end += size
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(end))


@pytest.mark.parametrize(
    ("dtype", "item_bytes"),
    [("I8", 1), ("U8", 1), ("F8_E4M3", 1), ("F8_E5M2", 1), ("I32", 4), ("I64", 8), ("BOOL", 1), ("F8_E8M0", 1)],
)
def test_tensors_that_are_no_plain_floats_are_refused_by_name(dtype: str, item_bytes: int, tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    retyped(folder / "model.safetensors", NAME, dtype, item_bytes)
    with pytest.raises(ModelError, match=rf"{NAME} .*{dtype}.*unquantised"):
        resolve(folder)


@pytest.mark.parametrize(("dtype", "item_bytes"), [("F64", 8), ("F16", 2), ("BF16", 2)])
def test_plain_floats_of_any_size_are_served(dtype: str, item_bytes: int, tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    retyped(folder / "model.safetensors", NAME, dtype, item_bytes)
    resolve(folder)


@pytest.mark.parametrize("name", ["qweight", "weight_packed", "weight_scale_inv"])
def test_the_tensors_of_a_quantised_checkpoint_are_named(name: str, tmp_path: Path) -> None:
    tensors = weights()
    shape = tensors.pop(NAME).shape
    tensors[NAME.replace("weight", name)] = np.zeros(shape, np.int32 if name != "weight_scale_inv" else np.float32)
    with pytest.raises(ModelError, match=r"quantised|unexpected|missing"):
        resolve(write_folder(tmp_path, tensors))


def test_buffers_of_old_exports_may_have_any_type(tmp_path: Path) -> None:
    tensors: Weights = {**weights(), "model.layers.0.self_attn.masked_bias": np.zeros(1, np.bool_)}
    resolve(write_folder(tmp_path, tensors))


OTHERS = (
    "consolidated.safetensors",
    "consolidated-00001-of-00002.safetensors",
    "adapter_model.safetensors",
    "._model.safetensors",
    ".model.safetensors.icloud.safetensors",
    "model-00001-of-00002.safetensors",
    "training_state.safetensors",
)


@pytest.mark.parametrize("other", OTHERS)
def test_files_beside_model_safetensors_do_not_matter(
    other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(tmp_path)
    if other.startswith("."):
        (folder / other).write_bytes(b"\0\5\26\7")
    else:
        save_file({"layers.0.attention.wq.weight": np.zeros((16, 16), np.float32)}, folder / other)
    resolve(folder)
    assert (other in caplog.text) == (not other.startswith("."))


@pytest.mark.parametrize("other", OTHERS[:5])
def test_files_beside_shards_do_not_matter(other: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    names = sorted(weights())
    (folder / "model.safetensors").unlink()
    for number, held in ((1, names[::2]), (2, names[1::2])):
        save_file({name: weights()[name] for name in held}, folder / f"model-0000{number}-of-00002.safetensors")
    (folder / other).write_bytes(b"\0\5\26\7")
    resolve(folder)
    index = {name: f"model-0000{1 + position % 2}-of-00002.safetensors" for position, name in enumerate(names)}
    write_json(folder, "model.safetensors.index.json", {"weight_map": index})
    resolve(folder)


@pytest.mark.parametrize("other", OTHERS[:4])
def test_a_folder_of_other_files_alone_says_what_it_found(other: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / other)
    with pytest.raises(ModelError, match=rf"no .*weights.*{other}" if not other.startswith(".") else "no .*weights"):
        resolve(folder)


def test_an_adapter_without_its_base_model_is_called_that(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(ModelError, match=r"adapter.*merge"):
        resolve(folder)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({NAME: weights()[NAME]}, folder / "b.safetensors")
    with pytest.raises(ModelError, match=rf"{NAME} is in a\.safetensors and in b\.safetensors"):
        resolve(folder)


def test_the_whole_file_goes_before_an_index_that_was_left_behind(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    write_json(folder, "model.safetensors.index.json", {"weight_map": {NAME: "model-00001-of-00002.safetensors"}})
    resolve(folder)


@pytest.mark.parametrize("damage", [[], {}, {"dtype": "F32"}, {"dtype": 3, "shape": [1], "data_offsets": [0, 4]}, 7])
def test_a_damaged_header_is_refused_in_one_line(damage: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    encoded = json.dumps({NAME: damage}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(4))
    with pytest.raises(ModelError, match=r"model\.safetensors has a damaged header") as caught:
        resolve(folder)
    assert "\n" not in str(caught.value)


def test_a_git_lfs_pointer_is_called_that(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match=r"model\.safetensors is a Git LFS pointer"):
        resolve(folder)
