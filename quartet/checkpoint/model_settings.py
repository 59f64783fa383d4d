"""Settings that a model cannot honour: refused before a launch starts, and by an engine within a process."""

from quartet.checkpoint.spec import ModelSpec
from quartet.wire.config import Config
from quartet.wire.errors import ConfigError


def check_settings(config: Config, spec: ModelSpec) -> None:
    """Raise ConfigError for a setting that needs shared prefixes, if the model shares none."""
    if spec.linear is None:
        return
    asked = {
        "--retraction-keeps-kv": config.scheduler.retraction_keeps_kv,
        "--kv-events-config": bool(config.server.kv_events_config),
        "--schedule-policy shortest-prefill-first": config.scheduler.schedule_policy == "shortest-prefill-first",
    }
    for flag in (flag for flag, is_asked in asked.items() if is_asked):
        raise ConfigError(f"{flag} needs the radix cache, and {spec.architecture} shares no prefixes: drop it")
