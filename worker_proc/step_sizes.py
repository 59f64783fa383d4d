"""How many tokens a step has in a graph, and beside decode rows, by the size of a rank's part of the model."""

from quartet.checkpoint.spec import ModelSpec
from worker_proc.prefill_graph_runner import TOKEN_SIZES
from worker_proc.weights.tensors import Shard

# Measured on an H100 and its host: time to launch a layer's kernels, and FLOP/s of linears over a few hundred tokens.
_LAUNCH_S_PER_LAYER = 1e-3
_FLOPS = 5e14
_MIN_GRAPH_TOKENS, _MAX_GRAPH_TOKENS = 128, 4096
# How long prompts may pause the decode rows of their step, by _FLOPS.
_MIXED_STEP_S = 0.04
_MIN_MIXED_TOKENS = 512


def max_graph_tokens(spec: ModelSpec, shard: Shard) -> int:
    """Return about how many prefill tokens take the device as long as the host takes to launch a step's kernels."""
    tokens = _tokens_in(spec.num_layers * _LAUNCH_S_PER_LAYER, spec, shard)
    # Beyond, launches of a step with decode rows would still be late behind a short decode step.
    return max(_MIN_GRAPH_TOKENS, min(_MAX_GRAPH_TOKENS, max(tokens, mixed_tokens(spec, shard))))


def mixed_tokens(spec: ModelSpec, shard: Shard) -> int:
    """Return the tokens of a step of at most _MIXED_STEP_S: a size of the graphs, which linears compute fast."""
    most = max(_MIN_MIXED_TOKENS, _tokens_in(_MIXED_STEP_S, spec, shard))
    return max(size for size in TOKEN_SIZES if size <= most)


def _tokens_in(seconds: float, spec: ModelSpec, shard: Shard) -> int:
    """Return how many tokens the linears compute in that time."""
    attention = sum(kind.heads.size + kind.heads.query_size for kind in spec.attention)
    widths = sum(map(spec.active_width, range(spec.num_layers)))
    weights = spec.hidden_size * (attention + 3 * widths) // shard.size
    return max(1, int(seconds * _FLOPS / (2 * weights)))
