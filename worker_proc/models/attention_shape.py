"""From the spec of a model to the attention of one rank: its heads, and a table of angles for each kind of layers."""

from dataclasses import replace

import torch

from quartet.checkpoint.attention_kinds import Heads
from quartet.checkpoint.spec import ModelSpec
from worker_proc.models.rope import cos_sin_table
from worker_proc.ops.interface import AttentionShape, LayerKind
from worker_proc.weights.tensors import Shard


def attention_shape(
    spec: ModelSpec, shard: Shard, page_size: int, context_length: int, device: torch.device
) -> AttentionShape:
    """Return the attention of one rank, with a table of angles for each rotary embedding on the device."""
    # The surplus row of a sequence that has just reached the context length still looks up its angle.
    ropes = dict.fromkeys((kind.rope, kind.heads.head_dim) for kind in spec.kinds)
    tables = {rope: cos_sin_table(*rope, context_length + 1).to(device) for rope in ropes}
    groups, kinds = spec.page_groups, list[LayerKind]()
    for kind in spec.kinds:
        # Layers with linear attention keep no pages; what kind they have does not matter.
        group = groups.index(kind.window) if kind.window in groups else 0
        table = tables[kind.rope, kind.heads.head_dim]
        kinds.append(LayerKind(heads_of(kind.heads, shard), table, kind.window, group))
    return AttentionShape(page_size, spec.query_scale, tuple(kinds), spec.attention_softcap, spec.has_sinks)


def heads_of(heads: Heads, shard: Shard) -> Heads:
    """Return the heads of a layer that one rank has."""
    own, own_kv = (end - first for first, end in map(shard.span, (heads.num_heads, heads.num_kv_heads)))
    return replace(heads, num_heads=own, num_kv_heads=own_kv)
