"""Settings that a model cannot honour: refused before a launch starts, and by an engine within a process."""

from quartet.checkpoint.ranks import check_ranks
from quartet.checkpoint.spec import ModelSpec
from quartet.wire.config import Config
from quartet.wire.errors import ConfigError


def check_settings(config: Config, spec: ModelSpec) -> None:
    """Raise ConfigError for a setting that the model's shape, or states of linear attention, do not allow."""
    check_ranks(spec, config.worker.tp_size)
    if config.worker.deterministic:
        _check_deterministic(config, spec)
    if spec.linear is None:
        return
    asked = {
        "--kv-events-config": (bool(config.server.kv_events_config), "has states beside the pages that events name"),
        "--speculative-tokens": (config.scheduler.speculative_tokens > 0, "has states that cannot be taken back"),
    }
    for flag, (is_asked, reason) in asked.items():
        if is_asked:
            raise ConfigError(f"{flag} does not work with {spec.architecture}, which {reason}: drop it")


def _check_deterministic(config: Config, spec: ModelSpec) -> None:
    """Raise ConfigError for layers whose results depend on the batch, or on where a prompt is cut."""
    reasons = {
        "linear attention, whose states depend on where a prompt is cut": spec.linear is not None,
        "experts, whose products depend on how many tokens choose them": spec.experts is not None,
    }
    if config.worker.tp_size > 1:
        raise ConfigError("--deterministic does not work with --tp-size: sums over ranks depend on the batch; drop one")
    for reason, is_there in reasons.items():
        if is_there:
            raise ConfigError(f"--deterministic does not work with {spec.architecture}, which has {reason}: drop it")
