"""The access log: one line for each HTTP request, and with --log-requests one for what each request asks for.

Prompts are in no line but those of --log-requests-level 2, which shows their beginning.
"""

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from api_proc.server import request_ids
from api_proc.server.engine_client import OutputStream
from api_proc.server.usage import UsageCounter
from quartet.client.request import GenerateRequest
from quartet.wire.frames import ID_BYTES, ChatPrompt, IdsPrompt, SamplingParams, TextPrompt, unpack_ids
from quartet.wire.monitoring import MonitoringConfig

log = logging.getLogger("quartet.access")
requests_log = logging.getLogger("quartet.requests")

POLLED = frozenset({"/health", "/ready", "/metrics", "/v1/loads", "/get_load", "/ui/stream"})
"""Routes that monitors ask for all the time; their lines are of level debug."""
SHOWN_CHARACTERS = 300
SHOWN_IDS = 32
NO_PARAMS = msgspec.structs.asdict(SamplingParams())

USAGE = web.RequestKey("usage", UsageCounter)
"""The counts of a request that generates."""
PARAMS = web.RequestKey("params", SamplingParams)
"""Its sampling parameters."""
TRACE_ID = web.RequestKey("trace_id", str)
"""The trace that it belongs to, if there are traces."""


def log_access(request: web.Request, status: int, seconds: float) -> None:
    """Log a request that has been answered, or whose client has left."""
    level = logging.DEBUG if request.path in POLLED else logging.INFO
    if not log.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "method": request.method,
        "route": request.rel_url.raw_path,
        "status": status,
        "ms": round(seconds * 1000.0, 1),
        "request_id": request_ids.of(request) or "",
    }
    words = "{method} {route} {status} {ms} ms id={request_id}".format_map(fields)
    if TRACE_ID in request:
        fields["trace_id"] = request[TRACE_ID]
        words += f" trace_id={request[TRACE_ID]}"
    if USAGE in request:
        counts = request[USAGE].summary()
        fields |= counts
        words += "".join(f" {name}={value}" for name, value in counts.items())
    log.log(level, "%s", words, extra={"fields": fields})


def log_requests(
    config: MonitoringConfig, requests: Sequence[GenerateRequest], outputs: Sequence[OutputStream]
) -> None:
    """Log the parameters and lengths of requests that the engine has accepted, if that is wanted."""
    if not config.log_requests:
        return
    for request, output in zip(requests, outputs, strict=True):
        params = msgspec.structs.asdict(request.params)
        fields: dict[str, Any] = {
            "request_id": request.request_id,
            "rid": output.rid.hex(),
            "prompt_tokens": len(output.encoded.ids) // ID_BYTES,
            "choices": request.n,
            "priority": request.priority,
            "params": {name: value for name, value in params.items() if value != NO_PARAMS[name]},
        }
        if config.log_requests_level > 1:
            fields["prompt"] = _beginning(request.prompt)
        shown = msgspec.json.encode(fields, enc_hook=repr).decode()
        requests_log.info("request %s", shown, extra={"fields": {"request": msgspec.Raw(shown.encode())}})


def _beginning(prompt: TextPrompt | IdsPrompt | ChatPrompt) -> str:
    """Return the beginning of a prompt, as it came."""
    match prompt:
        case TextPrompt():
            return prompt.text[:SHOWN_CHARACTERS]
        case IdsPrompt():
            return str(unpack_ids(prompt.ids[: SHOWN_IDS * ID_BYTES]))
    return prompt.messages[: 4 * SHOWN_CHARACTERS].decode(errors="replace")[:SHOWN_CHARACTERS]
