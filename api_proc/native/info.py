"""GET /server_info and /model_info, also under their older names, and /version: what runs here, in SGLang's shape.

Routers find the sources of KV-cache events in /server_info (SGLang's form) or at /kv_event_sources (vLLM's form).
"""

from typing import Any

import msgspec
from aiohttp import web

from api_proc.openai.chat_format import format_names
from api_proc.server.bodies import json_response
from api_proc.server.service import SERVICE, Service
from quartet.version import __version__
from quartet.wire.kv_events import KvEventsConfig, host_and_port, parse_kv_events

SECRETS = ("api_key", "admin_api_key")


async def server_info(request: web.Request) -> web.Response:
    """Give the configuration, without keys, and the scheduler's settings in force."""
    service = request.app[SERVICE]
    settings = msgspec.json.decode(await service.engine.query("config"))
    capacity_tokens = settings.get("kv_capacity_tokens", 0)
    model = service.config.require_model()
    info = {
        **_configuration(service),
        **format_names(service.config),
        **_model(service),
        "tp_size": 1,
        "dp_size": 1,
        "page_size": settings.get("page_size", 0),
        "block_size": settings.get("page_size", 0),
        "context_length": model.context_length,
        "max_total_num_tokens": capacity_tokens,
        "max_req_input_len": min(model.context_length, capacity_tokens or model.context_length) - 1,
        "internal_states": [settings],
        "version": __version__,
    }
    events = parse_kv_events(service.config.server.kv_events_config)
    if events is not None:
        info["kv_events"] = _kv_events(events, service.config.worker.page_size)
    return json_response(info)


async def kv_event_sources(request: web.Request) -> web.Response:
    """Give where KV-cache events are published, by data-parallel rank: of one, or of none without events."""
    events = parse_kv_events(request.app[SERVICE].config.server.kv_events_config)
    return json_response({} if events is None else {"0": msgspec.structs.asdict(events)})


async def model_info(request: web.Request) -> web.Response:
    """Describe the model."""
    return json_response(_model(request.app[SERVICE]))


async def version(request: web.Request) -> web.Response:
    """Name the version; served only with --serve-version."""
    return json_response({"version": __version__})


def _kv_events(events: KvEventsConfig, page_size: int) -> dict[str, Any]:
    host, port = host_and_port(events.endpoint) or (events.endpoint, None)
    block: dict[str, Any] = {
        "publisher": events.publisher,
        "endpoint_host": host,
        "endpoint_port_base": port,
        "topic": events.topic,
        "block_size": page_size,
        "dp_size": 1,
    }
    if events.replay_endpoint is not None and (replay := host_and_port(events.replay_endpoint)):
        block["replay_endpoint_port_base"] = replay[1]
    return block


def _configuration(service: Service) -> dict[str, Any]:
    config = service.config
    sections = (config.model, config.server, config.scheduler, config.worker, config.monitoring)
    return {
        name: value
        for section in sections
        for name, value in msgspec.structs.asdict(section).items()
        if name not in SECRETS
    }


def _model(service: Service) -> dict[str, Any]:
    config, model = service.config.model, service.config.require_model()
    return {
        "model_path": config.model_path,
        "model_id": service.model_name,
        "served_model_name": service.model_name,
        "tokenizer_path": config.tokenizer_path or config.model_path,
        "is_generation": True,
        "preferred_sampling_params": model.default_sampling or None,
        "weight_version": "default",
        "load_format": config.load_format,
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "architectures": [model.architecture],
        "vocab_size": model.vocab_size,
        "max_model_len": model.context_length,
    }
