"""Reads a checkpoint of safetensors, one layer at a time, into the fused tensors of one rank."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quartet.checkpoint.spec import ModelSpec
from quartet.checkpoint.weight_files import check_tensors, find_tensors
from quartet.wire.errors import ModelError
from worker_proc.weights.staging import PinnedStaging
from worker_proc.weights.tensors import LayerTensors, ModelTensors, Shard


class Loader:
    """Tensors of one folder, converted and copied to the device as they are read.

    Args:
        folder: Hugging Face layout.
        spec: the model as described by config.json.
        shard: the part to read.
        dtype: to convert to.
        device: to copy to.
        progress: called per tensor.
    """

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        shard: Shard,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[], None],
    ) -> None:
        self._spec, self._shard, self._dtype, self._device = spec, shard, dtype, device
        self._progress = progress
        self._found = find_tensors(folder)
        check_tensors(self._found, spec)
        self._stack = ExitStack()
        self._staging = None
        if device.type == "cuda":
            self._staging = PinnedStaging(device)
            self._stack.callback(self._staging.close)
        paths = {tensor.path for tensor in self._found.values()}
        try:
            self._files = {path: self._stack.enter_context(safe_open(path, framework="pt")) for path in paths}
        except SafetensorError as error:
            raise ModelError(f"the weights in {folder} cannot be read: {error}") from error

    def load(self) -> ModelTensors:
        """Return the model's tensors; layers are read as the caller iterates over them, then the files are closed."""
        return ModelTensors(
            embedding=self._read("model.embed_tokens.weight"),
            layers=self._layers(),
            final_norm=self._read("model.norm.weight"),
            lm_head=None if self._spec.is_tied else self._read("lm_head.weight"),
        )

    def _layers(self) -> Iterator[LayerTensors]:
        with self._stack:
            for i in range(self._spec.num_layers):
                yield self._layer(f"model.layers.{i}.")

    def _layer(self, prefix: str) -> LayerTensors:
        spec = self._spec
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        names = [attention + f"{n}_proj" for n in "qkv"]
        return LayerTensors(
            input_norm=self._read(prefix + "input_layernorm.weight"),
            qkv=self._fused([name + ".weight" for name in names]),
            qkv_bias=self._fused([name + ".bias" for name in names]) if spec.has_qkv_bias else None,
            q_norm=self._read(attention + "q_norm.weight") if spec.has_qk_norm else None,
            k_norm=self._read(attention + "k_norm.weight") if spec.has_qk_norm else None,
            output=self._read(attention + "o_proj.weight", split=1),
            output_bias=self._output_bias(attention) if spec.has_output_bias else None,
            post_norm=self._read(prefix + "post_attention_layernorm.weight"),
            gate_up=self._fused([mlp + "gate_proj.weight", mlp + "up_proj.weight"]),
            down=self._read(mlp + "down_proj.weight", split=1),
        )

    def _output_bias(self, attention: str) -> Tensor:
        bias = self._read(attention + "o_proj.bias")
        # The ranks' outputs are summed, so only one rank adds the bias.
        return bias if self._shard.rank == 0 else torch.zeros_like(bias)

    def _fused(self, names: list[str]) -> Tensor:
        """Return this rank's rows of several tensors as one, each converted directly into the fused tensor."""
        parts = [self._view(name, split=0) for name in names]
        rows = sum(part.shape[0] for part in parts)
        fused = torch.empty((rows, *parts[0].shape[1:]), dtype=self._dtype, device=self._device)
        at = 0
        for part in parts:
            self._copy(fused[at : at + part.shape[0]], part)
            at += part.shape[0]
            self._progress()
        return fused

    def _read(self, name: str, split: int | None = None) -> Tensor:
        view = self._view(name, split)
        tensor = torch.empty(view.shape, dtype=self._dtype, device=self._device)
        self._copy(tensor, view)
        self._progress()
        return tensor

    def _copy(self, target: Tensor, source: Tensor) -> None:
        if self._staging is None:
            target.copy_(source)
        else:
            self._staging.copy(target, source)

    def _view(self, name: str, split: int | None = None) -> Tensor:
        path, shape, _ = self._found[name]
        try:
            if split is None or self._shard.size == 1:
                tensor: Tensor = self._files[path].get_tensor(name)
                return tensor
            first, end = self._shard.span(shape[split])
            part = self._files[path].get_slice(name)
            view: Tensor = part[first:end] if split == 0 else part[:, first:end]
            return view
        except (SafetensorError, ValueError) as error:
            raise ModelError(f"tensor {name} in {path.name} cannot be read: {error}") from error
