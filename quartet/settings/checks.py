"""Values that are each allowed, but not together."""

import ipaddress
import re

from quartet.wire.config import MULTI_LEVELS, POLICIES, TRITON_PAGE_SIZES, Config, SchedulerConfig
from quartet.wire.errors import ConfigError
from quartet.wire.kv_events import is_loopback, parse_kv_events
from quartet.wire.monitoring import MonitoringConfig
from quartet.wire.tenants import parse_tenant_weights, tenant_named

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#*]+")


def check_together(config: Config) -> None:
    """Refuse values that are each allowed, but not together."""
    _check_scheduler(config.scheduler)
    _check_tenants(config)
    _check_kv_events(config)
    _check_ranks(config)
    _check_monitoring(config.monitoring)
    page_size, chunk = config.worker.page_size, config.scheduler.chunked_prefill_size
    if chunk > 0 and chunk % page_size:
        raise ConfigError(f"--chunked-prefill-size: {chunk} is not a multiple of --page-size {page_size}")
    if config.worker.attention_backend == "triton" and page_size not in TRITON_PAGE_SIZES:
        raise ConfigError(f"--page-size: {page_size} is not one of {TRITON_PAGE_SIZES}, which triton attention needs")
    if config.worker.max_total_tokens and config.worker.max_total_tokens < 2 * page_size:
        raise ConfigError(
            f"--max-total-tokens: {config.worker.max_total_tokens} is less than two pages of {page_size} tokens"
        )
    if config.worker.simulated_script and not config.worker.simulated_worker:
        raise ConfigError("--simulated-script needs --simulated-worker: a model writes its own answers")
    if config.server.demo and config.server.disable_ui:
        raise ConfigError("--demo is a button of the page: drop --disable-ui")
    for flag, keys in (("--api-key", config.server.api_key), ("--admin-api-key", config.server.admin_api_key)):
        if any(not key.strip() for key in keys):
            raise ConfigError(f"{flag}: an empty key would admit every client; leave it out or give a key")
    if set(config.server.api_key) & set(config.server.admin_api_key):
        raise ConfigError("--admin-api-key: the key is an --api-key, too, so every client would have it")
    for origin in config.server.cors_origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(f"--cors-origins: {origin!r} is not an origin, such as https://chat.example:8443, or *")
    if not _is_loopback(config.server.host) and not config.server.api_key and not config.server.insecure:
        raise ConfigError(
            f"--host {config.server.host} is reachable from outside: set --api-key, or --insecure if that is meant"
        )


def _check_ranks(config: Config) -> None:
    together = {"--standby": config.server.standby, "--simulated-worker": config.worker.simulated_worker}
    for flag, is_given in together.items():
        if config.worker.tp_size > 1 and is_given:
            raise ConfigError(f"--tp-size {config.worker.tp_size} does not work with {flag}: drop one of them")


def _check_monitoring(config: MonitoringConfig) -> None:
    if config.log_requests_level > 1 and not config.log_requests:
        raise ConfigError("--log-requests-level says how much --log-requests shows: give both")
    if config.disable_metrics and config.metrics_alias != "none":
        raise ConfigError(f"--metrics-alias {config.metrics_alias} shows nothing with --disable-metrics: drop one")
    endpoint = config.otlp_traces_endpoint
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"--otlp-traces-endpoint: {endpoint!r} is not a URL such as http://127.0.0.1:4318")


def _check_kv_events(config: Config) -> None:
    events = parse_kv_events(config.server.kv_events_config)
    if events is None:
        return
    if config.scheduler.disable_radix_cache:
        raise ConfigError("--kv-events-config needs the radix cache: drop --disable-radix-cache")
    exposed = [endpoint for endpoint in events.endpoints if not is_loopback(endpoint)]
    if exposed and not config.server.insecure:
        raise ConfigError(
            f"--kv-events-config: {exposed[0]} shows the tokens of prompts to everyone who reaches it, and has no key: "
            "use a loopback address, or --insecure in a network that is closed"
        )


def _check_tenants(config: Config) -> None:
    try:
        weights = parse_tenant_weights(config.scheduler.tenant_weights)
    except ValueError as error:
        raise ConfigError(f"--tenant-weights: {error}") from None
    for key in (*config.server.api_key, *config.server.admin_api_key):
        if key in weights:
            raise ConfigError(
                "--tenant-weights: an API key is a secret, and the settings are shown; name its tenant instead, the "
                f"first hex digits of its SHA-256: {tenant_named(key)}={weights[key]:g}"
            )
    if weights and config.scheduler.schedule_policy.startswith("multi:"):
        raise ConfigError("--tenant-weights goes with every --schedule-policy but multi:, whose levels say the order")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_scheduler(config: SchedulerConfig) -> None:
    policy = config.schedule_policy
    if policy.startswith("multi:"):
        levels = policy.removeprefix("multi:").split(",")
        wrong = [level for level in levels if level not in MULTI_LEVELS]
        if wrong or len(set(levels)) != len(levels):
            raise ConfigError(
                f"--schedule-policy: {policy!r} must list distinct levels of {', '.join(MULTI_LEVELS)} after multi:"
            )
        if "priority" in levels and not config.enable_priority_scheduling:
            raise ConfigError(f"--schedule-policy {policy} needs --enable-priority-scheduling")
    elif policy not in POLICIES:
        hint = ": give --schedule-policy fcfs --enable-priority-scheduling" if policy == "priority" else ""
        raise ConfigError(f"--schedule-policy: {policy!r} is not one of {', '.join(POLICIES)}, multi:LEVELS{hint}")
    if policy == "shortest-prefill-first" and config.disable_radix_cache:
        raise ConfigError("--schedule-policy shortest-prefill-first needs the radix cache: drop --disable-radix-cache")
    if config.retraction_keeps_kv and config.disable_radix_cache:
        raise ConfigError("--retraction-keeps-kv needs the radix cache: drop --disable-radix-cache")
    if config.retraction_policy == "priority" and not config.enable_priority_scheduling:
        raise ConfigError("--retraction-policy priority needs --enable-priority-scheduling")
    if config.tbt_target_ms > 0 and config.step_order == "prefill_first":
        raise ConfigError("--tbt-target-ms needs --step-order decode_first or slack")
    if config.shed_hopeless and not config.ttft_target_ms:
        raise ConfigError("--shed-hopeless needs --ttft-target-ms: without a target every request makes it")
    if config.step_order == "slack" and not config.tbt_target_ms:
        raise ConfigError("--step-order slack needs --tbt-target-ms")
