"""Reads a checkpoint of safetensors, one layer at a time, into the fused tensors of one rank."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quartet.checkpoint.attention_kinds import AttentionKind
from quartet.checkpoint.experts import SHARED_EXPERT, SHARED_GATE, ExpertsSpec
from quartet.checkpoint.spec import ModelSpec, expected_shapes, norm_names
from worker_proc.weights.head_rows import Rows, heads_in_turns, ordered, projections, qkv_sizes
from worker_proc.weights.quantized import QuantizedWeight, Weight, dequantized, joined, quantized, stored_weight
from worker_proc.weights.staging import PinnedStaging
from worker_proc.weights.tensor_files import TensorFiles
from worker_proc.weights.tensors import (
    PROJECTION_ROWS,
    ExpertTensors,
    LayerTensors,
    LinearTensors,
    ModelTensors,
    Shard,
)


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
        self._shapes = expected_shapes(spec)
        self._files = ExitStack()
        tensors = TensorFiles(folder, spec, shard, self._files)
        self._view, self._rows = tensors.view, tensors.rows
        self._staging = None
        if device.type == "cuda":
            self._staging = PinnedStaging(device)
            self._files.callback(self._staging.close)

    def load(self) -> ModelTensors:
        """Return the model's tensors; layers are read as the caller iterates over them, then the files are closed."""
        return ModelTensors(
            embedding=self._whole("model.embed_tokens"),
            layers=self._layers(),
            final_norm=self._norm("model.norm.weight"),
            lm_head=None if self._spec.is_tied else self._whole("lm_head"),
        )

    def _layers(self) -> Iterator[LayerTensors]:
        with self._files:
            for i in range(self._spec.num_layers):
                yield self._layer(i)

    def _layer(self, index: int) -> LayerTensors:
        spec, prefix = self._spec, f"model.layers.{index}."
        experts, is_linear = spec.experts_of(index), index in spec.linear_layers
        mlp = prefix + ("mlp." if experts is None else SHARED_EXPERT)
        has_mlp = spec.mlp_width(index) > 0
        norms: dict[str, Any] = {
            field: self._norm(f"{prefix}{name}.weight") for field, name in norm_names(spec).items()
        }
        return LayerTensors(
            **norms,
            **(self._linear_attention(prefix) if is_linear else self._attention(prefix, spec.attention[index])),
            gate_up=self._gate_up(mlp) if has_mlp else None,
            down=self._whole(mlp + "down_proj", split=1) if has_mlp else None,
            experts=None if experts is None else self._experts(prefix, experts),
            scale=self._read(prefix + "layer_scalar") if spec.has_layer_scales else None,
        )

    def _attention(self, layer: str, kind: AttentionKind) -> dict[str, Any]:
        spec, prefix = self._spec, layer + "self_attn."
        return {
            "qkv": self._qkv(prefix, kind),
            "qkv_bias": self._qkv_bias(prefix, kind) if spec.has_qkv_bias else None,
            "q_norm": self._qk_norm(prefix + "q_norm.weight", kind),
            "k_norm": self._qk_norm(prefix + "k_norm.weight", kind),
            "output": self._whole(prefix + "o_proj", split=1),
            "output_bias": self._output_bias(prefix) if spec.has_output_bias else None,
            "sinks": self._read(prefix + "sinks", split=0) if spec.has_sinks else None,
        }

    def _linear_attention(self, layer: str) -> dict[str, Any]:
        prefix = layer + "linear_attn."
        parts = [self._linear(f"{prefix}in_proj_{name}") for name in ("qkv", "z", "b", "a")]
        padding = torch.zeros((-sum(part.shape[0] for part in parts) % PROJECTION_ROWS, self._spec.hidden_size))
        conv = self._view(prefix + "conv1d.weight").squeeze(1).t().contiguous().to(self._device, self._dtype)
        decay = torch.stack((self._view(prefix + "A_log").float().exp(), self._view(prefix + "dt_bias").float()))
        return {
            "qkv": self._packed(prefix + "in_proj_qkv", [*parts, padding]),
            **dict.fromkeys(("qkv_bias", "q_norm", "k_norm", "output_bias")),
            "output": self._whole(prefix + "out_proj"),
            "linear": LinearTensors(conv, decay.to(self._device), self._read(prefix + "norm.weight")),
        }

    def _experts(self, prefix: str, experts: ExpertsSpec) -> ExpertTensors:
        if experts.names.is_stacked:
            return self._stacked_experts(prefix, experts)
        names, width, hidden = experts.names, experts.width // self._shard.size, self._spec.hidden_size
        gate_up, down = self._empty(experts.count, width, 2, hidden), self._empty(experts.count, hidden, width)
        for expert in range(experts.count):
            own = f"{prefix}{names.experts}.{expert}."
            for half, name in enumerate((names.gate, names.up)):
                # Staged copies need a contiguous target, and these rows are every second one.
                gate_up[expert, :, half].copy_(self._read(f"{own}{name}.weight", split=0))
            self._copy(down[expert], self._view(f"{own}{names.down}.weight", split=1))
            self._progress()
        return ExpertTensors(
            router=self._read(f"{prefix}{names.router}.weight"),
            gate_up=gate_up.view(experts.count, 2 * width, hidden),
            down=down,
            shared_gate=self._read(f"{prefix}{SHARED_GATE}.weight") if experts.shared_width else None,
        )

    def _stacked_experts(self, prefix: str, experts: ExpertsSpec) -> ExpertTensors:
        names = experts.names
        gate_up, down = (f"{prefix}{names.experts}.{name}" for name in (names.gate, names.down))
        return ExpertTensors(
            router=self._read(f"{prefix}{names.router}.weight"),
            gate_up=self._stack(gate_up, split=0),
            down=self._stack(down, split=1),
            shared_gate=None,
            router_bias=self._read(f"{prefix}{names.router}.bias"),
            gate_up_bias=self._read(f"{gate_up}_bias", split=1),
            down_bias=self._added_once(self._read(f"{down}_bias")),
        )

    def _stack(self, name: str, split: int) -> Weight:
        """Return the matrices [E, out, in] of a stack, which holds plain ones as [E, in, out]; of each this rank's part
        of the rows (0) or columns (1)."""
        count, columns, rows = shape = self._shapes[name]
        method = self._spec.quantization
        if method is not None and method.covers(name, shape):
            stored = {ending: self._view(f"{name}{ending}") for ending in method.stored(name, shape)}
            own = [{ending: tensor[expert] for ending, tensor in stored.items()} for expert in range(count)]
            parts = [self._part(stored_weight(method, (rows, columns), one), split) for one in own]
            whole = joined(parts, self._moved)
            assert whole is not None
            return whole
        held = self._view(name, split=2 - split)
        stack = self._empty(count, held.shape[2], held.shape[1])
        for expert in range(count):
            self._copy(stack[expert], held[expert].t().contiguous())
            self._progress()
        return stack

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def _qkv(self, prefix: str, kind: AttentionKind) -> Weight:
        if self._spec.is_fused:
            q, k, *v = self._parts(f"{prefix}qkv_proj", qkv_sizes(kind))
        else:
            q, k, *v = (self._linear(f"{prefix}{n}_proj", split=0) for n in projections(kind))
        return self._packed(f"{prefix}q_proj", self._qkv_rows(q, k, v, kind))

    def _qkv_rows(self, q: Rows, k: Rows, v: list[Rows], kind: AttentionKind) -> list[Rows]:
        """Return q, k and v as they are packed; with gates q holds those of each head after the head's own rows."""
        q, *gates = heads_in_turns(q, kind.heads.head_dim) if self._spec.is_gated else (q,)
        return [ordered(q, kind), ordered(k, kind), *v, *gates]

    def _qkv_bias(self, prefix: str, kind: AttentionKind) -> Tensor:
        if self._spec.is_fused:
            q, k, *v = self._rows(f"{prefix}qkv_proj.bias", qkv_sizes(kind))
        else:
            q, k, *v = (self._view(f"{prefix}{n}_proj.bias", split=0) for n in projections(kind))
        return self._fused(self._qkv_rows(q, k, v, kind))

    def _gate_up(self, prefix: str) -> Weight:
        if self._spec.is_fused:
            width = self._spec.intermediate_size
            parts = self._parts(f"{prefix}gate_up_proj", (width, width))
        else:
            parts = [self._linear(f"{prefix}{n}_proj", split=0) for n in ("gate", "up")]
        return self._packed(f"{prefix}gate_proj", parts)

    def _qk_norm(self, name: str, kind: AttentionKind) -> Tensor | None:
        return None if self._spec.qk_norm == "none" else ordered(self._norm(name), kind)

    def _output_bias(self, attention: str) -> Tensor:
        return self._added_once(self._read(attention + "o_proj.bias"))

    def _added_once(self, bias: Tensor) -> Tensor:
        """Return the bias on one rank: the ranks' outputs are summed."""
        return bias if self._shard.rank == 0 else torch.zeros_like(bias)

    def _whole(self, module: str, split: int | None = None) -> Weight:
        """Return a linear on the device, or this rank's part of its rows (0) or columns (1)."""
        return self._packed(module, [self._linear(module, split)])

    def _packed(self, module: str, parts: list[Weight]) -> Weight:
        """Return several linears' rows as one, on the device; `module` is the name of the first."""
        kept = [part for part in parts if isinstance(part, QuantizedWeight)]
        whole = joined(kept, self._moved) if len(kept) == len(parts) else None
        if whole is None:
            tensor = self._fused([dequantized(part, self._dtype) for part in parts])
            method = self._spec.quantization
            if method is None or not method.is_made_on_loading or not self._covers(module, tensor.shape):
                return tensor
            return quantized(tensor, method)
        return whole

    def _covers(self, module: str, shape: tuple[int, ...]) -> bool:
        method = self._spec.quantization
        return method is not None and method.covers(f"{module}.weight", shape)

    def _has_codes(self, module: str) -> bool:
        """Return whether the checkpoint holds codes of a linear, rather than plain numbers."""
        method = self._spec.quantization
        is_coded = method is not None and not method.is_made_on_loading
        return is_coded and self._covers(module, self._shapes[f"{module}.weight"])

    def _linear(self, module: str, split: int | None = None) -> Weight:
        """Return a linear as the checkpoint holds it, or this rank's part of its rows (0) or columns (1)."""
        method, shape = self._spec.quantization, self._shapes[f"{module}.weight"]
        if method is None or not self._has_codes(module):
            return self._view(f"{module}.weight", split)
        stored = {ending: self._view(f"{module}.{ending}") for ending in method.stored(f"{module}.weight", shape)}
        return self._part(stored_weight(method, shape, stored), split)

    def _part(self, weight: QuantizedWeight, split: int | None) -> QuantizedWeight:
        """Return this rank's part of the rows (0) or columns (1), or all of it."""
        if split is None or self._shard.size == 1:
            return weight
        span = self._shard.span(weight.shape[split])
        return weight.columns(*span) if split else weight.rows(*span)

    def _parts(self, module: str, sizes: tuple[int, ...]) -> list[Weight]:
        """Return this rank's rows of each of the linears of `sizes` rows that one linear holds one after another."""
        if not self._has_codes(module):
            return [*self._rows(f"{module}.weight", sizes)]
        whole, parts, at = self._linear(module), list[Weight](), 0
        for size in sizes:
            first, end = self._shard.span(size)
            span = at + first, at + end
            parts.append(whole.rows(*span) if isinstance(whole, QuantizedWeight) else whole[slice(*span)])
            at += size
        return parts

    def _fused(self, parts: list[Tensor]) -> Tensor:
        """Return several tensors' rows as one tensor in the model's dtype, each converted directly into it."""
        return self._moved(parts, self._dtype)

    def _moved(self, parts: list[Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """Return several tensors' rows as one tensor on the device, each converted directly into it."""
        rows = sum(part.shape[0] for part in parts)
        fused = torch.empty((rows, *parts[0].shape[1:]), dtype=dtype or parts[0].dtype, device=self._device)
        at = 0
        for part in parts:
            self._copy(fused[at : at + part.shape[0]], part)
            at += part.shape[0]
            self._progress()
        return fused

    def _read(self, name: str, split: int | None = None) -> Tensor:
        view = self._view(name, split)
        tensor = self._empty(*view.shape)
        self._copy(tensor, view)
        self._progress()
        return tensor

    def _norm(self, name: str) -> Tensor:
        """Return what a norm multiplies by."""
        weight = self._read(name)
        return (weight.float() + 1.0).to(self._dtype) if self._spec.has_centred_norms else weight

    def _copy(self, target: Tensor, source: Tensor) -> None:
        if self._staging is None:
            target.copy_(source)
        else:
            self._staging.copy(target, source)
