"""Mixtures of experts: what config.json says of them, and the tensors that a checkpoint has for them.

The router scores all experts, a token takes the best of them, and their outputs are added up by weight. A shared expert
is a gated MLP beside them that every token takes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from quartet.checkpoint.config_fields import size, switch
from quartet.wire.errors import ModelError

SHARED_EXPERT, SHARED_GATE = "mlp.shared_expert.", "mlp.shared_expert_gate"
COUNTS = ("num_experts", "num_local_experts")
"""Fields with the number of experts: the same in all families, of which each uses one."""
_MOST_EXPERTS = 1 << 17
"""In all layers: far above any model, and few enough to list their tensors."""


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
    )


def _layers(config: Mapping[str, Any], honoured: Collection[str]) -> frozenset[int]:
    """Return every decoder_sparse_step-th layer that mlp_only_layers does not name."""
    layers = size(config, "num_hidden_layers")
    if "mlp_only_layers" not in honoured:
        return frozenset(range(layers))
    dense, step = config.get("mlp_only_layers") or [], size(config, "decoder_sparse_step", 1)
    if not isinstance(dense, list) or any(type(layer) is not int for layer in dense):
        raise ModelError(f"mlp_only_layers in config.json is no list of layers (found {dense!r:.80})")
    return frozenset(layer for layer in range(step - 1, layers, step) if layer not in dense)


def expert_shapes(spec: ExpertsSpec, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of the tensors of one layer's experts, after `model.layers.N.`."""
    names = spec.names
    shapes: dict[str, tuple[int, ...]] = {f"{names.router}.weight": (spec.count, hidden)}
    for expert in range(spec.count):
        prefix = f"{names.experts}.{expert}."
        shapes.update({f"{prefix}{name}.weight": (spec.width, hidden) for name in (names.gate, names.up)})
        shapes[f"{prefix}{names.down}.weight"] = (hidden, spec.width)
    if spec.shared_width:
        shapes.update({f"{SHARED_EXPERT}{name}_proj.weight": (spec.shared_width, hidden) for name in ("gate", "up")})
        shapes[f"{SHARED_EXPERT}down_proj.weight"] = (hidden, spec.shared_width)
        shapes[f"{SHARED_GATE}.weight"] = (1, hidden)
    return shapes
