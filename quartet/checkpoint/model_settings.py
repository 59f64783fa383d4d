"""Settings that a model cannot honour: refused before a launch starts, and by an engine within a process."""

from quartet.checkpoint.ranks import check_ranks
from quartet.checkpoint.spec import ModelSpec
from quartet.wire.config import Config
from quartet.wire.errors import ConfigError


def check_settings(config: Config, spec: ModelSpec) -> None:
    """Raise ConfigError for a setting that the model's shape, or states of linear attention, do not allow."""
    check_ranks(spec, config.worker.tp_size)
    if spec.linear is None:
        return
    asked = {
        "--kv-events-config": (bool(config.server.kv_events_config), "has states beside the pages that events name"),
        "--speculative-tokens": (config.scheduler.speculative_tokens > 0, "has states that cannot be taken back"),
    }
    for flag, (is_asked, reason) in asked.items():
        if is_asked:
            raise ConfigError(f"{flag} does not work with {spec.architecture}, which {reason}: drop it")
