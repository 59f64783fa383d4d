"""The settings as a table, derived from quartet.wire.config: sections, fields, environment variables."""

from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from quartet.wire.config import ModelConfig, SchedulerConfig, ServerConfig, WorkerConfig
from quartet.wire.monitoring import MonitoringConfig

SECTIONS: dict[str, type[msgspec.Struct]] = {
    "model": ModelConfig,
    "server": ServerConfig,
    "scheduler": SchedulerConfig,
    "worker": WorkerConfig,
    "monitoring": MonitoringConfig,
}

RARE = frozenset(
    {
        "abort_on_priority_when_disabled",
        "aging_share",
        "cache_priority_isolation",
        "clip_max_new_tokens_estimation",
        "in_batch_check_threshold",
        "in_batch_deprioritize_threshold",
        "init_new_token_ratio",
        "min_free_slots_delay",
        "min_new_token_ratio_factor",
        "new_token_ratio_decay",
        "new_token_ratio_decay_steps",
        "preempt_accounting",
        "prefill_decode_interval",
        "prefill_decode_interval_min_bs",
        "prefill_max_requests",
        "prefix_match_overflow",
        "prefix_match_queue_max",
        "req_running_timeout",
        "req_waiting_timeout",
        "reserve_basis",
        "retract_decode_steps",
        "tenant_quantum",
        "test_retract",
        "test_retract_no_prefill_bs",
    }
)
"""Fields of SchedulerConfig that are set by --scheduler-set."""

SHORT_HELP = frozenset(
    {
        "served_model_name",
        "dtype",
        "context_length",
        "chat_template",
        "host",
        "port",
        "api_key",
        "tool_call_parser",
        "reasoning_parser",
        "shutdown_timeout",
        "standby",
        "log_level",
        "schedule_policy",
        "enable_priority_scheduling",
        "max_running_requests",
        "max_queued_requests",
        "chunked_prefill_size",
        "disable_radix_cache",
        "step_order",
        "tbt_target_ms",
        "device",
        "tp_size",
        "mem_fraction_static",
        "max_total_tokens",
        "page_size",
        "disable_cuda_graph",
    }
)
"""Settings that --help shows; --help-all shows the others as well."""

FD_NAMES = frozenset(
    {
        "init_new_token_ratio",
        "min_new_token_ratio_factor",
        "new_token_ratio_decay_steps",
        "new_token_ratio_decay",
        "retract_decode_steps",
        "clip_max_new_tokens_estimation",
    }
)
"""Fields that FastDeploy sets by an environment variable with the prefix FD_."""


class Setting(NamedTuple):
    """One field of the configuration: where it is, the type that its value has, and what is written about it."""

    name: str
    section: str
    field: inspect.Field

    @property
    def type(self) -> inspect.Type:
        """The type of the field, with bounds and description."""
        return self.field.type

    @property
    def default(self) -> Any:
        """The value without any source."""
        return self.field.default


def fields_of(section: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    """Return the fields of a section of the configuration."""
    info = inspect.type_info(section)
    assert isinstance(info, inspect.StructType)
    return info.fields


SETTINGS = {
    field.name: Setting(field.name, section, field)
    for section, struct in SECTIONS.items()
    for field in fields_of(struct)
}
"""Every setting by name; names are unique across the sections."""


SECRETS = frozenset({"api_key", "admin_api_key"})
"""Settings whose values are not shown."""


def flag_of(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + name.replace("_", "-")


def bare_type(kind: inspect.Type) -> tuple[inspect.Type, str]:
    """Return the type of a value that is given, and the help text."""
    text = ""
    if isinstance(kind, inspect.Metadata):
        text = str((kind.extra_json_schema or {}).get("description", ""))
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        (kind,) = (option for option in kind.types if not isinstance(option, inspect.NoneType))
    return kind, text
