"""Mixtures of experts: what config.json says of them, and the tensors that a checkpoint has for them.

The router scores all experts, a token takes the best of them, and their outputs are added up by weight. A shared expert
is a gated MLP beside them that every token takes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from quartet.checkpoint.config_fields import number, size, switch
from quartet.checkpoint.quantization import Quantization
from quartet.wire.errors import ModelError

SHARED_EXPERT, SHARED_GATE = "mlp.shared_expert.", "mlp.shared_expert_gate"
COUNTS = ("num_experts", "num_local_experts")
"""Fields with the number of experts: the same in all families, of which each uses one."""
_MOST_EXPERTS = 1 << 17
"""In all layers: far above any model, and few enough to list their tensors."""


class Gating(NamedTuple):
    """How a number of gate and one of up become one: g * sigmoid(factor * g) * (u + offset), with g at most `limit` and
    u between -limit and limit if there is one. As it is, the product of SiLU and up."""

    factor: float = 1.0
    limit: float = 0.0
    offset: float = 0.0


SILU = Gating()


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What a family calls the parts of its experts, in config.json and, after `model.layers.N.`, in a checkpoint."""

    width: str = "moe_intermediate_size"
    normalised: str = "norm_topk_prob"
    """The field that says whether the weights of the chosen experts add up to one; empty if they always do."""
    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    shared_width: str = ""
    """The field with the width of the shared expert; empty if there is none."""
    is_stacked: bool = False
    """All experts of a layer are in two tensors, `gate` [E, hidden, 2 I] with columns of gate and up in turn and `down`
    [E, I, hidden], each with biases, as the router is; gate and up are limited by swiglu_limit."""


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """The experts of the layers `layers`; the others have a dense MLP.

    A token takes `top_k` of `count` experts. Their weights are the softmax of the router's scores of all experts; with
    `is_normalised` they are divided by their sum, which is the same as a softmax of the chosen scores."""

    names: ExpertNames
    count: int
    top_k: int
    width: int
    is_normalised: bool
    layers: frozenset[int]
    has_dense_layers: bool
    shared_width: int = 0
    gating: Gating = SILU

    @property
    def has_biases(self) -> bool:
        """Whether router and experts have biases."""
        return self.names.is_stacked

    @property
    def active_width(self) -> int:
        """How wide an MLP with as many weights as one token uses would be."""
        return self.top_k * self.width + self.shared_width


def experts_spec(config: Mapping[str, Any], names: ExpertNames, honoured: Collection[str]) -> ExpertsSpec:
    """Return the experts that a parsed config.json describes. `honoured` may name mlp_only_layers and
    decoder_sparse_step. Raises ModelError for values that are missing or contradict one another."""
    found = [name for name in COUNTS if config.get(name) is not None]
    count, top_k = size(config, *found[:1] or COUNTS[:1]), size(config, "num_experts_per_tok")
    if count * size(config, "num_hidden_layers") > _MOST_EXPERTS:
        raise ModelError(f"{count} experts in each of {config['num_hidden_layers']} layers are more than a model has")
    if top_k > count:
        raise ModelError(f"num_experts_per_tok {top_k} in config.json is more than the {count} experts")
    layers = _layers(config, honoured)
    return ExpertsSpec(
        names=names,
        count=count,
        top_k=top_k,
        width=size(config, names.width),
        is_normalised=not names.normalised or switch(config, names.normalised),
        layers=layers,
        has_dense_layers=len(layers) < size(config, "num_hidden_layers"),
        shared_width=size(config, names.shared_width) if names.shared_width else 0,
        gating=_limited_gating(config) if names.is_stacked else SILU,
    )


def _limited_gating(config: Mapping[str, Any]) -> Gating:
    return Gating(number(config, "swiglu_alpha"), number(config, "swiglu_limit"), 1.0)


def _layers(config: Mapping[str, Any], honoured: Collection[str]) -> frozenset[int]:
    """Return every decoder_sparse_step-th layer that mlp_only_layers does not name."""
    layers = size(config, "num_hidden_layers")
    if "mlp_only_layers" not in honoured:
        return frozenset(range(layers))
    dense, step = config.get("mlp_only_layers") or [], size(config, "decoder_sparse_step", 1)
    if not isinstance(dense, list) or any(type(layer) is not int for layer in dense):
        raise ModelError(f"mlp_only_layers in config.json is no list of layers (found {dense!r:.80})")
    return frozenset(layer for layer in range(step - 1, layers, step) if layer not in dense)


def check_quantised(experts: ExpertsSpec | None, quantization: Quantization | None) -> None:
    """Raise ModelError for weights in a format that is not served with these experts, or without any."""
    is_mxfp4 = quantization is not None and quantization.layout == "mxfp4"
    if experts is None and is_mxfp4:
        raise ModelError("quant_method mxfp4 is for models with experts, such as gpt-oss; take this one in bfloat16")
    if experts is not None and quantization is not None and not (is_mxfp4 and experts.names.is_stacked):
        works = "in MXFP4 or bfloat16" if experts.names.is_stacked else "in bfloat16"
        raise ModelError(f"experts with quantised weights ({quantization.method}) are not supported; take them {works}")


def expert_shapes(spec: ExpertsSpec, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of the tensors of one layer's experts, after `model.layers.N.`."""
    names = spec.names
    shapes: dict[str, tuple[int, ...]] = {f"{names.router}.weight": (spec.count, hidden)}
    if names.is_stacked:
        return shapes | _stacked_shapes(spec, hidden)
    for expert in range(spec.count):
        prefix = f"{names.experts}.{expert}."
        shapes.update({f"{prefix}{name}.weight": (spec.width, hidden) for name in (names.gate, names.up)})
        shapes[f"{prefix}{names.down}.weight"] = (hidden, spec.width)
    if spec.shared_width:
        shapes.update({f"{SHARED_EXPERT}{name}_proj.weight": (spec.shared_width, hidden) for name in ("gate", "up")})
        shapes[f"{SHARED_EXPERT}down_proj.weight"] = (hidden, spec.shared_width)
        shapes[f"{SHARED_GATE}.weight"] = (1, hidden)
    return shapes


def _stacked_shapes(spec: ExpertsSpec, hidden: int) -> dict[str, tuple[int, ...]]:
    gate_up, down = f"{spec.names.experts}.{spec.names.gate}", f"{spec.names.experts}.{spec.names.down}"
    return {
        f"{spec.names.router}.bias": (spec.count,),
        gate_up: (spec.count, hidden, 2 * spec.width),
        f"{gate_up}_bias": (spec.count, 2 * spec.width),
        down: (spec.count, spec.width, hidden),
        f"{down}_bias": (spec.count, hidden),
    }
