"""Reads a checkpoint of safetensors, one layer at a time, into the fused tensors of one rank."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quartet.checkpoint.spec import ModelSpec, norm_names
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
        attention_norm, mlp_norm = (self._read(f"{prefix}{name}.weight") for name in norm_names(spec))
        return LayerTensors(
            attention_norm=attention_norm,
            qkv=self._qkv(attention, "weight"),
            qkv_bias=self._qkv(attention, "bias") if spec.has_qkv_bias else None,
            q_norm=self._qk_norm(attention + "q_norm.weight"),
            k_norm=self._qk_norm(attention + "k_norm.weight"),
            output=self._read(attention + "o_proj.weight", split=1),
            output_bias=self._output_bias(attention) if spec.has_output_bias else None,
            mlp_norm=mlp_norm,
            gate_up=self._gate_up(mlp),
            down=self._read(mlp + "down_proj.weight", split=1),
        )

    def _qkv(self, prefix: str, kind: str) -> Tensor:
        spec = self._spec
        if spec.is_fused:
            q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
            q, k, v = self._rows(f"{prefix}qkv_proj.{kind}", (q_size, kv_size, kv_size))
        else:
            q, k, v = (self._view(f"{prefix}{n}_proj.{kind}", split=0) for n in "qkv")
        return self._fused([self._ordered(q), self._ordered(k), v])

    def _gate_up(self, prefix: str) -> Tensor:
        if self._spec.is_fused:
            width = self._spec.intermediate_size
            return self._fused(self._rows(f"{prefix}gate_up_proj.weight", (width, width)))
        return self._fused([self._view(f"{prefix}{n}_proj.weight", split=0) for n in ("gate", "up")])

    def _qk_norm(self, name: str) -> Tensor | None:
        return None if self._spec.qk_norm == "none" else self._ordered(self._read(name))

    def _ordered(self, tensor: Tensor) -> Tensor:
        """Return rows of whole heads with each head's dimensions in the order in which they are rotated."""
        head_dim = self._spec.head_dim
        order = self._spec.rope.head_order(head_dim)
        if order is None:
            return tensor
        return tensor.view(-1, head_dim, *tensor.shape[1:])[:, order].reshape(tensor.shape)

    def _output_bias(self, attention: str) -> Tensor:
        bias = self._read(attention + "o_proj.bias")
        # The ranks' outputs are summed, so only one rank adds the bias.
        return bias if self._shard.rank == 0 else torch.zeros_like(bias)

    def _fused(self, parts: list[Tensor]) -> Tensor:
        """Return several tensors' rows as one tensor, each converted directly into it."""
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

    def _rows(self, name: str, sizes: tuple[int, ...]) -> list[Tensor]:
        """Return this rank's rows of each of the tensors of `sizes` rows that `name` holds one after another."""
        whole = self._view(name)
        parts = whole.split(sizes)
        return [part[slice(*self._shard.span(len(part)))] for part in parts]

    def _view(self, name: str, split: int | None = None) -> Tensor:
        path, stored, shape, _ = self._found[name]
        try:
            if split is None or self._shard.size == 1:
                tensor: Tensor = self._files[path].get_tensor(stored)
                return tensor
            first, end = self._shard.span(shape[split])
            part = self._files[path].get_slice(stored)
            view: Tensor = part[first:end] if split == 0 else part[:, first:end]
            return view
        except (SafetensorError, ValueError) as error:
            raise ModelError(f"tensor {name} in {path.name} cannot be read: {error}") from error
