"""From the spec of a model to the attention of one rank: its heads, and a table of angles for each kind of layers."""

import torch

from quartet.checkpoint.spec import ModelSpec
from worker_proc.models.rope import cos_sin_table
from worker_proc.ops.interface import AttentionShape, LayerKind
from worker_proc.weights.tensors import Shard


def attention_shape(
    spec: ModelSpec, shard: Shard, page_size: int, context_length: int, device: torch.device
) -> AttentionShape:
    """Return the attention of one rank, with a table of angles for each rotary embedding on the device."""
    # The surplus row of a sequence that has just reached the context length still looks up its angle.
    ropes = dict.fromkeys(kind.rope for kind in spec.kinds)
    tables = {rope: cos_sin_table(rope, spec.head_dim, context_length + 1).to(device) for rope in ropes}
    heads, kv_heads = (end - first for first, end in map(shard.span, (spec.num_heads, spec.num_kv_heads)))
    groups = spec.page_groups
    # Layers with linear attention keep no pages; what kind they have does not matter.
    kinds = tuple(
        LayerKind(tables[kind.rope], kind.window, groups.index(kind.window) if kind.window in groups else 0)
        for kind in spec.kinds
    )
    dims = heads, kv_heads, spec.head_dim, page_size
    return AttentionShape(*dims, spec.query_scale, kinds, spec.attention_softcap, spec.has_sinks)
