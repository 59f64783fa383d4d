"""What a model's config.json says of how its linears are quantised; what is not supported is refused by its field.

A method, as tools name it, is one entry of METHODS.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from quartet.checkpoint.quantization import BLOCK, GGUF_FORMS, MX, NIBBLES, ON_LOADING, Quantization, Strategy
from quartet.checkpoint.text_part import text_name
from quartet.wire.errors import ConfigError, ModelError

_NEAREST = "take an FP8 checkpoint of the model, or the unquantised one, with --quantization fp8 if it shall be small"
_ATTENTION_SCALES = ("k_scale", "v_scale")


def quantization_of(config: Mapping[str, Any], requested: str) -> Quantization | None:
    """Return the format in which the worker holds the linears of a model.

    Args:
        config: its config.json.
        requested: --quantization; auto is what the checkpoint says.

    Raises ModelError for an unsupported checkpoint, ConfigError if the checkpoint contradicts the request."""
    found = checkpoint_quantization(config)
    if requested == "auto":
        return found
    made = ON_LOADING[requested]
    if found is not None and found.kind != made.kind:
        raise ConfigError(f"--quantization {requested}: the checkpoint is quantised already ({found.method}): drop it")
    return found or made


def checkpoint_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """Return what a parsed config.json says of its linears, None if they are plain numbers.

    Raises ModelError in one line for a method or an option that is not supported."""
    if config.get("quantization"):
        raise ModelError(f"quantization in config.json is a format of MLX, which is not supported; {_NEAREST}")
    field = "quantization_config" if config.get("quantization_config") else "compression_config"
    values = config.get(field)
    if not values:
        return None
    if not isinstance(values, dict):
        raise ModelError(f"{field} in config.json is no object (found {values!r:.80})")
    method = str(values.get("quant_method") or ("compressed-tensors" if "config_groups" in values else "(none)"))
    if method not in METHODS:
        raise ModelError(f"{field}.quant_method {method} is not supported; only {', '.join(METHODS)} are: {_NEAREST}")
    return METHODS[method](_Fields(field, values))


class _Fields:
    """The fields of a quantization_config; each call refuses what it does not find as expected."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self.name, self._values = name, values

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def only(self, key: str, *allowed: Any) -> Any:
        """Return a value that must be one of `allowed`."""
        value = self._values.get(key)
        if value not in allowed:
            named = " or ".join(str(one) for one in allowed if one is not None)
            raise ModelError(
                f"{self.name}.{key} {value} is not supported; only {named or 'its absence'} is: {_NEAREST}"
            )
        return value

    def names(self, *keys: str) -> tuple[str, ...]:
        """Return the list of names of the first of `keys` that is there, as the text part's tensors are called."""
        for key in keys:
            found = self._values.get(key)
            if found is not None:
                if not isinstance(found, list) or not all(map(_is_pattern, found)):
                    raise ModelError(f"{self.name}.{key} in config.json is no list of names (found {found!r:.80})")
                return tuple(filter(None, (one if one.startswith("re:") else text_name(one) for one in found)))
        return ()

    def part(self, key: str) -> "_Fields":
        """Return the fields of an object inside."""
        found = self._values.get(key)
        if not isinstance(found, dict):
            raise ModelError(f"{self.name}.{key} in config.json is no object (found {found!r:.80})")
        return _Fields(f"{self.name}.{key}", found)

    def group_size(self) -> int:
        """Return the columns that share a scale, 0 for all of them."""
        size = self._values.get("group_size")
        if size == -1:
            return 0
        return int(self.only("group_size", *(NIBBLES << power for power in range(6))))

    def block(self, key: str) -> None:
        """Check the size of a block, which has BLOCK rows and columns."""
        self.only(key, [BLOCK, BLOCK], f"{BLOCK}x{BLOCK}")


_GROUPS: dict[Strategy, tuple[int, int]] = {"tensor": (0, 0), "channel": (1, 0), "block": (BLOCK, BLOCK)}


def _read_compressed_tensors(fields: _Fields) -> Quantization:
    """The format of llm-compressor; one group of linears with one scheme."""
    groups = fields.part("config_groups")
    names = list(fields.get("config_groups"))
    if len(names) != 1:
        raise ModelError(f"{groups.name} in config.json has {len(names)} groups, one is supported: {_NEAREST}")
    group = groups.part(names[0])
    if fields.get("sparsity_config"):
        fields.part("sparsity_config").only("format", None, "dense")
    weights = group.part("weights")
    targets = tuple(name for name in group.names("targets") if name != "Linear")
    if weights.get("type") == "int":
        return _read_packed(fields, weights, targets)
    fields.only("format", None, "float-quantized", "naive-quantized")
    weights.only("type", "float", "int")
    weights.only("num_bits", 8)
    weights.only("symmetric", None, True)
    strategy: Strategy = weights.only("strategy", *_GROUPS)
    if strategy == "block":
        weights.block("block_structure")
    return Quantization(
        "compressed-tensors",
        "fp8",
        "fp8",
        _GROUPS[strategy],
        unused=("input_scale", *_ATTENTION_SCALES),
        ignored=fields.names("ignore"),
        targets=targets,
    )


def _read_fp8(fields: _Fields) -> Quantization:
    """Blocks as in the checkpoints of DeepSeek and Qwen, or one scale a tensor as AutoFP8 makes them."""
    fields.only("fmt", None, "e4m3", "float8_e4m3fn")
    fields.only("activation_scheme", None, "dynamic", "static")
    ignored = fields.names("modules_to_not_convert", "ignored_layers")
    unused = ("input_scale", "activation_scale", *_ATTENTION_SCALES)
    if fields.get("weight_block_size") is None:
        return Quantization("fp8", "fp8", "fp8", _GROUPS["tensor"], unused=unused, ignored=ignored)
    fields.block("weight_block_size")
    return Quantization("fp8", "fp8", "fp8", _GROUPS["block"], "weight_scale_inv", unused, ignored)


def _read_fbgemm_fp8(fields: _Fields) -> Quantization:
    """One scale a row, as in Meta's checkpoints; the bound of activation scales is for another kernel than ours."""
    ignored = fields.names("modules_to_not_convert")
    return Quantization("fbgemm_fp8", "fp8", "fp8", _GROUPS["channel"], unused=("input_scale_ub",), ignored=ignored)


def _read_packed(fields: _Fields, weights: _Fields, targets: tuple[str, ...]) -> Quantization:
    """Integers of compressed-tensors, eight in an int32; activations stay as they are."""
    fields.only("format", "pack-quantized")
    weights.only("num_bits", 4)
    is_symmetric = weights.only("symmetric", None, True, False) is not False
    # Columns in another order within the groups, as "group" has them, would need the activations in that order.
    weights.only("actorder", None, False, "weight", "static")
    strategy = weights.only("strategy", "group", "channel")
    return Quantization(
        "compressed-tensors",
        "int4",
        "packed",
        (1, weights.group_size() if strategy == "group" else 0),
        unused=("weight_shape", *_ATTENTION_SCALES),
        ignored=fields.names("ignore"),
        targets=targets,
        has_zeros=not is_symmetric,
    )


def _read_awq(fields: _Fields) -> Quantization:
    """Files of AutoAWQ and llm-awq's descendants, in the packing for GEMM."""
    fields.only("bits", 4)
    fields.only("version", None, "gemm", "GEMM")
    fields.only("zero_point", None, True)
    ignored = ("lm_head", *fields.names("modules_to_not_convert"))
    return Quantization("awq", "int4", "awq", (1, fields.group_size()), unused=("g_idx",), ignored=ignored)


def _read_gptq(fields: _Fields) -> Quantization:
    """Files of GPTQModel and AutoGPTQ whose columns are in order; version 2 stores zero points as they are."""
    fields.only("bits", 4)
    fields.only("desc_act", None, False)
    fields.only("lm_head", None, False)
    version = fields.only("checkpoint_format", None, "", "gptq", "gptq_v2")
    ignored = ("lm_head", *fields.names("modules_to_not_convert"))
    return Quantization(
        "gptq_v2" if version == "gptq_v2" else "gptq",
        "int4",
        "gptq",
        (1, fields.group_size()),
        unused=("g_idx",),
        ignored=ignored,
    )


def _read_mxfp4(fields: _Fields) -> Quantization:
    """Experts of gpt-oss; everything else is a plain number, whether the list names it or not."""
    ignored = (one if one.startswith("re:") else _expression(one) for one in fields.names("modules_to_not_convert"))
    return Quantization("mxfp4", "mxfp4", "mxfp4", (1, MX), ignored=tuple(ignored))


def _expression(name: str) -> str:
    """Return the expression of a name, or of a leading part of one, in which * stands for anything."""
    return "re:" + re.escape(name).replace(r"\*", ".*") + r"(\.|$)"


def _read_gguf(fields: _Fields) -> Quantization:
    """The linears of a converted GGUF file, each with its type there."""
    types = fields.get("types")
    if not isinstance(types, dict) or not types or any(kind not in GGUF_FORMS for kind in types.values()):
        raise ModelError(f"{fields.name}.types in config.json is not what the conversion of a GGUF file writes")
    forms = tuple((name, GGUF_FORMS[kind]) for name, kind in types.items())
    return Quantization("gguf", "int4", "grouped", (1, NIBBLES), forms=forms)


METHODS: dict[str, Callable[[_Fields], Quantization]] = {
    "compressed-tensors": _read_compressed_tensors,
    "fp8": _read_fp8,
    "fbgemm_fp8": _read_fbgemm_fp8,
    "awq": _read_awq,
    "gptq": _read_gptq,
    "gguf": _read_gguf,
    "mxfp4": _read_mxfp4,
}


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and re.compile(value.removeprefix("re:")) is not None
    except re.error:
        return not value.startswith("re:")
