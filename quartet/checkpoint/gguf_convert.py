"""Turns a GGUF file into a folder in Hugging Face layout: safetensors that lose nothing, config.json, the tokenizer.

Linears of a type in GGUF_FORMS stay quantised, in parts; others become plain numbers. llama.cpp stores the query and
key rows of llama-like models in another order (it rotates neighbouring pairs, where Hugging Face rotates halves); they
are put back here, so that no one downstream needs to know. Called by the converter process alone, which imports numpy.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from quartet.checkpoint.gguf_architectures import ARCHITECTURES, ROPE_FACTORS, GgufArchitecture
from quartet.checkpoint.gguf_blocks import Parts, divide_blocks
from quartet.checkpoint.gguf_config import hf_config
from quartet.checkpoint.gguf_ends import without_absent_ids
from quartet.checkpoint.gguf_fields import check_tokenizer, recommended_sampling, unknown_keys
from quartet.checkpoint.gguf_reader import TensorInfo, read_header
from quartet.checkpoint.gguf_tokenizer import build_tokenizer, tokenizer_config
from quartet.checkpoint.model_folder import default_sampling
from quartet.checkpoint.quantization import GGUF_FORMS
from quartet.checkpoint.shards import StoredShape, as_stored, write_shards
from quartet.checkpoint.spec import context_limit, parse_spec
from quartet.checkpoint.weight_files import check_shapes
from quartet.wire.errors import ModelError

Rows = npt.NDArray[np.float32]
Tensors = dict[str, TensorInfo]
"""The tensors of the model by their Hugging Face names."""


def convert_gguf(source: Path, folder: Path, report: Callable[[str], None]) -> None:
    """Write the model in `source` into the existing, empty `folder`; `report` takes a line of progress now and then.

    Raises ModelError if the file is damaged or of a kind that is not supported, before anything is written unless the
    tensor data themselves are at fault; OSError if `folder` cannot be written.
    """
    header = read_header(source)
    check_tokenizer(header.metadata)
    header = header._replace(metadata=without_absent_ids(header.metadata))
    data = np.memmap(source, dtype=np.uint8, mode="r")
    factors = header.tensors.get(ROPE_FACTORS)
    config = hf_config(header, None if factors is None else _read_tensor(data, factors).tolist())
    arch = ARCHITECTURES[header.metadata["general.architecture"]]
    tensors = {arch.hf_name(info.name): info for info in header.tensors.values() if info.name != ROPE_FACTORS}
    _check_tensors(tensors, config)
    config["torch_dtype"] = _dtype_of_matrices(tensors)
    kept = {_module(name): info.kind.name for name, info in tensors.items() if _is_kept(info)}
    if kept:
        config["quantization_config"] = {"quant_method": "gguf", "types": kept}
    generation = _generation_config(header.metadata, config)
    tokenizer = build_tokenizer(header.metadata)
    for key in unknown_keys(header.metadata, header.metadata["general.architecture"]):
        report(f"{source.name}: ignored, because not known: {key}")
    report(f"converting {source.name}; later starts skip this")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(folder / "tokenizer_config.json", tokenizer_config(header.metadata, config["max_position_embeddings"]))
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation)
    _write_weights(folder, data, tensors, (arch, config), report)


def unpermute(rows: npt.NDArray[Any], num_heads: int) -> npt.NDArray[Any]:
    """Return `rows` (heads * head size, ...) with each head's neighbouring rotary pairs moved to its two halves."""
    pairs = rows.shape[0] // num_heads // 2
    return rows.reshape(num_heads, pairs, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _check_tensors(tensors: Tensors, config: dict[str, Any]) -> None:
    """Raise ModelError unless the tensors are those of the model that `config` describes, of types that can be read."""
    spec = parse_spec(config, context_limit(config))
    check_shapes({name: info.shape for name, info in tensors.items()}, spec, "its metadata")
    for info in {info.kind: info for info in tensors.values()}.values():
        _dequantise(np.zeros((1, GGML_QUANT_SIZES[info.kind][1]), np.uint8), info)


def _generation_config(metadata: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return the content of generation_config.json; raises ModelError for sampling that no request may have."""
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id") if config[name] is not None}
    sampling = recommended_sampling(metadata)
    # The shortest decimal that is the same float32, e.g. 0.6 for 0.600000024.
    plain = {
        name: float(str(np.float32(value))) if isinstance(value, float) else value for name, value in sampling.items()
    }
    default_sampling(plain)
    return {**ids, **plain}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_tensor(data: npt.NDArray[np.uint8], info: TensorInfo) -> Rows:
    raw = data[info.start : info.start + info.size_bytes]
    return _dequantise(raw.reshape(*info.shape[:-1], -1), info).reshape(info.shape)


def _dequantise(rows: npt.NDArray[np.uint8], info: TensorInfo) -> Rows:
    try:
        return np.asarray(dequantize(rows, info.kind), dtype=np.float32)
    except NotImplementedError as error:
        raise ModelError(f"tensor {info.name!r} is quantised as {info.kind.name}, which is not supported") from error


def _stored_dtype(info: TensorInfo) -> str:
    """Return the smallest dtype in which the tensor's values lose nothing."""
    return {"F16": "float16", "BF16": "bfloat16"}.get(info.kind.name, "float32")


def _dtype_of_matrices(tensors: Tensors) -> str:
    """Return the dtype of all matrices, as config.json names it: float32 if they differ. Norms do not count."""
    found = {_stored_dtype(info) for info in tensors.values() if len(info.shape) > 1}
    return found.pop() if len(found) == 1 else "float32"


def _write_weights(
    folder: Path,
    data: npt.NDArray[np.uint8],
    tensors: Tensors,
    model: tuple[GgufArchitecture, dict[str, Any]],
    report: Callable[[str], None],
) -> None:
    """Write the tensors of a model: of an architecture, with its config.json."""
    arch, config = model
    num_heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    stored = [
        (info, part, shape) for name, info in tensors.items() for part, shape in _stored_shapes(name, info).items()
    ]

    @lru_cache(maxsize=1)
    def parts(info: TensorInfo) -> Parts:
        found, kind = _parts(data, info), info.name.split(".")[-2]
        if arch.is_permuted and kind in num_heads:
            return {name: unpermute(rows, num_heads[kind]) for name, rows in found.items()}
        if arch.has_added_one and kind.endswith("norm"):
            return {name: rows - 1.0 for name, rows in found.items()}
        return found

    def load(index: int) -> npt.NDArray[Any]:
        if index % 64 == 0:
            report(f"converting tensor {index} of {len(stored)}")
        info, part, shape = stored[index]
        return as_stored(parts(info)[part], shape.dtype)

    write_shards(folder, [shape for _, _, shape in stored], load)


def _is_kept(info: TensorInfo) -> bool:
    """Return whether a tensor stays quantised."""
    return info.kind.name in GGUF_FORMS and len(info.shape) == 2


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _stored_shapes(name: str, info: TensorInfo) -> dict[str, StoredShape]:
    """Return what is stored of a tensor of that Hugging Face name: a weight, or the parts of a quantised one."""
    if not _is_kept(info):
        return {"weight": StoredShape(name, info.shape, _stored_dtype(info))}
    sample = divide_blocks(np.zeros((1, info.size_bytes // info.shape[0]), np.uint8), info.kind.name)
    return {
        part: StoredShape(f"{_module(name)}.{part}", (info.shape[0], numbers.shape[1]), str(numbers.dtype))
        for part, numbers in sample.items()
    }


def _parts(data: npt.NDArray[np.uint8], info: TensorInfo) -> Parts:
    if not _is_kept(info):
        return {"weight": _read_tensor(data, info)}
    return divide_blocks(data[info.start : info.start + info.size_bytes].reshape(info.shape[0], -1), info.kind.name)
